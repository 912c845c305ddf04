"""Commands of a job's worker, and of the clock about it. All are fenced by the attempt's number."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict

from ..domain import attempts, jobs
from ..domain.jobs import Artifact, Job, Provenance
from . import quotas
from .jobs import say
from .queues import admit
from .transaction import Loaded, Transaction


class StartJob(Struct, frozen=True, kw_only=True):
    job_id: UUID
    worker: str
    lease_until: datetime


class ReportProgress(Struct, frozen=True, kw_only=True):
    job_id: UUID
    attempt: int
    worker: str
    percent: int
    message: str


class CompleteJob(Struct, frozen=True, kw_only=True):
    job_id: UUID
    attempt: int
    worker: str
    outputs: tuple[Artifact, ...]
    manifest: dict[str, Any]
    timings: dict[str, float]
    receipt: Provenance


class FailJob(Struct, frozen=True, kw_only=True):
    job_id: UUID
    attempt: int
    worker: str
    code: str
    message: str
    retryable: bool
    retry_delay_s: float


class ConfirmCancel(Struct, frozen=True, kw_only=True):
    job_id: UUID
    attempt: int
    worker: str


class LoseLease(Struct, frozen=True, kw_only=True):
    job_id: UUID
    attempt: int
    worker: str
    retry_delay_s: float


class TimeOutJob(Struct, frozen=True, kw_only=True):
    job_id: UUID
    attempt: int
    worker: str


async def start_job(tx: Transaction, command: StartJob) -> Loaded[Job]:
    """Raises: QueueIsPaused, QueueIsBusy: its kind starts none now; whoever asked takes another kind's."""
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    submitted = job.state.submitted
    limited = submitted is not None and jobs.is_due(job.state, tx.caller.now) and await admit(tx, submitted.kind)
    events = attempts.start(
        job.state, worker=command.worker, lease_until=command.lease_until, now=tx.caller.now, limited=limited
    )
    return say(tx, job, events)


async def report_progress(tx: Transaction, command: ReportProgress) -> Loaded[Job]:
    return await decide(tx, command.job_id, command, attempts.report_progress)


async def complete_job(tx: Transaction, command: CompleteJob) -> Loaded[Job]:
    return await decide(tx, command.job_id, command, attempts.complete)


async def fail_job(tx: Transaction, command: FailJob) -> Loaded[Job]:
    return await decide(tx, command.job_id, command, attempts.fail)


async def confirm_cancel(tx: Transaction, command: ConfirmCancel) -> Loaded[Job]:
    return await decide(tx, command.job_id, command, attempts.confirm_cancel)


async def lose_lease(tx: Transaction, command: LoseLease) -> Loaded[Job]:
    return await decide(tx, command.job_id, command, attempts.lose_lease)


async def time_out_job(tx: Transaction, command: TimeOutJob) -> Loaded[Job]:
    return await decide(tx, command.job_id, command, attempts.time_out)


async def decide(tx: Transaction, job_id: UUID, said: Struct, decision: Callable[..., list[jobs.Event]]) -> Loaded[Job]:
    """Load the job and decide; the other fields of what is said are the decision's arguments, one by one."""
    job = await tx.load(jobs.AGGREGATE, job_id)
    arguments = {name: value for name, value in asdict(said).items() if name != "job_id"}
    before = job.state
    say(tx, job, decision(before, **arguments, now=tx.caller.now))
    await quotas.settle(tx, job_id, before, job.state)
    return job
