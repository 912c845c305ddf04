"""Batches at the door: many jobs in one request, followed as one thing."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, TypeVar
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Meta, Struct, field

from ..adapters.ids import uuid7
from ..commands import batches as commands
from ..commands.batches import JobOfBatch
from ..commands.transact import Receipt
from ..domain import batches, jobs
from ..domain.batches import Batch, Counts
from ..domain.kernel import Aggregate, NotFound
from ..projections import batches as projection
from ..projections.batches import Counted
from .auth import takes
from .jobs import JobView
from .manners import (
    FRESH_WAIT_S,
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
    listed,
    shown,
)
from .nouns import NounController, as_of

T = TypeVar("T")

BODY_BYTES_MAX = 8 * 1024 * 1024  # 10,000 jobs of some 800 bytes each


class JobInBatch(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is the job's own.

    Attributes:
        params: over the defaults of the batch, field by field.
        inputs: clean assets, as many as the kind takes.
        ref: what you call it; told back with the job.
    """

    params: dict[str, Any] = field(default_factory=dict)
    inputs: Annotated[tuple[UUID, ...], Meta(max_length=jobs.INPUTS_MAX)] = ()
    ref: Annotated[str, Meta(max_length=jobs.REF_CHARS_MAX)] | None = None


class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What holds for every job of the batch.

    Attributes:
        session_id: a session that is active; jobs that have not started when it expires expire too.
        model_version_id: another version than the active one of the kind's task.
        not_before: when the first attempts may begin.
    """

    params: dict[str, Any] = field(default_factory=dict)
    session_id: UUID | None = None
    model_version_id: UUID | None = None
    priority: Annotated[int, Meta(ge=0, le=jobs.PRIORITY_MAX)] = jobs.PRIORITY_DEFAULT
    timeout_s: Annotated[int, Meta(ge=1, le=jobs.TIMEOUT_S_MAX)] | None = None
    attempts_max: Annotated[int, Meta(ge=1, le=jobs.ATTEMPTS_MAX)] | None = None
    not_before: Annotated[datetime, Meta(tz=True)] | None = None


class BatchAsked(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Many jobs of one kind, admitted whole or not at all; a model version is pinned once for all of them."""

    kind: Annotated[str, Meta(min_length=1, max_length=64)]
    jobs: Annotated[tuple[JobInBatch, ...], Meta(min_length=1, max_length=batches.JOBS_MAX)]
    defaults: Defaults | None = None


class BatchSaid(Struct, frozen=True, kw_only=True):
    """A batch as its own events tell it. Commands answer with this; how many of its jobs are where, a GET tells.

    Attributes:
        cancelled_at: when somebody asked to cancel it; its jobs end soon after.
        outcome: what it came to when the last of its jobs had ended, once that was said.
    """

    id: UUID
    kind: str
    owner: str
    total: int
    created_at: datetime
    cancelled_at: datetime | None
    cancelled_by: str | None
    outcome: Counts | None
    version: int


class BatchView(BatchSaid, frozen=True, kw_only=True):
    """A batch and its jobs counted, exactly as they were at the Event-Position of the answer.

    Attributes:
        pending, processing, completed, failed, cancelled, expired, deleted: jobs by status; they sum up to `total`.
        dead_letters: of the failed ones, those whose attempts are used up; they may be requeued.
        progress: percent of the jobs that have ended, 100 only when all have.
        finished_at: when the last one ended; null while any has not, as after a requeue.
    """

    status: batches.Status
    pending: int
    processing: int
    completed: int
    failed: int
    dead_letters: int
    cancelled: int
    expired: int
    deleted: int
    progress: int
    finished_at: datetime | None


class JobOfBatchView(JobView, frozen=True, kw_only=True):
    """A job, and which of its batch it is.

    Attributes:
        number: from 1, in the order in which they were given.
    """

    number: int


def _said(batch_id: UUID, batch: Batch, version: int) -> BatchSaid:
    submitted = batches.require_present(batch)
    cancelled = batch.cancelled
    return BatchSaid(
        id=batch_id,
        kind=submitted.kind,
        owner=submitted.owner,
        total=submitted.total,
        created_at=submitted.at,
        cancelled_at=cancelled.at if cancelled else None,
        cancelled_by=cancelled.by if cancelled else None,
        outcome=shown(Counts, batch.outcome) if batch.outcome else None,
        version=version,
    )


def _view(said: BatchSaid, counted: Counted) -> BatchView:
    counts, total = counted.counts, said.total
    status = batches.status_of(
        counts, total=total, cancelled=said.cancelled_at is not None, over=said.outcome is not None
    )
    return shown(
        BatchView,
        said,
        counts,
        status=status,
        progress=counts.ended * 100 // total,
        finished_at=counted.last_finished_at if counts.ended == total else None,
    )


