"""The layered-images service's own paths, over our commands and queries: its shapes, its statuses, its words.

Differences that are meant: a mode that is known but not built yet is 400; what an upload holds is decoded before it is
taken; ids are of version 7.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, Request, Response, delete, get, head, post
from litestar.di import Provide
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from msgspec import Meta, Struct

from ...adapters.ids import uuid7
from ...adapters.images import UNDECLARED, normalised
from ...commands import assets as asset_commands
from ...commands import jobs as commands
from ...domain import assets, jobs
from ...domain.jobs import Artifact, Job
from ...domain.kernel import Invalid, InvalidState, NotFound
from ...projections import assets as asset_projection
from ...projections import jobs as projection
from .. import downloads, intake
from ..bodies import MULTIPART, Upload, read_form, read_upload
from ..jobs import artifact_of, delete_job, one_row
from ..manners import Asks, Parts, Reads, caller_of, decided, found, fresh_reads, gone
from ..problems import Facade, FieldsRefused, Malformed, Verdict
from ..services import Services
from .forms import form_operation

KINDS = {"photo-realistic": "layer-photo-realistic"}
MODES = {kind: mode for mode, kind in KINDS.items()}
LATER_MODES = frozenset({"painterly"})
STYLES = {
    "photo-realistic": ["default"],
    "painterly": [],  # none can be had yet
}
EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
}
_STORED_NAME = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([a-z]{3,4})")

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
    capacity: how many jobs may wait.
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
    """

    filename: Annotated[str, Meta(max_length=255)]
    mode: Annotated[str, Meta(max_length=64)] = "photo-realistic"
    num_layers: Annotated[int, Meta(ge=2, le=5)] | None = None
    max_size: Annotated[int, Meta(ge=256, le=2048)] = 1024
    feather_radius: Annotated[int, Meta(ge=1, le=5)] = 2
    export_layers: bool = True
    painterly_style: Annotated[str, Meta(max_length=64)] | None = None
    painterly_strength: Annotated[float, Meta(ge=0, le=1)] | None = None
    painterly_seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None


class UploadForm(Struct, frozen=True):
    """Attributes:
    file: the picture; its type is declared by its part and must be what its bytes are.
    """

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]


