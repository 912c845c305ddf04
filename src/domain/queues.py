"""A queue: what an operator says of all jobs of one kind, whether any may start and how many.

One stream per kind, whose id follows from the kind's name. Most kinds have none: their jobs start as they come. How
many run, and how many started within a minute, are counters that the log moves with the append (commands/queues.py).
"""

from datetime import datetime
from functools import lru_cache
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .kernel import Aggregate, Invalid, InvalidState, derived_id, require_within

REASON_CHARS_MAX = 500
RUNNING_MAX = 100_000
STARTS_PER_MINUTE_MAX = 10_000_000


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class QueuePaused(Struct, frozen=True, kw_only=True, tag="queue.paused"):
    """No job of the kind starts from now on; those that run go on."""

    at: datetime
    kind: str
    reason: str
    by: str


class QueueResumed(Struct, frozen=True, kw_only=True, tag="queue.resumed"):
    at: datetime
    kind: str
    by: str


class QueueLimitsSet(Struct, frozen=True, kw_only=True, tag="queue.limits_set"):
    """Both limits from now on; None: no limit."""

    at: datetime
    kind: str
    running_max: int | None
    starts_per_minute_max: int | None
    by: str


Event = QueuePaused | QueueResumed | QueueLimitsSet


# State


class Queue(Struct, frozen=True):
    """Attributes:
    running_max: how many attempts run at once, of those that started since it was set.
    starts_per_minute_max: how many attempts start within one minute of the clock.
    """

    kind: str = ""
    paused: bool = False
    reason: str = ""
    paused_at: datetime | None = None
    running_max: int | None = None
    starts_per_minute_max: int | None = None


# Rejections


class QueueIsPaused(InvalidState):
    code = "queue_paused"


class QueueIsBusy(InvalidState):
    """As many run, or have started within this minute, as may."""

    code = "queue_busy"


def evolve(queue: Queue, event: Event) -> Queue:
    match event:
        case QueuePaused(kind=kind, reason=reason, at=at):
            return replace(queue, kind=kind, paused=True, reason=reason, paused_at=at)
        case QueueResumed(kind=kind):
            return replace(queue, kind=kind, paused=False, reason="", paused_at=None)
        case QueueLimitsSet(kind=kind, running_max=running_max, starts_per_minute_max=starts_max):
            return replace(queue, kind=kind, running_max=running_max, starts_per_minute_max=starts_max)


AGGREGATE = Aggregate("queue", Queue(), evolve)


# Decisions


def pause(queue: Queue, *, kind: str, reason: str, by: str, now: datetime) -> list[Event]:
    if len(reason) > REASON_CHARS_MAX or not reason.isprintable():
        raise Invalid(f"a reason has at most {REASON_CHARS_MAX} printable characters")
    if queue.paused and queue.reason == reason:
        return []
    return [QueuePaused(at=now, kind=kind, reason=reason, by=by)]


def resume(queue: Queue, *, kind: str, by: str, now: datetime) -> list[Event]:
    return [QueueResumed(at=now, kind=kind, by=by)] if queue.paused else []


def set_limits(
    queue: Queue, *, kind: str, running_max: int | None, starts_per_minute_max: int | None, by: str, now: datetime
) -> list[Event]:
    """From now on. Attempts that run already are counted only if there was a limit when they started."""
    if running_max is not None:
        require_within("running_max", running_max, 1, RUNNING_MAX)
    if starts_per_minute_max is not None:
        require_within("starts_per_minute_max", starts_per_minute_max, 1, STARTS_PER_MINUTE_MAX)
    if (queue.running_max, queue.starts_per_minute_max) == (running_max, starts_per_minute_max):
        return []
    limits = {"running_max": running_max, "starts_per_minute_max": starts_per_minute_max}
    return [QueueLimitsSet(at=now, kind=kind, by=by, **limits)]


# Questions


@lru_cache(maxsize=256)
def queue_id(kind: str) -> UUID:
    """The stream of a kind's queue."""
    return derived_id("queue", kind)


def require_open(queue: Queue) -> None:
    """Raises: QueueIsPaused: no job of this kind may start."""
    if queue.paused:
        raise QueueIsPaused(f"{queue.kind} is paused" + (f": {queue.reason}" if queue.reason else ""))
