"""A batch: many jobs of one kind, admitted whole or not at all, and followed as one thing.

Its stream says that it was submitted, that somebody cancelled it, and what it came to when the last of its jobs had
ended. What each job does is said by the job; how many are where is counted from them (projections/batches.py).
"""

import hashlib
from datetime import datetime
from typing import Literal
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from .kernel import Aggregate, InvalidState, NotFound, require_within

JOBS_MAX = 10_000
INPUTS_MAX = 10_000  # different ones, of all jobs together: each is looked at, and again by the append
NUMBER_BITS = 14  # of a job in its batch; 2^14 > JOBS_MAX

Status = Literal["pending", "processing", "cancelling", "completed", "cancelled"]


class Counts(Struct, frozen=True, kw_only=True):
    """How many of a batch's jobs are in each state; `dead_letters` are among the failed ones."""

    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    dead_letters: int = 0
    cancelled: int = 0
    expired: int = 0
    deleted: int = 0

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled + self.expired + self.deleted


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class BatchSubmitted(Struct, frozen=True, kw_only=True, tag="batch.submitted"):
    """Its jobs are submitted in the same append, all pinned to one model version where the kind has a model."""

    at: datetime
    owner: str
    kind: str
    total: int


class BatchCancelled(Struct, frozen=True, kw_only=True, tag="batch.cancelled"):
    """Of its jobs those that wait end, and those that run are asked to."""

    at: datetime
    by: str


class BatchCompleted(Struct, frozen=True, kw_only=True, tag="batch.completed"):
    """The last of its jobs ended. A dead letter that is requeued later changes the job, not what was so here."""

    at: datetime
    total: int
    completed: int
    failed: int
    cancelled: int
    dead_letters: int = 0
    expired: int = 0
    deleted: int = 0


Event = BatchSubmitted | BatchCancelled | BatchCompleted


# State


class Batch(Struct, frozen=True):
    """A batch as its own events tell it; `submitted` is None before anything was said."""

    submitted: BatchSubmitted | None = None
    cancelled: BatchCancelled | None = None
    outcome: BatchCompleted | None = None


def evolve(batch: Batch, event: Event) -> Batch:
    match event:
        case BatchSubmitted():
            return Batch(event)
        case BatchCancelled():
            return replace(batch, cancelled=event)
        case BatchCompleted():
            return replace(batch, outcome=event)


AGGREGATE = Aggregate(
    "batch", Batch(), evolve, owner=lambda batch: batch.submitted.owner if batch.submitted is not None else ""
)


# Decisions


def submit(batch: Batch, *, owner: str, kind: str, total: int, now: datetime) -> list[Event]:
    """Ask for `total` jobs at once."""
    if batch.submitted is not None:
        return []
    require_within("the number of jobs", total, 1, JOBS_MAX)
    return [BatchSubmitted(at=now, owner=owner, kind=kind, total=total)]


def cancel(batch: Batch, *, by: str, now: datetime) -> list[Event]:
    """End what has not ended. Of a batch that is over nothing is left to cancel."""
    require_present(batch)
    if batch.cancelled is not None:
        return []
    if batch.outcome is not None:
        raise InvalidState("the batch is over")
    return [BatchCancelled(at=now, by=by)]


def complete(batch: Batch, *, counts: Counts, now: datetime) -> list[Event]:
    """Say what it came to, once; silent while `counts` do not show that every job has ended."""
    submitted = require_present(batch)
    if batch.outcome is not None or counts.ended != submitted.total:
        return []
    return [
        BatchCompleted(
            at=now,
            total=submitted.total,
            completed=counts.completed,
            failed=counts.failed,
            cancelled=counts.cancelled,
            dead_letters=counts.dead_letters,
            expired=counts.expired,
            deleted=counts.deleted,
        )
    ]


# Questions


def require_present(batch: Batch) -> BatchSubmitted:
    """What was asked for.

    Raises:
        NotFound: never submitted.
    """
    if batch.submitted is None:
        raise NotFound("no such batch")
    return batch.submitted


def is_cancelling(batch: Batch) -> bool:
    """Its jobs are being ended. Those requeued after it was over are not: somebody wants them after all."""
    return batch.cancelled is not None and batch.outcome is None


def status_of(counts: Counts, *, total: int, cancelled: bool, over: bool) -> Status:
    """In a word. `over`: its end was said once; a requeued dead letter makes it `processing` again."""
    if counts.ended == total:
        return "cancelled" if cancelled else "completed"
    if cancelled and not over:
        return "cancelling"
    return "processing" if counts.processing or counts.ended else "pending"


def job_id(batch_id: UUID, number: int) -> UUID:
    """The id of the batch's job `number`, from 1: always the same, so that a repeated submit is the same jobs.

    A UUIDv7 (RFC 9562, 6.2 method 1): the batch's time in milliseconds, the number as the counter behind it, and a
    digest for the rest. So the jobs sort as they were given, after those of older batches, and the number can be read
    back.
    """
    require_within("number", number, 1, 2**NUMBER_BITS - 1)
    rest = int.from_bytes(hashlib.sha256(batch_id.bytes + number.to_bytes(2)).digest()[:8]) >> 4  # 60 bits
    high, low = number >> 2, number & 0b11  # 12 bits before the variant, 2 behind it
    return UUID(int=(batch_id.int >> 80 << 80) | 7 << 76 | high << 64 | 0b10 << 62 | low << 60 | rest)


def number_of(job_id: UUID) -> int:
    """Which of its batch's jobs this is, from 1."""
    return (job_id.int >> 64 & 0xFFF) << 2 | job_id.int >> 60 & 0b11
