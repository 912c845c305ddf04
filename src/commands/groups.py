"""Commands about many attempts at once: each job's event is its own, at an expected version and with its own cause; one
append and one receipt are shared. What each job comes to is what `attempts` decides.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from ..domain import attempts, jobs
from ..domain.jobs import Job
from .attempts import CompleteJob, decide
from .jobs import say
from .queues import admit
from .transaction import Loaded, Transaction


class Claim(Struct, frozen=True, kw_only=True):
    """One of many that are started together, and what it is a reaction to."""

    job_id: UUID
    correlation_id: str
    causation_id: str


class StartJobs(Struct, frozen=True, kw_only=True):
    """Start as many of these as can be, all of one kind."""

    claims: tuple[Claim, ...]
    worker: str
    lease_until: datetime


class Completion(Struct, frozen=True, kw_only=True):
    """One of many that are completed together, and what it is a reaction to."""

    result: CompleteJob
    correlation_id: str
    causation_id: str


class CompleteJobs(Struct, frozen=True, kw_only=True):
    """Complete all of these, or none: a result that is refused for what it is leaves them to be brought one by one."""

    completions: tuple[Completion, ...]


async def start_jobs(tx: Transaction, command: StartJobs) -> Loaded[Job]:
    """Whoever asked looks at each job's state to see whether it is his. One that cannot be started is left out.

    Raises:
        QueueIsPaused: their kind starts none now.
        QueueIsBusy: not as many as these; perhaps some, one by one.
    """
    taken = [await tx.load(jobs.AGGREGATE, claim.job_id) for claim in command.claims]
    for claim, job in zip(command.claims, taken, strict=True):
        submitted = job.state.submitted
        if submitted is None or not jobs.is_due(job.state, tx.caller.now):
            continue
        tx.react(job.stream_id, correlation_id=claim.correlation_id, causation_id=claim.causation_id)
        limited = await admit(tx, submitted.kind)
        events = attempts.start(
            job.state, worker=command.worker, lease_until=command.lease_until, now=tx.caller.now, limited=limited
        )
        say(tx, job, events)
    return taken[0]


async def complete_jobs(tx: Transaction, command: CompleteJobs) -> Loaded[Job]:
    brought = []
    for one in command.completions:
        job_id = one.result.job_id
        tx.react(job_id, correlation_id=one.correlation_id, causation_id=one.causation_id)
        brought.append(await decide(tx, job_id, one.result, attempts.complete))
    return brought[0]