def _view_of_row(counted: Counted) -> BatchView:
    return _view(shown(BatchSaid, counted.batch, id=counted.batch.batch_id), counted)


def _present(one: T | None) -> T:
    if one is None:
        raise NotFound("no such batch")
    return one


def _answer(receipt: Receipt[Batch], *, status_code: int = 200) -> Response[BatchSaid]:
    headers = {"Location": f"/v1/batches/{receipt.stream_id}"} if status_code == 201 else None  # noqa: PLR2004  # Created
    body = _said(receipt.stream_id, receipt.state, receipt.version)
    return decided(receipt, body, status_code=status_code, headers=headers)


class BatchController(NounController):
    path = "/v1/batches"
    opt = takes("jobs:read", owned=batches.AGGREGATE)
    tags = ("batches",)
    aggregate: ClassVar[Aggregate[Any]] = batches.AGGREGATE

    @post(
        "/",
        summary="Submit up to 10,000 jobs at once",
        access="jobs:write",
        limit="jobs",
        refuses=(404, 410),
        request_max_body_size=BODY_BYTES_MAX,
    )
    async def submit(self, services: Parts, caller: Asks, data: JSONBody[BatchAsked]) -> Response[BatchSaid]:
        """All of them are admitted in one append, or none is: 503 where so many more would be beyond the queue's
        capacity, 429 where they would be beyond the caller's quota. The body has at most 8 MiB.
        """
        settings, defaults = services.settings, data.defaults or Defaults()
        command = commands.SubmitBatch(
            batch_id=uuid7(),
            kind=data.kind,
            members=[JobOfBatch(params=one.params, inputs=one.inputs, ref=one.ref) for one in data.jobs],
            params=defaults.params,
            session_id=defaults.session_id,
            model_version_id=defaults.model_version_id,
            priority=defaults.priority,
            timeout_s=settings.job_timeout_s if defaults.timeout_s is None else defaults.timeout_s,
            attempts_max=settings.job_attempts_max if defaults.attempts_max is None else defaults.attempts_max,
            not_before=defaults.not_before,
            pending_max=settings.jobs_pending_max,
        )
        return _answer(await services.commands.execute(commands.submit_batch, command, caller), status_code=201)

    @get("/", summary="Batches, oldest first, each counted")
    async def page(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        owner: Owner,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[BatchView]]:
        page = await projection.page(reads, owner=owner, after=after, limit=limit)
        items = [_view_of_row(one) for one in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @get("/{batch_id:uuid}", summary="One batch, its jobs counted, now or then")
    async def one(self, services: Parts, reads: Reads, batch_id: FromPath[UUID], at: At = None) -> Response[BatchView]:
        """`at` counts the jobs as they were then, from their histories."""
        if at is None:
            counted = _present(await projection.one(reads, batch_id))
            return found(_view_of_row(counted), counted.position, version=counted.batch.version)
        then = await as_of(services, batches.AGGREGATE, batch_id, at)
        await reads.wait_for(then.position, timeout_s=FRESH_WAIT_S)
        counted = _present(await projection.counts_at(reads, batch_id, then.position))
        said = _said(batch_id, then.state, then.version)
        return found(_view(said, counted), then.position, version=then.version)

    @get("/{batch_id:uuid}/jobs", summary="Jobs of a batch, in the order in which they were given")
    async def jobs_of(
        self,
        request: Request[Any, Any, Any],
        reads: Reads,
        batch_id: FromPath[UUID],
        status: FromQuery[jobs.Status | None] = None,
        after: After = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
    ) -> Response[Listing[JobOfBatchView]]:
        row, _ = await reads.get(projection.BATCHES, batch_id)
        _present(row)
        page = await projection.jobs_page(reads, batch_id, status=status, after=after, limit=limit)
        items = [shown(JobOfBatchView, row, id=row.job_id, number=batches.number_of(row.job_id)) for row in page.rows]
        return listed(request, items, page.position, limit=limit, cursor=items[-1].id if items else None)

    @post("/{batch_id:uuid}/cancel", status_code=200, summary="Cancel a batch", access="jobs:write")
    async def cancel(
        self, services: Parts, caller: Asks, versions: Versions, batch_id: FromPath[UUID]
    ) -> Response[BatchSaid]:
        """Its jobs that wait end within seconds, thousands at a time; those that run when their workers confirm."""
        command = commands.CancelBatch(batch_id=batch_id)
        return _answer(await services.commands.execute(commands.cancel_batch, command, caller, versions=versions))