class JobAnswer(Struct, frozen=True, kw_only=True):
    """Attributes:
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


def _answer(row: projection.JobRow, input_filename: str) -> JobAnswer:
    params = row.params
    took = row.finished_at - row.started_at if row.finished_at and row.started_at else None
    return JobAnswer(
        id=row.job_id,
        status=row.status,
        mode=MODES[row.kind],
        num_layers=params["num_layers"],
        max_size=params["max_size"],
        feather_radius=params["feather_radius"],
        input_filename=input_filename,
        output_dir=row.outputs[0].object_key.rpartition("/")[0] if row.outputs else None,
        result_manifest=row.manifest if row.status == "completed" else None,
        error_message=row.error_message or None,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.finished_at,
        processing_time=took.total_seconds() if took is not None else None,
    )


async def _answers(reads: Reads, rows: Sequence[projection.JobRow]) -> list[JobAnswer]:
    """Rows with the names of their inputs, which the assets know."""
    inputs = {row.inputs[0] for row in rows if row.inputs}
    known = await asset_projection.by_ids(reads, list(inputs)) if inputs else {}
    names = {asset_id: stored_name(asset_id, asset.content_type) for asset_id, asset in known.items()}
    return [_answer(row, names.get(row.inputs[0], str(row.inputs[0]))) for row in rows]


class LayeredImagesController(Controller):
    path = "/api/jobs"
    tags = ("layered images",)
    # These clients know nothing of positions: whoever created a job must find it.
    dependencies: Mapping[str, Provide] = {"reads": Provide(fresh_reads)}

    @post(
        "/upload",
        request_max_body_size=None,  # the reader below counts, and stops at the file's own bound
        operation_class=form_operation(UploadForm, MULTIPART),
        summary="Upload a picture",
        status_code=200,
    )
    async def upload(self, request: Request[Any, Any, Any], services: Parts) -> Response[Uploaded]:
        size_bytes_max = services.settings.upload_size_bytes_max
        async with read_upload(request, "file", size_bytes_max=size_bytes_max) as upload:
            return await _register(request, services, upload)

    @post("/", operation_class=form_operation(JobForm, MULTIPART), summary="Create a job")
    async def create(self, request: Request[Any, Any, Any], services: Parts) -> Response[JobAnswer]:
        fields = await read_form(request)
        try:
            form = msgspec.convert(fields, JobForm, strict=False)
        except msgspec.ValidationError as error:
            raise FieldsRefused.of(str(error)) from error
        kind = _kind(form.mode)
        asset_id = await _asset_id(services, form.filename)
        settings = services.settings
        command = commands.SubmitJob(
            job_id=uuid7(),
            kind=kind,
            inputs=(asset_id,),
            params={
                "num_layers": settings.default_num_layers if form.num_layers is None else form.num_layers,
                "max_size": form.max_size,
                "feather_radius": form.feather_radius,
                "export_layers": form.export_layers,
            },
            timeout_s=settings.job_timeout_s,
            attempts_max=settings.job_attempts_max,
            pending_max=settings.facade_jobs_pending_max,
        )
        caller = caller_of(request, services, msgspec.json.encode(sorted(fields.items())))
        receipt = await services.commands.execute(commands.submit_job, command, caller)
        return decided(receipt, _decided_answer(receipt.stream_id, receipt.state, form.filename), status_code=201)

    @get("/", summary="Jobs, newest first")
    async def page(
        self,
        reads: Reads,
        skip: Annotated[int, QueryParameter(ge=0, le=1_000_000)] = 0,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[JobsAnswer]:
        page = await projection.newest(reads, kinds=list(MODES), skip=skip, limit=limit)
        total = sum(count.jobs for count in await projection.counts(reads) if count.kind in MODES)
        return found(JobsAnswer(await _answers(reads, page.rows), total), page.position)

    @get("/style-presets", summary="Modes and their styles")
    async def style_presets(self) -> dict[str, list[str]]:
        return STYLES

    @get("/{job_id:str}", summary="One job")
    async def one(self, reads: Reads, job_id: FromPath[str]) -> Response[JobAnswer]:
        row, position = await _row(reads, job_id)
        return found((await _answers(reads, [row]))[0], position)

    @delete("/{job_id:str}", status_code=204, summary="Delete a job and its files")
    async def remove(self, services: Parts, reads: Reads, caller: Asks, job_id: FromPath[str]) -> Response[None]:
        row, _ = await _row(reads, job_id)
        return gone(await delete_job(services, row.job_id, caller))

    @get("/{job_id:str}/download/{filename:str}", summary="One file of a completed job")
    async def download(self, services: Parts, reads: Reads, job_id: FromPath[str], filename: FromPath[str]) -> Stream:
        file = await _file(reads, job_id, filename)
        return await downloads.stream(services, file.object_key, filename=file.name, content_type=file.content_type)

    @head("/{job_id:str}/download/{filename:str}", summary="Whether there is such a file, and how large")
    async def look(
        self, services: Parts, reads: Reads, job_id: FromPath[str], filename: FromPath[str]
    ) -> Response[None]:
        file = await _file(reads, job_id, filename)
        return await downloads.describe(services, file.object_key, filename=file.name, content_type=file.content_type)


@get("/", tags=["layered images"], summary="API info")
async def info(request: Request[Any, Any, Any]) -> ApiInfo:
    config = request.app.openapi_config
    return ApiInfo("Sightline", config.version if config else "", "/docs", "/health")


@get("/health", tags=["layered images"], summary="Health, with the queue's length")
async def health(services: Parts) -> Health:
    counts = [count for count in await projection.counts(services.reads) if count.kind in MODES]
    by_status = {
        status: sum(one.jobs for one in counts if one.status == status) for status in ("pending", "processing")
    }
    return Health("healthy", Queue(**by_status, capacity=services.settings.facade_jobs_pending_max))


ROUTES = (info, health, LayeredImagesController)


def _kind(mode: str) -> str:
    if mode in LATER_MODES:
        raise Invalid(f"mode {mode!r} is not available yet; use photo-realistic")
    kind = KINDS.get(mode)
    if kind is None:
        raise Invalid(f"mode {mode[:64]!r} is not one of {', '.join([*KINDS, *LATER_MODES])}")
    return kind


async def _asset_id(services: Services, filename: str) -> UUID:
    """The upload that `filename` names, exactly as its answer named it.

    Raises:
        NotFound: none does.
    """
    named = _STORED_NAME.fullmatch(filename)
    if named is not None:
        asset_id = UUID(named[1])
        asset, _, _ = await services.commands.state(assets.AGGREGATE, asset_id, read_tail=False)
        if asset.status not in {None, "deleted"} and filename == stored_name(asset_id, asset.content_type):
            return asset_id
    raise NotFound("no such file: upload it first, and name it as the upload's answer does")


async def _row(reads: Reads, job_id: str) -> tuple[projection.JobRow, int]:
    """A job of this service's kinds; an id that cannot be one is unknown like any other."""
    try:
        row, position = await one_row(reads, UUID(job_id))
    except ValueError as error:
        raise NotFound("no such job") from error
    if row.kind not in MODES:
        raise NotFound("no such job")
    return row, position


