"""Batches as readers see them: what each one's stream says, and its jobs counted.

Counts and the position that they hold at come from one statement, which sees one state of the database: they are exact
at that position, and not a moment older or newer.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import batches
from ..domain.batches import Counts
from .jobs import JobRow
from .projection import Page, ReadModel, ReadModels


class BatchRow(Struct, frozen=True):
    """Attributes:
    told_at: when its end was said.
    outcome: what it came to then, by the names of Counts.
    """

    batch_id: UUID
    owner: str
    kind: str
    total: int
    created_at: datetime
    cancelled_at: datetime | None
    cancelled_by: str | None
    told_at: datetime | None
    outcome: dict[str, int] | None
    version: int
    position: int


def apply(row: BatchRow | None, event: Any, at: Recorded) -> BatchRow:
    if isinstance(event, batches.BatchSubmitted):
        return BatchRow(
            batch_id=at.stream_id,
            owner=event.owner,
            kind=event.kind,
            total=event.total,
            created_at=event.at,
            cancelled_at=None,
            cancelled_by=None,
            told_at=None,
            outcome=None,
            version=at.originator_version,
            position=at.id,
        )
    assert row is not None, "a batch begins with BatchSubmitted"
    return replace(_moved(row, event), version=at.originator_version, position=at.id)


def _moved(row: BatchRow, event: batches.Event) -> BatchRow:
    match event:
        case batches.BatchCancelled(at=at, by=by):
            return replace(row, cancelled_at=at, cancelled_by=by)
        case batches.BatchCompleted(at=at):
            counts = msgspec.convert(event, Counts, from_attributes=True)
            return replace(row, told_at=at, outcome=msgspec.to_builtins(counts))
        case _:
            return row


BATCHES = ReadModel("batches", 1, frozenset({"batch"}), BatchRow, apply)


class Counted(Struct, frozen=True):
    """Attributes:
    last_finished_at: of its jobs, the last that ended so far.
    position: at which all of this is so.
    """

    batch: BatchRow
    counts: Counts
    last_finished_at: datetime | None
    position: int


class CancelledJob(Struct, frozen=True):
    """A job that a cancelled batch is yet to end."""

    job_id: UUID
    batch_id: UUID
    version: int
    position: int


_COUNTS = sql.SQL(
    "json_build_object("
    "'pending', count(*) FILTER (WHERE j.status = 'pending'),"
    "'processing', count(*) FILTER (WHERE j.status = 'processing'),"
    "'completed', count(*) FILTER (WHERE j.status = 'completed'),"
    "'failed', count(*) FILTER (WHERE j.status = 'failed'),"
    "'dead_letters', count(*) FILTER (WHERE j.status = 'failed' AND j.dead_letter),"
    "'cancelled', count(*) FILTER (WHERE j.status = 'cancelled'),"
    "'expired', count(*) FILTER (WHERE j.status = 'expired'),"
    "'deleted', count(*) FILTER (WHERE j.status = 'deleted'))"
)
_COUNTED = sql.SQL(
    "SELECT json_build_object('batch', to_json(b), 'counts', c.counts, 'last_finished_at', c.finished_at,"
    " 'position', (SELECT position FROM projection_checkpoints WHERE name = 'read_models')) "
)
_OF_JOBS = sql.SQL(
    "LATERAL (SELECT {counts} AS counts, max(j.finished_at) AS finished_at,"
    "  count(*) FILTER (WHERE j.status NOT IN ('pending', 'processing')) AS ended"
    "  FROM jobs AS j WHERE j.batch_id = b.batch_id) AS c"
).format(counts=_COUNTS)
_PARTS = {"counted": _COUNTED, "counts": _COUNTS, "of_jobs": _OF_JOBS}
ONE = sql.SQL("{counted} FROM batches AS b, {of_jobs} WHERE b.batch_id = %(batch_id)s").format(**_PARTS)
PAGE = sql.SQL(
    "{counted} FROM (SELECT * FROM batches WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)"
    " AND (%(after)s::uuid IS NULL OR batch_id > %(after)s) ORDER BY batch_id LIMIT %(limit)s) AS b, {of_jobs}"
    " ORDER BY b.batch_id"
).format(**_PARTS)
# Its jobs as they were at a position: of each the last row that its history has by then.
AT = sql.SQL(
    "{counted} FROM batches AS b, LATERAL (SELECT {counts} AS counts, max(j.finished_at) AS finished_at"
    '  FROM jobs AS k, LATERAL (SELECT "row" FROM jobs_history_v1 AS h WHERE h.job_id = k.job_id'
    "   AND h.position <= %(position)s ORDER BY h.position DESC LIMIT 1) AS h,"
    '  json_to_record(h."row") AS j (status text, dead_letter boolean, finished_at timestamptz)'
    "  WHERE k.batch_id = b.batch_id) AS c WHERE b.batch_id = %(batch_id)s"
).format(**_PARTS)
# The page first, and only its rows as JSON.
JOBS = sql.SQL(
    "SELECT to_json(j) FROM (SELECT * FROM jobs WHERE batch_id = %(batch_id)s AND status <> 'deleted'"
    " AND (%(status)s::text IS NULL OR status = %(status)s)"
    " AND (%(after)s::uuid IS NULL OR job_id > %(after)s) ORDER BY job_id LIMIT %(limit)s) AS j ORDER BY job_id"
)
# In the middle of an append the read models may know a batch and not yet all of its jobs: hence the sum.
OVER = sql.SQL(
    "{counted} FROM batches AS b, {of_jobs} WHERE b.told_at IS NULL AND NOT EXISTS ("
    "SELECT FROM jobs AS u WHERE u.batch_id = b.batch_id AND u.status IN ('pending', 'processing'))"
    " AND c.ended = b.total LIMIT %(limit)s"
).format(**_PARTS)
CANCELLED_JOBS = sql.SQL(
    "SELECT json_build_object('job_id', j.job_id, 'batch_id', j.batch_id, 'version', j.version, 'position', b.position)"
    " FROM batches AS b, LATERAL ("
    "  SELECT * FROM jobs WHERE batch_id = b.batch_id AND status = 'pending' UNION ALL"
    "  SELECT * FROM jobs WHERE batch_id = b.batch_id AND status = 'processing' AND NOT cancel_requested"
    ") AS j WHERE b.told_at IS NULL AND b.cancelled_at IS NOT NULL LIMIT %(limit)s"
)


async def one(reads: ReadModels, batch_id: UUID) -> Counted | None:
    """A batch, counted now."""
    rows = (await reads.fetch(Counted, ONE, {"batch_id": batch_id})).rows
    return rows[0] if rows else None


async def counts_at(reads: ReadModels, batch_id: UUID, position: int) -> Counted | None:
    """Its jobs counted as they were at `position`, which the read models must have reached; its row as it is now."""
    rows = (await reads.fetch(Counted, AT, {"batch_id": batch_id, "position": position})).rows
    return rows[0] if rows else None


async def page(reads: ReadModels, *, owner: str | None, after: UUID | None, limit: int) -> Page[Counted]:
    """Batches, oldest id first, past `after`, each counted; all at one position."""
    found = await reads.fetch(Counted, PAGE, {"owner": owner, "after": after, "limit": limit})
    return Page(found.rows, found.rows[0].position if found.rows else found.position)


async def jobs_page(
    reads: ReadModels, batch_id: UUID, *, status: str | None, after: UUID | None, limit: int
) -> Page[JobRow]:
    """Jobs of a batch that are not deleted, in the order in which they were given."""
    return await reads.fetch(JobRow, JOBS, {"batch_id": batch_id, "status": status, "after": after, "limit": limit})


async def over(reads: ReadModels, *, limit: int) -> list[Counted]:
    """Batches whose jobs have all ended and whose end nobody has said."""
    return (await reads.fetch(Counted, OVER, {"limit": limit})).rows


async def cancelled_jobs(reads: ReadModels, *, limit: int) -> list[CancelledJob]:
    """Jobs of batches that were cancelled: those that wait, and those that run and were not asked to stop."""
    return (await reads.fetch(CancelledJob, CANCELLED_JOBS, {"limit": limit})).rows
