"""Why a job waits, at the door."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from litestar import Controller, Response, get
from litestar.params import FromPath
from msgspec import Struct
from msgspec.structs import replace

from ..commands.queues import running_key, starts_key
from ..domain import jobs
from ..projections import queues, waiting
from ..projections.jobs import JobRow
from ..projections.queues import QueueFigures
from ..projections.waiting import Estimate
from .auth import takes
from .jobs import one_row, view_of_row
from .manners import Reads, found, now

Reason = Literal["paused", "scheduled", "retry", "concurrency_limit", "rate_limit", "no_worker", "behind_others"]


class WaitingView(Struct, frozen=True, kw_only=True):
    """Why a job has not started, as far as the read models know.

    Attributes:
        reasons: all that hold it back now: its queue is paused; it is for later; its retry waits; as many of its kind
            run, or have started within this minute, as may; no worker lives; others are in front of it. Empty, and not
            over: it is about to start, or has.
        position: how many of those that wait will be taken before it; null where it does not wait.
        not_before: when it may start.
        estimate_s: seconds until it starts, from the pace of the last minutes; null where there was none, or where
            nothing starts before somebody does something.
        workers: that live, whatever they are busy with.
        pause_reason: what whoever paused the queue said.
    """

    id: UUID
    kind: str
    status: jobs.Status
    reasons: list[Reason] = []
    position: int | None = None
    not_before: datetime | None = None
    estimate_s: Estimate | None = None
    workers: int
    pause_reason: str = ""


class WaitingController(Controller):
    path = "/v1/jobs"
    opt = takes("jobs:read", owned=jobs.AGGREGATE)
    tags = ("jobs",)

    @get("/{job_id:uuid}/waiting", summary="Why a job waits, behind how many, for how long about")
    async def why(self, reads: Reads, job_id: FromPath[UUID]) -> Response[WaitingView]:
        row, position = await one_row(reads, job_id)
        return found(await _view(reads, row), position, version=row.version)


async def _view(reads: Reads, row: JobRow) -> WaitingView:
    workers = await waiting.workers_live(reads)
    view = WaitingView(id=row.job_id, kind=row.kind, status=view_of_row(row).status, workers=workers)
    if row.status != "pending":
        return view
    moment = now()
    queue = (await queues.figures(reads, kinds=[row.kind], now=moment)).rows[0]
    before = await waiting.position(reads, row, now=moment)
    reasons = _due_later(row, moment) + await _limited(reads, queue, moment)
    reasons += ["no_worker"] if not workers else []
    reasons += ["behind_others"] if before else []
    delay_s = max((row.not_before - moment).total_seconds(), 0.0) if row.not_before is not None else 0.0
    estimate = None
    if workers and not queue.paused:
        estimate = waiting.estimate(await waiting.pace(reads, row.kind, now=moment), before, delay_s=delay_s)
    return replace(
        view,
        reasons=reasons,
        position=before,
        not_before=row.not_before,
        estimate_s=estimate,
        pause_reason=queue.reason,
    )


def _due_later(row: JobRow, moment: datetime) -> list[Reason]:
    if row.not_before is None or row.not_before <= moment:
        return []
    return ["retry" if row.attempt else "scheduled"]


async def _limited(reads: Reads, queue: QueueFigures, moment: datetime) -> list[Reason]:
    """By what was said of its kind, and by the counters that the log itself goes by."""
    reasons: list[Reason] = ["paused"] if queue.paused else []
    if queue.running_max is None and queue.starts_per_minute_max is None:
        return reasons
    running, starts = running_key(queue.kind), starts_key(queue.kind, moment)
    counted = await waiting.counters(reads, [running, starts])
    if queue.running_max is not None and counted.get(running, 0) >= queue.running_max:
        reasons.append("concurrency_limit")
    if queue.starts_per_minute_max is not None and counted.get(starts, 0) >= queue.starts_per_minute_max:
        reasons.append("rate_limit")
    return reasons