async def _file(reads: Reads, job_id: str, filename: str) -> Artifact:
    """
    Raises:
        NotFound: no such job, or no such file.
        InvalidState: the job is not completed.
    """
    row, _ = await _row(reads, job_id)
    if row.status != "completed":
        raise InvalidState(f"the job is not completed, it is {row.status}")
    return artifact_of(row, filename)


async def _register(request: Request[Any, Any, Any], services: Services, upload: Upload) -> Response[Uploaded]:
    """Judged first, stored second, told last: a refused file leaves nothing behind."""
    declared = normalised(upload.content_type)
    if not (declared.startswith("image/") or declared in UNDECLARED):
        raise Malformed(f"{declared or 'a file without a type'} is not an image")
    examined = await intake.examine(services, upload.path, declared_type=declared, purpose="image")
    if examined.scan.code is not None:
        raise Verdict(examined.scan.code, examined.scan.detail)
    filename = assets.display_name(upload.filename)[-assets.FILENAME_CHARS_MAX :]
    asset_id = uuid7()
    key = asset_commands.object_key(asset_id)
    await services.objects.put_file(key, upload.path, content_type=examined.content_type)
    command = asset_commands.RegisterAsset(
        asset_id=asset_id,
        filename=filename,
        content_type=examined.content_type,
        found_content_type=examined.content_type,
        size_bytes=examined.size_bytes,
        sha256=examined.sha256,
        scan=examined.scan,
        purpose="image",
        size_bytes_max=services.settings.upload_size_bytes_max,
    )
    caller = caller_of(request, services, f"{upload.sha256}\0{filename}".encode())
    receipt = await services.commands.execute(asset_commands.register_asset, command, caller)
    if receipt.stream_id != asset_id:
        await downloads.discard(services, [key])  # a repeat: the first one's bytes are the ones that are named
    asset = receipt.state
    body = Uploaded(
        receipt.stream_id, stored_name(receipt.stream_id, asset.content_type), upload.filename, asset.size_bytes
    )
    return decided(receipt, body)


def _decided_answer(job_id: UUID, job: Job, input_filename: str) -> JobAnswer:
    """A job that was submitted now, or before under the same key."""
    submitted = jobs.require_present(job)
    params = submitted.params
    return JobAnswer(
        id=job_id,
        status=job.status or "pending",
        mode=MODES[submitted.kind],
        num_layers=params["num_layers"],
        max_size=params["max_size"],
        feather_radius=params["feather_radius"],
        input_filename=input_filename,
        output_dir=None,
        result_manifest=None,
        error_message=job.error_message or None,
        created_at=submitted.at,
        started_at=job.started_at,
        completed_at=job.finished_at,
        processing_time=None,
    )
