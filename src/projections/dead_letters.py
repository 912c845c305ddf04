"""Dead letters as operators see them: jobs whose attempts are used up, by what went wrong."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict
from psycopg import sql

from .jobs import JobRow
from .projection import Page, ReadModels

CODES_MAX = 100  # that are counted one by one


class Wanted(Struct, frozen=True, kw_only=True):
    """Which dead letters; None: any.

    Attributes:
        since, until: when the last attempt ended: from then on, and before then.
    """

    owner: str | None = None
    kind: str | None = None
    code: str | None = None
    batch_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


class CodeCount(Struct, frozen=True):
    code: str
    jobs: int


class Letter(Struct, frozen=True):
    """Enough of a dead letter to requeue it."""

    job_id: UUID
    attempt: int


WANTED = sql.SQL(
    "dead_letter AND status = 'failed' AND (%(owner)s::text IS NULL OR owner = %(owner)s)"
    " AND (%(kind)s::text IS NULL OR kind = %(kind)s) AND (%(code)s::text IS NULL OR error_code = %(code)s)"
    " AND (%(batch_id)s::uuid IS NULL OR batch_id = %(batch_id)s)"
    " AND (%(since)s::timestamptz IS NULL OR finished_at >= %(since)s)"
    " AND (%(until)s::timestamptz IS NULL OR finished_at < %(until)s)"
)
PAGE = sql.SQL(
    "SELECT to_json(j) FROM jobs AS j WHERE {wanted} AND (%(after)s::uuid IS NULL OR job_id > %(after)s)"
    " ORDER BY job_id LIMIT %(limit)s"
).format(wanted=WANTED)
LETTERS = sql.SQL(
    "SELECT json_build_object('job_id', job_id, 'attempt', attempt) FROM jobs WHERE {wanted}"
    " ORDER BY job_id LIMIT %(limit)s"
).format(wanted=WANTED)
CODES = sql.SQL(
    "SELECT json_build_object('code', coalesce(error_code, ''), 'jobs', count(*)) FROM jobs WHERE {wanted}"
    " GROUP BY error_code ORDER BY count(*) DESC, error_code LIMIT %(limit)s"
).format(wanted=WANTED)


def _values(wanted: Wanted, **more: Any) -> dict[str, Any]:
    return asdict(wanted) | more


async def page(reads: ReadModels, wanted: Wanted, *, after: UUID | None, limit: int) -> Page[JobRow]:
    """Oldest id first, past `after`; at most `limit` rows."""
    return await reads.fetch(JobRow, PAGE, _values(wanted, after=after, limit=limit))


async def counts(reads: ReadModels, wanted: Wanted) -> list[CodeCount]:
    """How many there are by code, the most first; of at most CODES_MAX codes."""
    return (await reads.fetch(CodeCount, CODES, _values(wanted, limit=CODES_MAX))).rows


async def letters(reads: ReadModels, wanted: Wanted, *, limit: int) -> Page[Letter]:
    """Oldest id first; at most `limit`."""
    return await reads.fetch(Letter, LETTERS, _values(wanted, limit=limit))
