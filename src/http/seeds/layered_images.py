"""The layered-images service's own paths, over our commands and queries: its shapes, its statuses, its words.

Differences that are meant: what an upload holds is decoded before it is taken; ids are of version 7.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, Request, Response, delete, get, head, post
from litestar.di import Provide
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream

from ...adapters.ids import uuid7
from ...adapters.images import UNDECLARED, normalised
from ...adapters.settings import Settings
from ...commands import assets as asset_commands
from ...commands import jobs as commands
from ...domain import assets
from ...domain.jobs import AGGREGATE, Artifact
from ...domain.kernel import Invalid, InvalidState, NotFound
from ...projections import assets as asset_projection
from ...projections import jobs as projection
from .. import downloads, intake
from ..auth import takes
from ..bodies import MULTIPART, Upload, announced_bytes, read_form, read_upload
from ..jobs import artifact_of, delete_job, one_row, view_of_row, view_of_state
from ..manners import (
    Asks,
    Owner,
    Parts,
    Reads,
    caller_of,
    decided,
    found,
    fresh_reads,
    gone,
)
from ..problems import FieldsRefused, Malformed, Verdict
from ..services import Services
from .forms import form_operation
from .layered_images_shapes import (
    KINDS,
    MODES,
    STORED_NAME,
    STYLES,
    ApiInfo,
    Health,
    JobAnswer,
    JobForm,
    JobsAnswer,
    Queue,
    Uploaded,
    UploadForm,
    answer_of,
    stored_name,
)


async def _answers(reads: Reads, rows: Sequence[projection.JobRow]) -> list[JobAnswer]:
    """Rows with the names of their inputs, which the assets know."""
    inputs = {row.inputs[0] for row in rows if row.inputs}
    known = await asset_projection.by_ids(reads, list(inputs)) if inputs else {}
    names = {asset_id: stored_name(asset_id, asset.content_type) for asset_id, asset in known.items()}
    return [answer_of(view_of_row(row), names.get(row.inputs[0], str(row.inputs[0])), row.outputs) for row in rows]


FILES = ("image/png", "application/json")  # what these kinds of job write


class LayeredImagesController(Controller):
    path = "/api/jobs"
    opt = takes("jobs:read", owned=AGGREGATE)
    tags = ("layered images",)
    # These clients know nothing of positions: whoever created a job must find it.
    dependencies: Mapping[str, Provide] = {"reads": Provide(fresh_reads)}

    @post(
        "/upload",
        request_max_body_size=None,  # the reader below counts, and stops at the file's own bound
        operation_class=form_operation(UploadForm, MULTIPART, files={"file": ", ".join(sorted(assets.IMAGE_TYPES))}),
        summary="Upload a picture",
        keyed=True,
        access="assets:write",
        limit="upload-url",
        status_code=200,
    )
    async def upload(self, request: Request[Any, Any, Any], services: Parts) -> Response[Uploaded]:
        size_bytes_max = services.settings.upload_size_bytes_max
        async with (
            services.uploads.taken(announced_bytes(request, size_bytes_max)),
            read_upload(request, "file", size_bytes_max=size_bytes_max) as upload,
        ):
            return await _register(request, services, upload)

    @post(
        "/",
        operation_class=form_operation(
            JobForm,
            MULTIPART,
            refined={
                "filename": {"minLength": 1},
                "mode": {"enum": list(KINDS)},
                "painterly_style": {"enum": STYLES["painterly"]},
            },
        ),
        summary="Create a job",
        keyed=True,
        refuses=(404,),
        access="jobs:write",
        limit="jobs",
    )
    async def create(self, request: Request[Any, Any, Any], services: Parts) -> Response[JobAnswer]:
        fields = await read_form(request)
        try:
            form = msgspec.convert(fields, JobForm, strict=False)
        except msgspec.ValidationError as error:
            raise FieldsRefused.of(str(error)) from error
        kind, params = _kind(form, services.settings)
        asset_id = await _asset_id(services, form.filename)
        settings = services.settings
        command = commands.SubmitJob(
            job_id=uuid7(),
            kind=kind,
            inputs=(asset_id,),
            params=params,
            timeout_s=settings.job_timeout_s,
            attempts_max=settings.job_attempts_max,
            pending_max=settings.facade_jobs_pending_max,
        )
        caller = caller_of(request, services, msgspec.json.encode(sorted(fields.items())))
        receipt = await services.commands.execute(commands.submit_job, command, caller)
        job = view_of_state(receipt.stream_id, receipt.state, receipt.version)
        return decided(receipt, answer_of(job, form.filename), status_code=201)

    @get("/", summary="Jobs, newest first")
    async def page(
        self,
        reads: Reads,
        owner: Owner,
        skip: Annotated[int, QueryParameter(ge=0, le=1_000_000)] = 0,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[JobsAnswer]:
        page = await projection.newest(reads, owner=owner, kinds=list(MODES), skip=skip, limit=limit)
        total = sum(count.jobs for count in await projection.counts(reads, owner=owner) if count.kind in MODES)
        return found(JobsAnswer(await _answers(reads, page.rows), total), page.position)

    @get("/style-presets", summary="Modes and their styles")
    async def style_presets(self) -> dict[str, list[str]]:
        return STYLES

    @get("/{job_id:str}", summary="One job")
    async def one(self, reads: Reads, job_id: FromPath[str]) -> Response[JobAnswer]:
        row, position = await _row(reads, job_id)
        return found((await _answers(reads, [row]))[0], position)

    @delete("/{job_id:str}", status_code=204, summary="Delete a job and its files", access="jobs:write")
    async def remove(self, services: Parts, reads: Reads, caller: Asks, job_id: FromPath[str]) -> Response[None]:
        row, _ = await _row(reads, job_id)
        return gone(await delete_job(services, row.job_id, caller))

    @get("/{job_id:str}/download/{filename:str}", summary="One file of a completed job", produces=FILES)
    async def download(self, services: Parts, reads: Reads, job_id: FromPath[str], filename: FromPath[str]) -> Stream:
        file = await _file(reads, job_id, filename)
        return await downloads.stream(services, file.object_key, filename=file.name, content_type=file.content_type)

    @head("/{job_id:str}/download/{filename:str}", summary="Whether there is such a file, and how large")
    async def look(
        self, services: Parts, reads: Reads, job_id: FromPath[str], filename: FromPath[str]
    ) -> Response[None]:
        file = await _file(reads, job_id, filename)
        return await downloads.describe(services, file.object_key, filename=file.name, content_type=file.content_type)


@get("/", tags=["layered images"], summary="API info", access=None)
async def info(request: Request[Any, Any, Any]) -> ApiInfo:
    config = request.app.openapi_config
    return ApiInfo("Sightline", config.version if config else "", "/docs", "/health")


@get("/health", tags=["layered images"], summary="Health, with the queue's length", access=None)
async def health(services: Parts) -> Health:
    counts = [count for count in await projection.counts(services.reads) if count.kind in MODES]
    by_status = {
        status: sum(one.jobs for one in counts if one.status == status) for status in ("pending", "processing")
    }
    return Health("healthy", Queue(**by_status, capacity=services.settings.facade_jobs_pending_max))


ROUTES = (info, health, LayeredImagesController)


def _kind(form: JobForm, settings: Settings) -> tuple[str, dict[str, Any]]:
    """The kind of job that the mode is, and its parameters."""
    kind = KINDS.get(form.mode)
    if kind is None:
        raise Invalid(f"mode {form.mode!r} is not one of {', '.join(KINDS)}")
    params: dict[str, Any] = {
        "num_layers": settings.default_num_layers if form.num_layers is None else form.num_layers,
        "max_size": form.max_size,
        "feather_radius": form.feather_radius,
        "export_layers": form.export_layers,
    }
    if form.mode != "painterly":
        return kind, params
    if form.painterly_style is not None:
        if form.painterly_style not in STYLES["painterly"]:
            raise Invalid(f"painterly_style {form.painterly_style!r} is not one of {', '.join(STYLES['painterly'])}")
        params["style"] = form.painterly_style
    strength, seed = form.painterly_strength, form.painterly_seed
    params["strength"] = settings.default_painterly_strength if strength is None else strength
    params["seed"] = settings.default_painterly_seed if seed is None else seed
    return kind, params


async def _asset_id(services: Services, filename: str) -> UUID:
    """The upload that `filename` names, exactly as its answer named it.

    Raises:
        NotFound: none does.
    """
    named = STORED_NAME.fullmatch(filename)
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
