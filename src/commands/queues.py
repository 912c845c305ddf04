"""Queues of kinds: pause, resume, limits; and what start_job asks of them.

A start rests on the queue's stream, whose state or absence its append expects: once a pause or a limit is acknowledged,
no start that was decided without it is taken. Limits are counters that the same append moves. A kind of which nothing
was ever said costs one expectation, and no look at the log.
"""

from datetime import datetime

from msgspec import Struct

from ..domain import kinds, queues
from ..domain.jobs import Job
from ..domain.queues import Queue, QueueIsBusy
from .transaction import Loaded, Transaction


class PauseQueue(Struct, frozen=True, kw_only=True):
    """Start no job of the kind, until ResumeQueue."""

    kind: str
    reason: str = ""


class ResumeQueue(Struct, frozen=True, kw_only=True):
    kind: str


class SetQueueLimits(Struct, frozen=True, kw_only=True):
    """Both limits of a kind; None: no limit."""

    kind: str
    running_max: int | None
    starts_per_minute_max: int | None


async def pause_queue(tx: Transaction, command: PauseQueue) -> Loaded[Queue]:
    queue = await _load(tx, command.kind)
    events = queues.pause(queue.state, kind=command.kind, reason=command.reason, by=tx.caller.actor, now=tx.caller.now)
    return tx.say(queue, events)


async def resume_queue(tx: Transaction, command: ResumeQueue) -> Loaded[Queue]:
    queue = await _load(tx, command.kind)
    return tx.say(queue, queues.resume(queue.state, kind=command.kind, by=tx.caller.actor, now=tx.caller.now))


async def set_queue_limits(tx: Transaction, command: SetQueueLimits) -> Loaded[Queue]:
    queue = await _load(tx, command.kind)
    events = queues.set_limits(
        queue.state,
        kind=command.kind,
        running_max=command.running_max,
        starts_per_minute_max=command.starts_per_minute_max,
        by=tx.caller.actor,
        now=tx.caller.now,
    )
    return tx.say(queue, events)


async def admit(tx: Transaction, kind: str) -> bool:
    """Let one job of the kind start; whether it counts against how many may run at once.

    The append is refused with QueueIsBusy where a limit has no room.

    Raises:
        QueueIsPaused: none may start.
    """
    queue = await tx.look(queues.AGGREGATE, queues.queue_id(kind), rare=True)
    queues.require_open(queue)
    if (starts_max := queue.starts_per_minute_max) is not None:
        refusal = QueueIsBusy(f"{starts_max} {kind} jobs have started within this minute")
        tx.guard(starts_key(kind, tx.caller.now), 1, starts_max, refusal)
    if (running_max := queue.running_max) is not None:
        tx.guard(running_key(kind), 1, running_max, QueueIsBusy(f"{running_max} {kind} jobs are running"))
    return queue.running_max is not None


def leave(tx: Transaction, before: Job, after: Job) -> None:
    """Count an attempt out that ended just now, however it did, if it was counted when it began."""
    if before.limited and before.submitted is not None and before.status == "processing" != after.status:
        tx.guard(running_key(before.submitted.kind), -1)


def running_key(kind: str) -> str:
    """The counter of attempts at jobs of a kind that run now, of those that were counted."""
    return f"jobs_running:{kind}"


def starts_key(kind: str, now: datetime) -> str:
    """The counter of starts within one minute (`2026-03-01T12:05`, UTC); removed when that is long over."""
    return f"job_starts:{now:%Y-%m-%dT%H:%M}:{kind}"


async def _load(tx: Transaction, kind: str) -> Loaded[Queue]:
    """Raises: UnknownKind: there is no such kind, so no job could ever be of it."""
    kinds.require_known(kind)
    return await tx.load(queues.AGGREGATE, queues.queue_id(kind))
