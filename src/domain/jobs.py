"""A job: one piece of computing, done once, by whichever attempt holds it.

pending → processing → completed | failed | cancelled; pending → cancelled | expired; a retry, and the requeue
of a dead letter, go back to pending; deleted is a tombstone. The number of the attempt is the fencing token:
it only grows, through a requeue too, and only the worker that holds the current one may write.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace

from .kernel import Aggregate, Invalid, InvalidState, NotFound, require_within

PRIORITY_DEFAULT, PRIORITY_MAX = 5, 9  # 0 is the most urgent
TIMEOUT_S_DEFAULT, TIMEOUT_S_MAX = 600, 24 * 3600
ATTEMPTS_DEFAULT, ATTEMPTS_MAX = 3, 20
INPUTS_MAX = 100
URL_CHARS_MAX = 2000
DELAY_MAX = timedelta(days=90)
UNIQUE_KEY_CHARS_MAX = 200
REF_CHARS_MAX = 200

Status = Literal["pending", "processing", "completed", "failed", "cancelled", "expired", "deleted"]
TERMINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "expired", "deleted"})


class Artifact(Struct, frozen=True, kw_only=True):
    """One file that an attempt wrote."""

    name: str
    object_key: str
    sha256: str
    size_bytes: int
    content_type: str


class Provenance(Struct, frozen=True, kw_only=True):
    """What made the outputs, so that a result can be explained, and run again and compared.

    Attributes:
        provider: the execution provider that the session really used, such as CPUExecutionProvider.
        runtime: name and version of what ran the model, such as `onnxruntime 1.23.0`.
    """

    input_sha256: tuple[str, ...] = ()
    model_version_id: UUID | None = None
    model_sha256: str | None = None
    provider: str | None = None
    runtime: str | None = None
    batch_size: int = 1


# Events. A tag is stored for ever: rename the class if you must, never the tag; new fields get a default.


class JobSubmitted(Struct, frozen=True, kw_only=True, tag="job.submitted"):
    """The model version is pinned here: activating another one later changes nothing for this job."""

    at: datetime
    owner: str
    kind: str
    inputs: tuple[UUID, ...] = ()  # assets
    params: dict[str, Any] = field(default_factory=dict)
    session_id: UUID | None = None
    project_id: UUID | None = None
    batch_id: UUID | None = None
    model_version_id: UUID | None = None
    model_sha256: str | None = None
    priority: int = PRIORITY_DEFAULT
    timeout_s: int = TIMEOUT_S_DEFAULT
    attempts_max: int = ATTEMPTS_DEFAULT
    callback_url: str | None = None
    counted: bool = False  # its owner has a quota, which it and the seconds of its attempts are counted against
    not_before: datetime | None = None  # its first attempt waits until then
    unique_key: str | None = None  # while it is not over, its owner has no other job of this kind under this key
    ref: str | None = None  # what whoever submitted it calls it; nothing here reads it


class JobStarted(Struct, frozen=True, kw_only=True, tag="job.started"):
    at: datetime
    attempt: int
    worker: str
    lease_until: datetime
    limited: bool = False  # it counts against how many of its kind may run at once


class JobProgressed(Struct, frozen=True, kw_only=True, tag="job.progressed"):
    at: datetime
    attempt: int
    percent: int
    message: str


class JobRetryScheduled(Struct, frozen=True, kw_only=True, tag="job.retry_scheduled"):
    at: datetime
    attempt: int  # the one that is over
    not_before: datetime
    code: str
    message: str


class JobCompleted(Struct, frozen=True, kw_only=True, tag="job.completed"):
    at: datetime
    attempt: int
    worker: str
    outputs: tuple[Artifact, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # seconds by step
    receipt: Provenance = Provenance()


class JobFailed(Struct, frozen=True, kw_only=True, tag="job.failed"):
    """Over, and trying again would not help."""

    at: datetime
    attempt: int
    code: str
    message: str


class JobDeadLettered(Struct, frozen=True, kw_only=True, tag="job.dead_lettered"):
    """Over, because its attempts are used up; an operator may requeue it."""

    at: datetime
    attempt: int
    code: str
    message: str


class JobCancelRequested(Struct, frozen=True, kw_only=True, tag="job.cancel_requested"):
    at: datetime
    by: str


class JobCancelled(Struct, frozen=True, kw_only=True, tag="job.cancelled"):
    at: datetime
    by: str


class JobExpired(Struct, frozen=True, kw_only=True, tag="job.expired"):
    at: datetime


class JobRequeued(Struct, frozen=True, kw_only=True, tag="job.requeued"):
    at: datetime
    by: str
    attempts_max: int  # in all, those already made included


class JobDeleted(Struct, frozen=True, kw_only=True, tag="job.deleted"):
    at: datetime
    by: str


class LateResultRejected(Struct, frozen=True, kw_only=True, tag="job.late_result_rejected"):
    at: datetime
    attempt: int
    worker: str
    reason: str


Event = (
    JobSubmitted
    | JobStarted
    | JobProgressed
    | JobRetryScheduled
    | JobCompleted
    | JobFailed
    | JobDeadLettered
    | JobCancelRequested
    | JobCancelled
    | JobExpired
    | JobRequeued
    | JobDeleted
    | LateResultRejected
)


# State


class Job(Struct, frozen=True):
    """A job as its events tell it; `status` is None before anything was said.

    Attributes:
        submitted: what was asked for, as it was asked.
        attempt: the fencing token: the number of the current attempt, or of the last one.
        attempts_max: the last attempt's number before it becomes a dead letter.
        worker: who holds the current attempt, or held the last one.
        limited: the current attempt, or the last one, counts against how many of its kind may run at once.
        result: what was brought, once completed.
        refused: attempts whose late result was told already.
    """

    status: Status | None = None
    submitted: JobSubmitted | None = None
    attempt: int = 0
    attempts_max: int = 0
    worker: str | None = None
    not_before: datetime | None = None
    percent: int = 0
    message: str = ""
    cancel_requested_by: str | None = None
    result: JobCompleted | None = None
    error_code: str | None = None
    error_message: str = ""
    dead_letter: bool = False
    refused: frozenset[int] = frozenset()
    started_at: datetime | None = None
    finished_at: datetime | None = None
    updated_at: datetime | None = None
    limited: bool = False


def evolve(job: Job, event: Event) -> Job:
    moved = _moved(job, event)
    # A late result is told, but nothing happened to the job.
    return moved if isinstance(event, LateResultRejected) else replace(moved, updated_at=event.at)


def _moved(job: Job, event: Event) -> Job:
    match event:
        case JobSubmitted(attempts_max=attempts_max):
            return Job("pending", event, attempts_max=attempts_max, not_before=event.not_before)
        case JobStarted(at=at, attempt=attempt, worker=worker):
            begun = replace(job, status="processing", attempt=attempt, worker=worker, started_at=at)
            return replace(begun, percent=0, message="", limited=event.limited)
        case JobProgressed(percent=percent, message=message):
            return replace(job, percent=percent, message=message)
        case JobRetryScheduled(not_before=not_before, code=code, message=message):
            return replace(job, status="pending", not_before=not_before, error_code=code, error_message=message)
        case JobCompleted(at=at):
            done = replace(job, status="completed", result=event, finished_at=at)
            return replace(done, percent=100, error_code=None, error_message="")
        case JobFailed(at=at, code=code, message=message) | JobDeadLettered(at=at, code=code, message=message):
            failed = replace(job, status="failed", error_code=code, error_message=message, finished_at=at)
            return replace(failed, dead_letter=isinstance(event, JobDeadLettered))
        case JobCancelRequested(by=by):
            return replace(job, cancel_requested_by=by)
        case JobCancelled(at=at):
            return replace(job, status="cancelled", finished_at=at)
        case JobExpired(at=at):
            return replace(job, status="expired", finished_at=at)
        case JobRequeued(attempts_max=attempts_max):
            waiting = replace(job, status="pending", attempts_max=attempts_max, not_before=None)
            return replace(waiting, dead_letter=False, finished_at=None)
        case JobDeleted():
            return replace(job, status="deleted")
        case LateResultRejected(attempt=attempt):
            return replace(job, refused=job.refused | {attempt})


AGGREGATE = Aggregate("job", Job(), evolve, owner=lambda job: job.submitted.owner if job.submitted is not None else "")


# Decisions of whoever asked for the job; those of its worker are in attempts.py


def submit(
    job: Job,
    *,
    kind: str,
    owner: str,
    now: datetime,
    inputs: tuple[UUID, ...] = (),
    params: dict[str, Any] | None = None,
    session_id: UUID | None = None,
    batch_id: UUID | None = None,
    model_version_id: UUID | None = None,
    model_sha256: str | None = None,
    priority: int = PRIORITY_DEFAULT,
    timeout_s: int = TIMEOUT_S_DEFAULT,
    attempts_max: int = ATTEMPTS_DEFAULT,
    callback_url: str | None = None,
    counted: bool = False,
    not_before: datetime | None = None,
    unique_key: str | None = None,
    ref: str | None = None,
) -> list[Event]:
    """Ask for it. `params` are those that `kinds.parse` gave back; inputs, session and model were consulted."""
    if job.status is not None:
        return []  # A retried request is not a second job.
    require_within("priority", priority, 0, PRIORITY_MAX)
    require_within("timeout_s", timeout_s, 1, TIMEOUT_S_MAX)
    require_within("attempts_max", attempts_max, 1, ATTEMPTS_MAX)
    require_within("the number of inputs", len(inputs), 0, INPUTS_MAX)
    if (model_version_id is None) != (model_sha256 is None):
        raise Invalid("a model version is pinned together with its SHA-256")
    if callback_url is not None and not _is_url(callback_url):
        raise Invalid(f"callback_url is an http(s) URL of at most {URL_CHARS_MAX} characters")
    if not_before is not None and not_before > now + DELAY_MAX:
        raise Invalid(f"not_before lies at most {DELAY_MAX.days} days ahead")
    if unique_key is not None and (not 1 <= len(unique_key) <= UNIQUE_KEY_CHARS_MAX or not unique_key.isprintable()):
        raise Invalid(f"a unique_key has 1 to {UNIQUE_KEY_CHARS_MAX} printable characters")
    if ref is not None and len(ref) > REF_CHARS_MAX:
        raise Invalid(f"a ref has at most {REF_CHARS_MAX} characters")
    if not_before is not None:
        # In UTC, since a table takes no zone beyond 15:59; and one that is over says nothing.
        not_before = not_before.astimezone(UTC) if not_before > now else None
    return [
        JobSubmitted(
            at=now,
            owner=owner,
            kind=kind,
            inputs=inputs,
            params=params or {},
            session_id=session_id,
            batch_id=batch_id,
            model_version_id=model_version_id,
            model_sha256=model_sha256,
            priority=priority,
            timeout_s=timeout_s,
            attempts_max=attempts_max,
            callback_url=callback_url,
            counted=counted,
            not_before=not_before,
            unique_key=unique_key,
            ref=ref,
        )
    ]


def cancel(job: Job, *, by: str, now: datetime) -> list[Event]:
    """A waiting job ends at once; of a running one it is requested, and its worker confirms."""
    require_present(job)
    match job.status:
        case "pending":
            return [JobCancelled(at=now, by=by)]
        case "processing":
            return [] if job.cancel_requested_by is not None else [JobCancelRequested(at=now, by=by)]
        case "cancelled":
            return []
    raise InvalidState(f"the job is {job.status}")


def requeue(job: Job, *, by: str, now: datetime) -> list[Event]:
    """Give a dead letter as many attempts again as it was submitted with."""
    submitted = require_present(job)
    if is_pending(job):
        return []
    if not job.dead_letter:
        raise InvalidState(f"the job is {job.status}, not a dead letter")
    return [JobRequeued(at=now, by=by, attempts_max=job.attempt + submitted.attempts_max)]


def delete(job: Job, *, by: str, now: datetime) -> list[Event]:
    """Of an unfinished job: cancel it first, without waiting for its worker, whose result will come too late."""
    if job.status is None:
        raise NotFound("no such job")
    if job.status == "deleted":
        return []
    cancelled: list[Event] = [] if is_terminal(job) else [JobCancelled(at=now, by=by)]
    return [*cancelled, JobDeleted(at=now, by=by)]


def expire(job: Job, *, now: datetime) -> list[Event]:
    """The job's session expired: a waiting job goes with it, one that is processing finishes."""
    if job.submitted is None:
        raise NotFound("no such job")
    if not is_pending(job) or job.submitted.session_id is None:
        return []
    return [JobExpired(at=now)]


# Questions


def is_pending(job: Job) -> bool:
    return job.status == "pending"


def is_due(job: Job, now: datetime) -> bool:
    """Waiting, and not for a retry's delay to pass."""
    return is_pending(job) and (job.not_before is None or job.not_before <= now)


def is_terminal(job: Job) -> bool:
    return job.status in TERMINAL


def require_present(job: Job) -> JobSubmitted:
    """What was asked for.

    Raises:
        NotFound: never submitted, or deleted.
    """
    if job.submitted is None or job.status == "deleted":
        raise NotFound("no such job")
    return job.submitted


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://")) and len(text) <= URL_CHARS_MAX and text.isprintable()
