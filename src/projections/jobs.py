"""Jobs as readers see them, and what the clock worker asks of them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import jobs
from ..domain.jobs import Artifact
from .projection import Page, ReadModel, ReadModels


class JobRow(Struct, frozen=True):
    """Attributes:
    attempt: the number of the current attempt, or of the last one; 0 before the first.
    progress: of the current attempt, 0–100.
    not_before: of a retry that waits, or of a job for later.
    """

    job_id: UUID
    kind: str
    owner: str
    status: str
    priority: int
    inputs: list[UUID]
    params: dict[str, Any]
    timeout_s: int
    attempts_max: int
    created_at: datetime
    updated_at: datetime
    version: int
    position: int
    session_id: UUID | None = None
    project_id: UUID | None = None
    batch_id: UUID | None = None
    model_version_id: UUID | None = None
    model_sha256: str | None = None
    callback_url: str | None = None
    attempt: int = 0
    worker: str | None = None
    progress: int = 0
    message: str = ""
    not_before: datetime | None = None
    cancel_requested: bool = False
    outputs: list[Artifact] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    receipt: dict[str, Any] = field(default_factory=dict)
    error_code: str | None = None
    error_message: str = ""
    dead_letter: bool = False
    late_results: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    unique_key: str | None = None
    ref: str | None = None


def apply(row: JobRow | None, event: Any, at: Recorded) -> JobRow:
    if isinstance(event, jobs.JobSubmitted):
        return _submitted(event, at)
    assert row is not None, "a job begins with JobSubmitted"
    if isinstance(event, jobs.LateResultRejected):
        return replace(row, late_results=row.late_results + 1, version=at.originator_version, position=at.id)
    return replace(_moved(row, event), updated_at=event.at, version=at.originator_version, position=at.id)


def _submitted(event: jobs.JobSubmitted, at: Recorded) -> JobRow:
    return JobRow(
        job_id=at.stream_id,
        kind=event.kind,
        owner=event.owner,
        status="pending",
        priority=event.priority,
        inputs=list(event.inputs),
        params=event.params,
        timeout_s=event.timeout_s,
        attempts_max=event.attempts_max,
        created_at=event.at,
        updated_at=event.at,
        version=at.originator_version,
        position=at.id,
        session_id=event.session_id,
        project_id=event.project_id,
        batch_id=event.batch_id,
        model_version_id=event.model_version_id,
        model_sha256=event.model_sha256,
        callback_url=event.callback_url,
        not_before=event.not_before,
        unique_key=event.unique_key,
        ref=event.ref,
    )


def _moved(row: JobRow, event: jobs.Event) -> JobRow:
    match event:
        case jobs.JobStarted(at=at, attempt=attempt, worker=worker):
            return replace(
                row, status="processing", attempt=attempt, worker=worker, started_at=at, progress=0, message=""
            )
        case jobs.JobProgressed(percent=percent, message=message):
            return replace(row, progress=percent, message=message)
        case jobs.JobRetryScheduled(not_before=not_before, code=code, message=message):
            return replace(row, status="pending", not_before=not_before, error_code=code, error_message=message)
        case jobs.JobCompleted(at=at):
            return replace(
                row,
                status="completed",
                progress=100,
                outputs=list(event.outputs),
                manifest=event.manifest,
                timings=event.timings,
                receipt=msgspec.to_builtins(event.receipt),
                error_code=None,
                error_message="",
                finished_at=at,
            )
        case jobs.JobFailed(at=at, code=code, message=message):
            return replace(row, status="failed", error_code=code, error_message=message, finished_at=at)
        case jobs.JobDeadLettered(at=at, code=code, message=message):
            return replace(
                row, status="failed", dead_letter=True, error_code=code, error_message=message, finished_at=at
            )
        case jobs.JobCancelRequested():
            return replace(row, cancel_requested=True)
        case jobs.JobCancelled(at=at):
            return replace(row, status="cancelled", finished_at=at)
        case jobs.JobExpired(at=at):
            return replace(row, status="expired", finished_at=at)
        case jobs.JobRequeued(attempts_max=attempts_max):
            return replace(
                row, status="pending", dead_letter=False, attempts_max=attempts_max, not_before=None, finished_at=None
            )
        case jobs.JobDeleted():
            return replace(row, status="deleted")
        case _:
            return row


JOBS = ReadModel("jobs", 1, frozenset({"job"}), JobRow, apply, history=True)


class Waiting(Struct, frozen=True):
    """A job that could start, and since when."""

    job_id: UUID
    kind: str
    owner: str
    priority: int
    since: datetime


class Running(Struct, frozen=True):
    """A job that somebody holds."""

    job_id: UUID
    attempt: int
    worker: str
    position: int
    started_at: datetime
    timeout_s: int


class Count(Struct, frozen=True):
    """How many jobs of a kind are in a state."""

    kind: str
    status: str
    jobs: int


class Depth(Struct, frozen=True):
    """How much there is to do of a kind.

    Attributes:
        waiting: jobs that could start now; `oldest_s`: for how long the eldest of them could have.
    """

    kind: str
    waiting: int
    running: int
    oldest_s: float


PAGE = sql.SQL(
    "SELECT to_json(j) FROM jobs AS j WHERE status <> 'deleted'"
    " AND (%(owner)s::text IS NULL OR owner = %(owner)s) AND (%(kind)s::text IS NULL OR kind = %(kind)s)"
    " AND (%(status)s::text IS NULL OR status = %(status)s)"
    " AND (%(session_id)s::uuid IS NULL OR session_id = %(session_id)s)"
    " AND (%(after)s::uuid IS NULL OR job_id > %(after)s) ORDER BY job_id LIMIT %(limit)s"
)
NEWEST = sql.SQL(
    "SELECT to_json(j) FROM jobs AS j WHERE status <> 'deleted' AND kind = ANY (%(kinds)s)"
    " AND (%(owner)s::text IS NULL OR owner = %(owner)s)"
    " ORDER BY created_at DESC, job_id DESC OFFSET %(skip)s LIMIT %(limit)s"
)
COUNT = sql.SQL(
    "SELECT json_build_object('kind', kind, 'status', status, 'jobs', count(*)) FROM jobs"
    " WHERE status <> 'deleted' AND (%(owner)s::text IS NULL OR owner = %(owner)s) GROUP BY kind, status"
)
# When a job that waits may start, and whether it may now. What has no `not_before` is due whenever it was made: the
# clock may have been set back since. Wherever what waits is counted or offered, it is by these.
TIMES = {
    "since": sql.SQL("coalesce(not_before, created_at)"),
    "due": sql.SQL("(not_before IS NULL OR not_before <= %(now)s)"),
}
LINES_MAX = 1_000  # of a kind that are looked at: what one principal has waiting of one priority is a line
# Each kind by itself and each line by itself, so that a long one hides no other. Lines are found by leaps over the
# index jobs_v1_lines, not by reading all that waits; they share the limit.
WAITING = sql.SQL(
    "WITH RECURSIVE lines AS ("
    "  SELECT k.kind, first.owner, first.priority, 1 AS number FROM unnest(%(kinds)s::text[]) AS k (kind), LATERAL ("
    "    SELECT owner, priority FROM jobs WHERE kind = k.kind AND status = 'pending'"
    "    ORDER BY owner, priority LIMIT 1) AS first"
    "  UNION ALL"
    "  SELECT l.kind, following.owner, following.priority, l.number + 1 FROM lines AS l, LATERAL ("
    "    SELECT owner, priority FROM jobs WHERE kind = l.kind AND status = 'pending'"
    "    AND (owner, priority) > (l.owner, l.priority) ORDER BY owner, priority LIMIT 1) AS following"
    "  WHERE l.number < %(lines)s"
    "), shares AS ("
    "  SELECT kind, owner, priority, greatest(%(limit)s / count(*) OVER (PARTITION BY kind), 1) AS share FROM lines"
    ") SELECT to_json(j) FROM shares AS s, LATERAL ("
    "  SELECT job_id, kind, owner, priority, {since} AS since FROM jobs"
    "  WHERE kind = s.kind AND owner = s.owner AND priority = s.priority AND status = 'pending'"
    "  AND {due} ORDER BY {since} LIMIT s.share"
    ") AS j"
).format(**TIMES)
# Who holds a lease now, by the database's clock. A lease that ends later than any can was taken before that clock was
# set back: its worker, if it lives, is about to renew it.
LIVE_WORKERS = sql.SQL(
    "SELECT worker FROM worker_leases WHERE expires_at > clock_timestamp()"
    " AND expires_at < clock_timestamp() + interval '10 minutes'"
)
_RUNNING = sql.SQL(
    "SELECT to_json(r) FROM (SELECT job_id, attempt, worker, position, started_at, timeout_s FROM jobs"
    " WHERE status = 'processing' AND worker IS NOT NULL AND started_at IS NOT NULL"
)
RUNNING = _RUNNING + sql.SQL(" ORDER BY started_at + make_interval(secs => timeout_s) LIMIT %(limit)s) AS r")
# Of one snapshot: a lease is taken before the first job that is held under it.
LOST = (
    _RUNNING + sql.SQL(" AND worker NOT IN (") + LIVE_WORKERS + sql.SQL(") ORDER BY started_at LIMIT %(limit)s) AS r")
)
DEPTHS = sql.SQL(
    "SELECT json_build_object('kind', kind, 'running', count(*) FILTER (WHERE status = 'processing'),"
    " 'waiting', count(*) FILTER (WHERE status = 'pending' AND {due}), 'oldest_s', coalesce(extract(epoch FROM"
    " %(now)s - min(least({since}, %(now)s)) FILTER (WHERE status = 'pending' AND {due})), 0))"
    " FROM jobs WHERE status IN ('pending', 'processing') GROUP BY kind"
).format(**TIMES)
PENDING_OF_SESSIONS = sql.SQL(
    "SELECT to_json(j) FROM jobs AS j JOIN sessions AS s USING (session_id)"
    " WHERE j.status = 'pending' AND s.status = 'expired' LIMIT %(limit)s"
)


async def page(
    reads: ReadModels,
    *,
    owner: str | None = None,
    kind: str | None = None,
    status: str | None = None,
    session_id: UUID | None = None,
    after: UUID | None,
    limit: int,
) -> Page[JobRow]:
    """Jobs that are not deleted and fit the filters, oldest id first, past `after`; at most `limit` rows."""
    values = {"owner": owner, "kind": kind, "status": status, "session_id": session_id}
    return await reads.fetch(JobRow, PAGE, values | {"after": after, "limit": limit})


async def newest(
    reads: ReadModels, *, owner: str | None = None, kinds: list[str], skip: int, limit: int
) -> Page[JobRow]:
    """Jobs of these kinds that are not deleted, newest first."""
    return await reads.fetch(JobRow, NEWEST, {"owner": owner, "kinds": kinds, "skip": skip, "limit": limit})


async def counts(reads: ReadModels, *, owner: str | None = None) -> list[Count]:
    """How many jobs there are by kind and status, deleted ones aside."""
    return (await reads.fetch(Count, COUNT, {"owner": owner})).rows


async def waiting(reads: ReadModels, *, kinds: Sequence[str], now: datetime, limit: int) -> list[Waiting]:
    """Jobs that are due, of each line the eldest, some `limit` of each kind; for the hints to be filled again."""
    values = {"kinds": list(kinds), "now": now, "limit": limit, "lines": LINES_MAX}
    return (await reads.fetch(Waiting, WAITING, values)).rows


async def running(reads: ReadModels, *, limit: int) -> list[Running]:
    """Jobs that somebody holds, those first whose time is over first."""
    return (await reads.fetch(Running, RUNNING, {"limit": limit})).rows


async def lost(reads: ReadModels, *, limit: int) -> list[Running]:
    """Jobs whose worker has no lease any more, longest first."""
    return (await reads.fetch(Running, LOST, {"limit": limit})).rows


async def depths(reads: ReadModels, *, now: datetime) -> list[Depth]:
    """Of each kind that has jobs which are not over."""
    return (await reads.fetch(Depth, DEPTHS, {"now": now})).rows


async def pending_of_expired_sessions(reads: ReadModels, *, limit: int) -> list[JobRow]:
    """Jobs that wait in a session which is over."""
    return (await reads.fetch(JobRow, PENDING_OF_SESSIONS, {"limit": limit})).rows
