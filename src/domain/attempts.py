"""An attempt at a job: what the worker that holds one may say, and the clock about it.

Every decision here is fenced: it names the attempt's number and its worker, and from any attempt but the current
one it changes nothing. Its events and its state are the job's.
"""

import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from . import retries
from .jobs import (
    Artifact,
    Event,
    Job,
    JobCancelled,
    JobCompleted,
    JobDeadLettered,
    JobFailed,
    JobProgressed,
    JobRetryScheduled,
    JobStarted,
    JobSubmitted,
    LateResultRejected,
    Provenance,
    is_due,
    is_pending,
    require_present,
)
from .kernel import Invalid, InvalidState, NotFound, Rejection, derived_id, require_sha256, require_within, storable
from .retries import RETRY_DELAY_S_MAX

OUTPUTS_MAX = 100
MESSAGE_CHARS_MAX = 1000
CODE_CHARS_MAX = 100

_OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a file's name, never a path


# Rejections


class AttemptIsOver(Rejection):
    """This worker no longer holds the job: it should stop computing."""

    code = "lease_lost"


# Decisions of the worker that holds it


def start(
    job: Job,
    *,
    worker: str,
    lease_until: datetime,
    now: datetime,
    attempt: int | None = None,
    limited: bool = False,
) -> list[Event]:
    """Claim a waiting job that is due. `attempt`, if given, must be the next one."""
    require_present(job)
    if job.status == "processing" and job.worker == worker and attempt in {None, job.attempt}:
        return []
    if not is_due(job, now):
        raise InvalidState(f"the job is {job.status}" + (f" until {job.not_before}" if is_pending(job) else ""))
    if attempt not in {None, job.attempt + 1}:
        raise InvalidState(f"the next attempt is {job.attempt + 1}, not {attempt}")
    return [JobStarted(at=now, attempt=job.attempt + 1, worker=worker, lease_until=lease_until, limited=limited)]


def report_progress(
    job: Job, *, attempt: int, worker: str, percent: int, now: datetime, message: str = ""
) -> list[Event]:
    """Never back within an attempt; an earlier figure that comes late says nothing.

    Raises:
        AttemptIsOver: somebody else holds the job, or nobody, or it is to be cancelled.
    """
    require_present(job)
    require_within("percent", percent, 0, 100)
    reason = refusal(job, attempt=attempt, worker=worker)
    if reason is not None:
        raise AttemptIsOver(f"attempt {attempt}: {reason}", reason=reason)
    said = storable(message, MESSAGE_CHARS_MAX)
    if percent < job.percent or (percent, said) == (job.percent, job.message) or job.status == "completed":
        return []
    return [JobProgressed(at=now, attempt=attempt, percent=percent, message=said)]


def complete(
    job: Job,
    *,
    attempt: int,
    worker: str,
    now: datetime,
    outputs: tuple[Artifact, ...] = (),
    manifest: dict[str, Any] | None = None,
    timings: dict[str, float] | None = None,
    receipt: Provenance | None = None,
) -> list[Event]:
    """Bring the result. One that comes too late is told once and changes nothing; see refusal()."""
    _require_made(job, attempt)
    reason = refusal(job, attempt=attempt, worker=worker)
    if reason is not None:
        if attempt in job.refused:
            return []
        return [LateResultRejected(at=now, attempt=attempt, worker=worker, reason=reason)]
    if job.status == "completed":
        return []
    _require_outputs(outputs)
    return [
        JobCompleted(
            at=now,
            attempt=attempt,
            worker=worker,
            outputs=outputs,
            manifest=manifest or {},
            timings=timings or {},
            receipt=receipt or Provenance(),
        )
    ]


