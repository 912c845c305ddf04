"""Jobs at the door: submit, follow, fetch what came out."""

from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar
from uuid import UUID

from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Redirect
from msgspec import Meta, Struct, field

from ..adapters.egress_rules import Rules
from ..adapters.ids import uuid7
from ..commands import jobs as commands
from ..commands.transact import Receipt
from ..domain import jobs
from ..domain.jobs import Artifact, Job, Provenance
from ..domain.kernel import Aggregate, Caller, InvalidState, NotFound
from ..projections import jobs as projection
from . import downloads
from .auth import takes
from .manners import (
    PAGE_ROWS_DEFAULT,
    After,
    Asks,
    At,
    Limit,
    Listing,
    Owner,
    Parts,
    Reads,
    Versions,
    decided,
    found,
    gone,
    listed,
    shown,
)
from .nouns import NounController, as_of
from .problems import FieldError, FieldsRefused
from .services import Services


class JobAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One piece of computing.

    Attributes:
        kind: `layer-photo-realistic`, `layer-painterly`, `embed` or `inspect`; or `noop`, which does nothing.
        inputs: clean assets, as many as the kind takes.
        params: of the kind; what is missing gets the kind's default.
        session_id: a session that is active; if it expires before the job starts, the job expires too.
        model_version_id: another version than the active one of the kind's task.
        priority: 0 is the most urgent.
        not_before: its first attempt begins then or later.
        delay_s: the same, counted from now; one of the two.
        unique_key: while a job of yours of this kind under this key is not over, another is refused, and told which.
        callback_url: is told how the job ended, as a webhook is, signed with the service's own key.
    """

    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    inputs: Annotated[tuple[UUID, ...], Meta(max_length=jobs.INPUTS_MAX)] = ()
    params: dict[str, Any] = field(default_factory=dict)
    session_id: UUID | None = None
    model_version_id: UUID | None = None
    priority: Annotated[int, Meta(ge=0, le=jobs.PRIORITY_MAX)] = jobs.PRIORITY_DEFAULT
    timeout_s: Annotated[int, Meta(ge=1, le=jobs.TIMEOUT_S_MAX)] | None = None
    attempts_max: Annotated[int, Meta(ge=1, le=jobs.ATTEMPTS_MAX)] | None = None
    not_before: Annotated[datetime, Meta(tz=True)] | None = None
    delay_s: Annotated[float, Meta(ge=0, le=jobs.DELAY_MAX.total_seconds())] | None = None
    unique_key: Annotated[str, Meta(min_length=1, max_length=jobs.UNIQUE_KEY_CHARS_MAX)] | None = None
    callback_url: Annotated[str, Meta(min_length=8, max_length=jobs.URL_CHARS_MAX)] | None = None


class JobView(Struct, frozen=True, kw_only=True):
    """A job.

    Attributes:
        attempt: the number of the current attempt, or of the last one; 0 before the first.
        progress: of the current attempt, 0 to 100.
        not_before: when it may start, or its retry.
        unique_key: that it holds until it is over.
        dead_letter: its attempts are used up; it may be requeued.
        ref: what whoever submitted it calls it.
        manifest: what the kind says of its outputs.
        timings: seconds by step.
    """

    id: UUID
    kind: str
    owner: str
    status: jobs.Status
    progress: int
    message: str
    inputs: list[UUID]
    params: dict[str, Any]
    session_id: UUID | None
    model_version_id: UUID | None
    model_sha256: str | None
    priority: int
    timeout_s: int
    attempts_max: int
    attempt: int
    worker: str | None
    not_before: datetime | None
    cancel_requested: bool
    dead_letter: bool
    error_code: str | None
    error_message: str
    manifest: dict[str, Any]
    timings: dict[str, float]
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    unique_key: str | None
    ref: str | None
    version: int


class ArtifactView(Struct, frozen=True):
    """One file that a job wrote; `url` serves it for a while."""

    name: str
    sha256: str
    size_bytes: int
    content_type: str
    url: str


class OutputDigest(Struct, frozen=True):
    name: str
    sha256: str
    size_bytes: int


class JobReceipt(Struct, frozen=True, kw_only=True):
    """What made the outputs, so that a result can be explained, and made again and compared.

    Attributes:
        provider: the execution provider that really ran the model.
        timings: seconds by step.
    """

    job_id: UUID
    kind: str
    params: dict[str, Any]
    attempt: int
    worker: str | None
    completed_at: datetime | None
    input_sha256: tuple[str, ...]
    model_version_id: UUID | None
    model_sha256: str | None
    provider: str | None
    runtime: str | None
    batch_size: int
    timings: dict[str, float]
    outputs: list[OutputDigest]


def view_of_state(job_id: UUID, job: Job, version: int) -> JobView:
    """A job as its own events tell it."""
    assert job.submitted is not None
    return shown(
        JobView,
        job.submitted,
        job,
        id=job_id,
        version=version,
        created_at=job.submitted.at,
        progress=job.percent,
        cancel_requested=job.cancel_requested_by is not None,
        manifest=job.result.manifest if job.result else {},
        timings=job.result.timings if job.result else {},
    )


def view_of_row(row: projection.JobRow) -> JobView:
    return shown(JobView, row, id=row.job_id)


async def one_row(reads: Reads, job_id: UUID) -> tuple[projection.JobRow, int]:
    """A job that is there, and the position.

    Raises:
        NotFound: never submitted, or deleted.
    """
    row, position = await reads.get(projection.JOBS, job_id)
    if row is None or row.status == "deleted":
        raise NotFound("no such job")
    return row, position


async def completed_row(reads: Reads, job_id: UUID) -> tuple[projection.JobRow, int]:
    """The same, of a job that has its outputs.

    Raises:
        InvalidState: it has not.
    """
    row, position = await one_row(reads, job_id)
    if row.status != "completed":
        raise InvalidState(f"the job is {row.status}")
    return row, position


def artifact_of(row: projection.JobRow, name: str) -> Artifact:
    """Only names that the log knows are looked for: what else a path may say leads nowhere."""
    for artifact in row.outputs:
        if artifact.name == name:
            return artifact
    raise NotFound("the job has no such file")


async def delete_job(
    services: Services, job_id: UUID, caller: Caller, versions: frozenset[int] | None = None
) -> Receipt[Job]:
    """Delete a job, cancelling it first where it is not over, and remove its files."""
    command = commands.DeleteJob(job_id=job_id)
    receipt = await services.commands.execute(commands.delete_job, command, caller, versions=versions)
    if receipt.state.result is not None:
        await downloads.discard(services, [output.object_key for output in receipt.state.result.outputs])
    return receipt


def _not_before(data: JobAsked, now: datetime) -> datetime | None:
    if data.delay_s is None:
        return data.not_before
    if data.not_before is not None:
        raise FieldsRefused([FieldError("send not_before or delay_s, not both", pointer="/delay_s")])
    return now + timedelta(seconds=data.delay_s) if data.delay_s else None


def _answer(receipt: Receipt[Job], *, status_code: int = 200) -> Response[JobView]:
    body = view_of_state(receipt.stream_id, receipt.state, receipt.version)
    headers = {"Location": f"/v1/jobs/{receipt.stream_id}"} if status_code == 201 else None  # noqa: PLR2004  # Created
    return decided(receipt, body, status_code=status_code, headers=headers)


class JobController(NounController):
    path = "/v1/jobs"
    opt = takes("jobs:read", owned=jobs.AGGREGATE)
    tags = ("jobs",)
    aggregate: ClassVar[Aggregate[Any]] = jobs.AGGREGATE

    @post("/", summary="Submit a job", access="jobs:write", limit="jobs", refuses=(404, 410))
    async def submit(self, services: Parts, caller: Asks, data: JSONBody[JobAsked]) -> Response[JobView]:
        settings = services.settings
        command = commands.SubmitJob(
            job_id=uuid7(),
            kind=data.kind,
            inputs=data.inputs,
            params=data.params,
            session_id=data.session_id,
            model_version_id=data.model_version_id,
            callback_url=Rules.of(settings).target(data.callback_url).url if data.callback_url else None,
            priority=data.priority,
            timeout_s=settings.job_timeout_s if data.timeout_s is None else data.timeout_s,
            attempts_max=settings.job_attempts_max if data.attempts_max is None else data.attempts_max,
            not_before=_not_before(data, caller.now),
            unique_key=data.unique_key,
            pending_max=settings.jobs_pending_max,
        )
        receipt = await services.commands.execute(commands.submit_job, command, caller)
        return _answer(receipt, status_code=201)

    @get("/", summary="Jobs, oldest first")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        kind: Annotated[str | None, QueryParameter(max_length=64)] = None,
        status: FromQuery[jobs.Status | None] = None,
        session_id: FromQuery[UUID | None] = None,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[JobView]]:
        page = await projection.page(
            reads, owner=owner, kind=kind, status=status, session_id=session_id, after=after, limit=limit
        )
        items = [view_of_row(row) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{job_id:uuid}", summary="One job, now or then")
    async def one(self, services: Parts, reads: Reads, job_id: FromPath[UUID], at: At = None) -> Response[JobView]:
        if at is not None:
            then = await as_of(services, jobs.AGGREGATE, job_id, at)
            return found(view_of_state(job_id, then.state, then.version), then.position, version=then.version)
        row, position = await one_row(reads, job_id)
        return found(view_of_row(row), position, version=row.version)

    @post("/{job_id:uuid}/cancel", status_code=200, summary="Cancel a job", access="jobs:write")
    async def cancel(
        self, services: Parts, caller: Asks, versions: Versions, job_id: FromPath[UUID]
    ) -> Response[JobView]:
        """A waiting job ends at once; a running one when its worker confirms."""
        command = commands.CancelJob(job_id=job_id)
        return _answer(await services.commands.execute(commands.cancel_job, command, caller, versions=versions))

    @post("/{job_id:uuid}/requeue", status_code=200, summary="Give a dead letter new attempts", access="jobs:requeue")
    async def requeue(
        self, services: Parts, caller: Asks, versions: Versions, job_id: FromPath[UUID]
    ) -> Response[JobView]:
        command = commands.RequeueJob(job_id=job_id)
        return _answer(await services.commands.execute(commands.requeue_job, command, caller, versions=versions))

    @delete("/{job_id:uuid}", status_code=204, summary="Delete a job and its files", access="jobs:write")
    async def remove(self, services: Parts, caller: Asks, versions: Versions, job_id: FromPath[UUID]) -> Response[None]:
        return gone(await delete_job(services, job_id, caller, versions))

    @get("/{job_id:uuid}/artifacts", summary="The files of a completed job", refuses=(409,))
    async def artifacts(self, services: Parts, reads: Reads, job_id: FromPath[UUID]) -> Response[Listing[ArtifactView]]:
        row, position = await completed_row(reads, job_id)
        files = [await _artifact(services, output) for output in row.outputs]
        return found(Listing(files), position, version=row.version)

    @get("/{job_id:uuid}/artifacts/{name:str}", status_code=302, summary="One file, from a signed URL", refuses=(409,))
    async def artifact(self, services: Parts, reads: Reads, job_id: FromPath[UUID], name: FromPath[str]) -> Redirect:
        row, _ = await completed_row(reads, job_id)
        output = artifact_of(row, name)
        return await downloads.redirect(
            services, output.object_key, filename=output.name, content_type=output.content_type
        )

    @get("/{job_id:uuid}/receipt", summary="What made the outputs", refuses=(409,))
    async def receipt(self, reads: Reads, job_id: FromPath[UUID]) -> Response[JobReceipt]:
        row, position = await completed_row(reads, job_id)
        made = shown(JobReceipt, Provenance(), row, completed_at=row.finished_at, **row.receipt)
        return found(made, position, version=row.version)


async def _artifact(services: Services, output: Artifact) -> ArtifactView:
    url = await downloads.signed_url(
        services, output.object_key, filename=output.name, content_type=output.content_type
    )
    return shown(ArtifactView, output, url=url)
