"""The layered-images service's shapes, names and statuses, as its own document gives them."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, get_args
from uuid import UUID

from msgspec import Meta, Struct

from ...domain.jobs import Artifact
from ...domain.kinds import SEED_MAX, PaintingStyle
from ..jobs import JobView
from ..problems import Facade

KINDS = {"photo-realistic": "layer-photo-realistic", "painterly": "layer-painterly"}
MODES = {kind: mode for mode, kind in KINDS.items()}
STYLES = {"photo-realistic": ["default"], "painterly": list(get_args(PaintingStyle))}
EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
}
STORED_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([a-z]{3,4})")

# What this service says where the natives say something finer.
FACADE = Facade(
    ("/api/jobs", "/health"),
    dict.fromkeys(
        (
            "validation_failed",
            "rule_violated",
            "unknown_kind",
            "invalid_state",
            "conflict",
            "asset_not_clean",
            "unsupported_media_type",
            "empty_file",
            "content_type_mismatch",
            "image_truncated",
            "image_too_many_pixels",
            "image_too_many_frames",
            "image_expands_too_much",
            "image_undecodable",
            "malware_signature",
            "scan_timed_out",
        ),
        400,
    ),
)


class ApiInfo(Struct, frozen=True):
    name: str
    version: str
    docs: str
    health: str


class Queue(Struct, frozen=True):
    """Attributes:
    capacity: how many jobs of each mode may wait.
    """

    pending: int
    processing: int
    capacity: int


class Health(Struct, frozen=True):
    status: str
    queue: Queue


class Uploaded(Struct, frozen=True):
    """Attributes:
    filename: what to name in POST /api/jobs.
    """

    file_id: UUID
    filename: str
    original_filename: str
    size_bytes: int


class JobForm(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Attributes:
    filename: as the upload answered it.
    num_layers: the service's setting, unless it is given.
    export_layers: without it only composite, depth map and manifest are written.
    painterly_style: for painterly mode, as are the two below; another mode does not look at them.
    painterly_strength: the service's setting, unless it is given.
    painterly_seed: likewise; the same seed paints the same bytes.
    """

    filename: Annotated[str, Meta(max_length=255)]
    mode: Annotated[str, Meta(max_length=64)] = "photo-realistic"
    num_layers: Annotated[int, Meta(ge=2, le=5)] | None = None
    max_size: Annotated[int, Meta(ge=256, le=2048)] = 1024
    feather_radius: Annotated[int, Meta(ge=1, le=5)] = 2
    export_layers: bool = True
    painterly_style: Annotated[str, Meta(max_length=64)] | None = None
    painterly_strength: Annotated[float, Meta(ge=0, le=1)] | None = None
    painterly_seed: Annotated[int, Meta(ge=0, le=SEED_MAX)] | None = None


class UploadForm(Struct, frozen=True):
    """Attributes:
    file: the picture; its type is declared by its part and must be what its bytes are.
    """

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]


class JobAnswer(Struct, frozen=True, kw_only=True):
    """Attributes:
    painterly_style, painterly_strength, painterly_seed: of painterly mode, else null.
    output_dir: where the files lie in the object store, once there are some.
    processing_time: seconds, of the attempt that ended the job.
    """

    id: UUID
    status: str
    mode: str
    num_layers: int
    max_size: int
    feather_radius: int
    painterly_style: str | None = None
    painterly_strength: float | None = None
    painterly_seed: int | None = None
    input_filename: str
    output_dir: str | None
    result_manifest: dict[str, Any] | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    processing_time: float | None


class JobsAnswer(Struct, frozen=True):
    jobs: list[JobAnswer]
    total: int


def stored_name(asset_id: UUID, content_type: str) -> str:
    """The name under which an upload is known here."""
    return f"{asset_id}.{EXTENSIONS.get(content_type, 'bin')}"


def answer_of(job: JobView, input_filename: str, outputs: Sequence[Artifact] = ()) -> JobAnswer:
    """A job as these clients know it, whether it was read or just decided."""
    took = job.finished_at - job.started_at if job.finished_at and job.started_at else None
    completed = job.status == "completed"
    return JobAnswer(
        id=job.id,
        status=job.status,
        mode=MODES[job.kind],
        num_layers=job.params["num_layers"],
        max_size=job.params["max_size"],
        feather_radius=job.params["feather_radius"],
        painterly_style=job.params.get("style"),
        painterly_strength=job.params.get("strength"),
        painterly_seed=job.params.get("seed"),
        input_filename=input_filename,
        output_dir=outputs[0].object_key.rpartition("/")[0] if completed and outputs else None,
        result_manifest=job.manifest if completed else None,
        error_message=job.error_message or job.error_code if job.status == "failed" else None,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.finished_at,
        processing_time=took.total_seconds() if took is not None else None,
    )