def fail(
    job: Job,
    *,
    attempt: int,
    worker: str,
    code: str,
    message: str,
    retryable: bool,
    retry_delay_s: float,
    now: datetime,
) -> list[Event]:
    """End the attempt. Silent where it was over already: a late failure brings nothing that would need refusing."""
    _require_made(job, attempt)
    if not _holds(job, attempt, worker):
        return []
    if job.cancel_requested_by is not None:
        return [JobCancelled(at=now, by=job.cancel_requested_by)]
    code, message = storable(code, CODE_CHARS_MAX), storable(message, MESSAGE_CHARS_MAX)
    if not retries.is_retried(code, retryable=retryable):
        return [JobFailed(at=now, attempt=attempt, code=code, message=message)]
    if attempt >= job.attempts_max:
        return [JobDeadLettered(at=now, attempt=attempt, code=code, message=message)]
    if not 0 <= retry_delay_s <= RETRY_DELAY_S_MAX:
        raise Invalid(f"a retry waits 0 to {RETRY_DELAY_S_MAX:.0f} s")
    not_before = now + timedelta(seconds=retry_delay_s)
    return [JobRetryScheduled(at=now, attempt=attempt, not_before=not_before, code=code, message=message)]


def confirm_cancel(job: Job, *, attempt: int, worker: str, now: datetime) -> list[Event]:
    """The worker stopped because cancelling was requested. Silent where its attempt is over."""
    _require_made(job, attempt)
    if not _holds(job, attempt, worker):
        return []
    if job.cancel_requested_by is None:
        raise InvalidState("nobody asked to cancel this job")
    return [JobCancelled(at=now, by=job.cancel_requested_by)]


# Decisions of the clock, which asks often: most of the time there is nothing to say.


def lose_lease(job: Job, *, attempt: int, worker: str, retry_delay_s: float, now: datetime) -> list[Event]:
    """The worker's lease ran out, as the database's clock judged it; to another attempt, then."""
    return fail(
        job,
        attempt=attempt,
        worker=worker,
        code="lease_expired",
        message=f"worker {worker} was not heard of in time",
        retryable=True,
        retry_delay_s=retry_delay_s,
        now=now,
    )


def time_out(job: Job, *, attempt: int, worker: str, now: datetime) -> list[Event]:
    """The attempt ran longer than the job may. Not retried: the next one would take as long."""
    submitted = _require_made(job, attempt)
    if job.started_at is None or now < job.started_at + timedelta(seconds=submitted.timeout_s):
        return []
    message = f"took longer than {submitted.timeout_s} s"
    return fail(
        job, attempt=attempt, worker=worker, code="timeout", message=message, retryable=False, retry_delay_s=0, now=now
    )


# Questions


def refusal(job: Job, *, attempt: int, worker: str) -> str | None:
    """Why a result of this attempt is not taken; none if it is, or was taken already.

    Asked beside complete(), whose silence is the same for both: the outputs of a refused attempt are removed.
    """
    if attempt != job.attempt:
        return "stale_attempt"
    if worker != job.worker:
        return "not_the_holder"
    if job.status == "completed":
        return None
    if job.status != "processing":
        return "attempt_over" if is_pending(job) else f"job_{job.status}"
    return "cancel_requested" if job.cancel_requested_by is not None else None


def artifact_id(job_id: UUID, name: str) -> UUID:
    """An output's id in a trace; only one attempt of a job ever completes, so the name is enough."""
    return derived_id("artifact", job_id, name)


def _holds(job: Job, attempt: int, worker: str) -> bool:
    return job.status == "processing" and (attempt, worker) == (job.attempt, job.worker)


def _require_made(job: Job, attempt: int) -> JobSubmitted:
    """An attempt may be of a job deleted since; an attempt that never was is a mistake."""
    if job.submitted is None:
        raise NotFound("no such job")
    require_within("attempt", attempt, 1, job.attempt)
    return job.submitted


def _require_outputs(outputs: tuple[Artifact, ...]) -> None:
    require_within("the number of outputs", len(outputs), 0, OUTPUTS_MAX)
    if len({output.name for output in outputs}) < len(outputs):
        raise Invalid("two outputs have one name")
    for output in outputs:
        if _OUTPUT_NAME.fullmatch(output.name) is None:
            raise Invalid(f"{output.name!r} is not the name of a file")
        require_sha256(output.sha256)
