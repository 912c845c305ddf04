"""Commands of a job's worker, and of the clock about it. All are fenced by the attempt's number."""

from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from ..domain import attempts, jobs
from ..domain.jobs import Artifact, Job, Provenance
from .jobs import say
from .transact import Loaded, Transaction


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
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = attempts.start(job.state, worker=command.worker, lease_until=command.lease_until, now=tx.caller.now)
    return say(tx, job, events)


async def report_progress(tx: Transaction, command: ReportProgress) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = attempts.report_progress(
        job.state,
        attempt=command.attempt,
        worker=command.worker,
        percent=command.percent,
        message=command.message,
        now=tx.caller.now,
    )
    return say(tx, job, events)


async def complete_job(tx: Transaction, command: CompleteJob) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = attempts.complete(
        job.state,
        attempt=command.attempt,
        worker=command.worker,
        outputs=command.outputs,
        manifest=command.manifest,
        timings=command.timings,
        receipt=command.receipt,
        now=tx.caller.now,
    )
    return say(tx, job, events)


async def fail_job(tx: Transaction, command: FailJob) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = attempts.fail(
        job.state,
        attempt=command.attempt,
        worker=command.worker,
        code=command.code,
        message=command.message,
        retryable=command.retryable,
        retry_delay_s=command.retry_delay_s,
        now=tx.caller.now,
    )
    return say(tx, job, events)


async def confirm_cancel(tx: Transaction, command: ConfirmCancel) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = attempts.confirm_cancel(job.state, attempt=command.attempt, worker=command.worker, now=tx.caller.now)
    return say(tx, job, events)


async def lose_lease(tx: Transaction, command: LoseLease) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = attempts.lose_lease(
        job.state,
        attempt=command.attempt,
        worker=command.worker,
        retry_delay_s=command.retry_delay_s,
        now=tx.caller.now,
    )
    return say(tx, job, events)


async def time_out_job(tx: Transaction, command: TimeOutJob) -> Loaded[Job]:
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    events = attempts.time_out(job.state, attempt=command.attempt, worker=command.worker, now=tx.caller.now)
    return say(tx, job, events)
