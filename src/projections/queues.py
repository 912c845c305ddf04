"""Queues as readers see them: what was said of a kind, and what its jobs say of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace
from psycopg import sql

from ..adapters.event_store.codec import Recorded
from ..domain import queues
from .jobs import TIMES
from .projection import Page, ReadModel, ReadModels

RECENT_JOBS = 500  # ended last, of which times are told


class QueueRow(Struct, frozen=True):
    """Attributes:
    paused_at: null where it is not paused.
    running_max, starts_per_minute_max: null: no limit.
    """

    queue_id: UUID
    kind: str
    paused: bool
    reason: str
    paused_at: datetime | None
    running_max: int | None
    starts_per_minute_max: int | None
    updated_at: datetime
    version: int
    position: int


def apply(row: QueueRow | None, event: Any, at: Recorded) -> QueueRow:
    before = row or QueueRow(at.stream_id, event.kind, False, "", None, None, None, event.at, 0, 0)  # noqa: FBT003  # a row
    now = replace(before, updated_at=event.at, version=at.originator_version, position=at.id)
    match event:
        case queues.QueuePaused(reason=reason, at=moment):
            return replace(now, paused=True, reason=reason, paused_at=moment)
        case queues.QueueResumed():
            return replace(now, paused=False, reason="", paused_at=None)
        case queues.QueueLimitsSet(running_max=running_max, starts_per_minute_max=starts_max):
            return replace(now, running_max=running_max, starts_per_minute_max=starts_max)
    return now


QUEUES = ReadModel("queues", 1, frozenset({"queue"}), QueueRow, apply)


class QueueFigures(Struct, frozen=True, kw_only=True):
    """A kind's queue and its jobs as they are now.

    Attributes:
        pending: jobs that could start; `scheduled`: those that wait for their time, a retry's too.
        oldest_s: for how long the one that has waited longest could have started.
        starts_last_minute: attempts that began within the last 60 s and are the last ones of their jobs; of those that
            ended, ENDED_MAX are looked at.
        wait_p50_s, wait_p95_s, run_p50_s, run_p95_s: of the last RECENT_JOBS that completed or failed.
        version: of the queue's stream; 0 where nothing was ever said.
    """

    kind: str
    paused: bool
    reason: str
    paused_at: datetime | None
    running_max: int | None
    starts_per_minute_max: int | None
    version: int
    pending: int
    scheduled: int
    running: int
    oldest_s: float | None
    starts_last_minute: int
    wait_p50_s: float | None
    wait_p95_s: float | None
    run_p50_s: float | None
    run_p95_s: float | None


FIGURES = sql.SQL(
    "SELECT to_json(f) FROM (SELECT k.kind, coalesce(q.paused, false) AS paused, coalesce(q.reason, '') AS reason,"
    " q.paused_at, q.running_max, q.starts_per_minute_max, coalesce(q.version, 0) AS version,"
    " waiting.pending, waiting.scheduled, waiting.oldest_s, active.running, active.begun + ended.begun AS"
    " starts_last_minute, ended.wait_s[1] AS wait_p50_s, ended.wait_s[2] AS wait_p95_s,"
    " ended.run_s[1] AS run_p50_s, ended.run_s[2] AS run_p95_s"
    " FROM unnest(%(kinds)s::text[]) AS k (kind) LEFT JOIN queues AS q USING (kind), LATERAL ("
    "  SELECT count(*) FILTER (WHERE due) AS pending, count(*) FILTER (WHERE NOT due) AS scheduled,"
    "   extract(epoch FROM %(now)s - min(least(since, %(now)s)) FILTER (WHERE due))::float8 AS oldest_s"
    "  FROM (SELECT {since} AS since, {due} AS due"
    "   FROM jobs WHERE kind = k.kind AND status = 'pending') AS w"
    " ) AS waiting, LATERAL ("
    "  SELECT count(*) AS running, count(*) FILTER (WHERE started_at > %(now)s - interval '1 minute') AS begun"
    "  FROM jobs WHERE status = 'processing' AND kind = k.kind"
    " ) AS active, LATERAL ("
    "  SELECT count(*) FILTER (WHERE started_at > %(now)s - interval '1 minute') AS begun,"
    "   percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY wait_s) FILTER (WHERE recent) AS wait_s,"
    "   percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY run_s) FILTER (WHERE recent) AS run_s"
    "  FROM (SELECT started_at, row_number() OVER (ORDER BY finished_at DESC) <= %(recent)s AS recent,"
    "    greatest(extract(epoch FROM started_at - {since}), 0)::float8 AS wait_s,"
    "    extract(epoch FROM finished_at - started_at)::float8 AS run_s"
    "   FROM jobs WHERE kind = k.kind AND status IN ('completed', 'failed') AND started_at IS NOT NULL"
    "   ORDER BY finished_at DESC LIMIT %(ended)s) AS e"
    " ) AS ended ORDER BY k.kind) AS f"
).format(**TIMES)
ENDED_MAX = 20_000  # of the last minute, that are looked at

PAUSED = sql.SQL("SELECT to_json(q) FROM queues AS q WHERE paused")


async def figures(reads: ReadModels, *, kinds: Sequence[str], now: datetime) -> Page[QueueFigures]:
    """One row for each of these kinds, by name."""
    values = {"kinds": list(kinds), "now": now, "recent": RECENT_JOBS, "ended": ENDED_MAX}
    return await reads.fetch(QueueFigures, FIGURES, values)


async def paused_kinds(reads: ReadModels) -> set[str]:
    """Kinds of which no job may start, as far as the read models know."""
    return {row.kind for row in (await reads.fetch(QueueRow, PAUSED, {})).rows}
