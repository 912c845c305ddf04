"""Why a job waits, and for how long about: its place among those that wait, and the pace of those that went before.

An estimate, of what the read models know: which candidate is taken next is Valkey's to say, and whether it may start is
the log's.
"""

from collections.abc import Sequence
from datetime import datetime
from math import sqrt

from msgspec import Struct
from psycopg import sql

from ..adapters.hints import PRIORITY_STEP
from .jobs import LIVE_WORKERS, TIMES, JobRow
from .projection import ReadModels

PACE_MINUTES = 10
PACE_JOBS_MAX = 1_000
GAPS_MIN = 5  # below it chance says more than the pace
SIGMAS_OF_P90 = 1.2816  # of a normal distribution


class Line(Struct, frozen=True):
    """What one principal has waiting of one priority.

    Attributes:
        jobs: that could start; `before`: of these, in the line that was asked about, those in front of the job.
    """

    priority: int
    own: bool
    jobs: int
    before: int


class Pace(Struct, frozen=True):
    """How a kind's jobs were started within the last PACE_MINUTES.

    Attributes:
        gaps: starts whose job was waiting already when the one before started.
        gap_s, gap_sd_s: their mean distance, and its deviation.
        wait_p50_s, wait_p90_s: of all starts, how long their jobs could have started before.
    """

    gaps: int
    gap_s: float | None
    gap_sd_s: float | None
    wait_p50_s: float | None
    wait_p90_s: float | None


class Estimate(Struct, frozen=True):
    """Seconds until the start: in one case of two, and in nine of ten, it is no longer."""

    p50: float
    p90: float


class _Number(Struct, frozen=True):
    number: int


class _Counter(Struct, frozen=True):
    key: str
    value: int


LINES = sql.SQL(
    "SELECT to_json(l) FROM (SELECT priority, owner = %(owner)s AND priority = %(priority)s AS own, count(*) AS jobs,"
    " count(*) FILTER (WHERE ({since}, job_id) < (%(since)s, %(job_id)s::uuid)) AS before"
    " FROM jobs WHERE kind = %(kind)s AND status = 'pending' AND {due}"
    " GROUP BY owner, priority) AS l"
).format(**TIMES)
PACE = sql.SQL(
    "SELECT to_json(p) FROM (SELECT count(*) FILTER (WHERE waited) AS gaps,"
    " avg(gap_s) FILTER (WHERE waited) AS gap_s, stddev_samp(gap_s) FILTER (WHERE waited) AS gap_sd_s,"
    " percentile_cont(0.5) WITHIN GROUP (ORDER BY wait_s) AS wait_p50_s,"
    " percentile_cont(0.9) WITHIN GROUP (ORDER BY wait_s) AS wait_p90_s"
    " FROM (SELECT extract(epoch FROM started_at - lag(started_at) OVER starts)::float8 AS gap_s,"
    "  due <= lag(started_at) OVER starts AS waited,"
    "  greatest(extract(epoch FROM started_at - due), 0)::float8 AS wait_s"
    "  FROM (SELECT started_at, {since} AS due FROM jobs WHERE kind = %(kind)s"
    "   AND status IN ('completed', 'failed') AND started_at IS NOT NULL"
    "   AND finished_at > %(now)s - make_interval(mins => %(minutes)s)"
    "   ORDER BY finished_at DESC LIMIT %(jobs)s) AS ended WINDOW starts AS (ORDER BY started_at)) AS s) AS p"
).format(**TIMES)
WORKERS = sql.SQL("SELECT json_build_object('number', count(*)) FROM (") + LIVE_WORKERS + sql.SQL(") AS w")
COUNTERS = sql.SQL(
    "SELECT json_build_object('key', k.key, 'value', last.value) FROM unnest(%(keys)s::text[]) AS k (key), LATERAL ("
    "SELECT value FROM guards WHERE key = k.key ORDER BY move DESC LIMIT 1) AS last"
)


async def workers_live(reads: ReadModels) -> int:
    """How many workers hold a lease now."""
    return (await reads.fetch(_Number, WORKERS, {})).rows[0].number


async def counters(reads: ReadModels, keys: Sequence[str]) -> dict[str, int]:
    """What the log's guard counters come to; one that was never moved is not in it."""
    return {row.key: row.value for row in (await reads.fetch(_Counter, COUNTERS, {"keys": list(keys)})).rows}


async def position(reads: ReadModels, row: JobRow, *, now: datetime) -> int:
    """How many of those that wait now will be taken before this one; see passed_by()."""
    values = {"job_id": row.job_id, "kind": row.kind, "owner": row.owner, "priority": row.priority, "now": now}
    since = row.not_before or row.created_at
    return passed_by((await reads.fetch(Line, LINES, values | {"since": since})).rows, row.priority)


def passed_by(lines: Sequence[Line], priority: int) -> int:
    """How many candidates are in front of a job of this priority, as fair_queue.lua orders them: those in front of it
    in its own line, and of each other line as many, more by PRIORITY_STEP for each step that it is more urgent.
    """
    rank = sum(line.before for line in lines if line.own)
    others = (
        min(line.jobs, max(rank + PRIORITY_STEP * (priority - line.priority), 0)) for line in lines if not line.own
    )
    return rank + sum(others)


async def pace(reads: ReadModels, kind: str, *, now: datetime) -> Pace:
    values = {"kind": kind, "now": now, "minutes": PACE_MINUTES, "jobs": PACE_JOBS_MAX}
    return (await reads.fetch(Pace, PACE, values)).rows[0]


def estimate(measured: Pace, before: int, *, delay_s: float = 0.0) -> Estimate | None:
    """Until the start of a job that has `before` others in front of it and may start after `delay_s`.

    The sum of so many gaps, as if they were independent. Where there were hardly any, nobody waits: the waits of the
    last jobs then, if nobody is in front. None: nothing was measured.
    """
    if measured.gaps >= GAPS_MIN and measured.gap_s is not None:
        turns = before + 1
        middle_s = turns * measured.gap_s
        high_s = middle_s + SIGMAS_OF_P90 * (measured.gap_sd_s or 0.0) * sqrt(turns)
    elif before == 0 and measured.wait_p50_s is not None and measured.wait_p90_s is not None:
        middle_s, high_s = measured.wait_p50_s, measured.wait_p90_s
    else:
        return None
    return Estimate(round(max(middle_s, delay_s), 3), round(max(high_s, delay_s), 3))
