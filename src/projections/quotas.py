"""Quotas as readers see them: limits, and what a day has come to, summed from its reservations."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import quotas
from .projection import Page, ReadModel, ReadModels


class QuotaRow(Struct, frozen=True):
    """Limits of a principal, where `day` is None; else one reservation, for that day (`2026-03-01`)."""

    quota_id: UUID
    principal: str
    day: str | None
    reserved_for: UUID | None
    jobs: int
    size_bytes: int
    compute_ms: int
    held: bool
    jobs_per_day: int | None
    bytes_per_day: int | None
    compute_s_per_day: int | None
    updated_at: datetime
    version: int
    position: int


class UsageRow(Struct, frozen=True):
    """A principal's limits, and what it has used of one day."""

    principal: str
    jobs_per_day: int | None
    bytes_per_day: int | None
    compute_s_per_day: int | None
    version: int
    jobs: int
    size_bytes: int
    compute_ms: int


def apply(row: QuotaRow | None, event: Any, at: Recorded) -> QuotaRow:
    if isinstance(event, quotas.QuotaReleased):
        assert row is not None, "a release is of what was reserved"
        return replace(row, held=False, updated_at=event.at, version=at.originator_version, position=at.id)
    reserved = event if isinstance(event, quotas.QuotaReserved) else None
    limits = event if isinstance(event, quotas.QuotaLimitSet) else None
    return QuotaRow(
        quota_id=at.stream_id,
        principal=event.principal,
        day=str(reserved.day) if reserved else None,
        reserved_for=reserved.reserved_for if reserved else None,
        jobs=reserved.jobs if reserved else 0,
        size_bytes=reserved.size_bytes if reserved else 0,
        compute_ms=reserved.compute_ms if reserved else 0,
        held=reserved is not None,
        jobs_per_day=limits.jobs_per_day if limits else None,
        bytes_per_day=limits.bytes_per_day if limits else None,
        compute_s_per_day=limits.compute_s_per_day if limits else None,
        updated_at=event.at,
        version=at.originator_version,
        position=at.id,
    )


QUOTAS = ReadModel("quotas", 1, frozenset({"quota"}), QuotaRow, apply)

# Every principal that ever had limits; `principal` alone may be asked for as well.
USAGE = sql.SQL(
    "SELECT to_json(u) FROM (SELECT l.principal, l.jobs_per_day, l.bytes_per_day, l.compute_s_per_day, l.version,"
    " used.jobs, used.size_bytes, used.compute_ms FROM quotas AS l, LATERAL ("
    "SELECT coalesce(sum(r.jobs), 0)::bigint AS jobs, coalesce(sum(r.size_bytes), 0)::bigint AS size_bytes,"
    " coalesce(sum(r.compute_ms), 0)::bigint AS compute_ms FROM quotas AS r"
    " WHERE r.principal = l.principal AND r.day = %(day)s AND r.held) AS used"
    " WHERE l.day IS NULL AND (%(principal)s::text IS NULL OR l.principal = %(principal)s)"
    " AND (%(after)s::text IS NULL OR l.principal > %(after)s) ORDER BY l.principal LIMIT %(limit)s) AS u"
)


async def usage(
    reads: ReadModels, *, day: date, principal: str | None = None, after: str | None = None, limit: int = 1
) -> Page[UsageRow]:
    """What principals have used of `day`, in the order of their names, past `after`; at most `limit`."""
    values = {"day": day, "principal": principal, "after": after, "limit": limit}
    return await reads.fetch(UsageRow, USAGE, values)
