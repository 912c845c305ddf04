"""The worker: claims jobs by event, runs each in a child process, and brings the result back under its attempt.

Hints from Valkey say which jobs seem to wait; the log alone says who holds one. Whoever loses the race takes the next.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import psycopg
import structlog
from msgspec import Struct
from redis.exceptions import RedisError

from ..adapters.event_store.codec import Recorded
from ..adapters.event_store.writer import StoreUnavailable
from ..adapters.ids import uuid7
from ..commands import attempts as attempt_commands
from ..commands.attempts import StartJob
from ..commands.groups import Claim, StartJobs, start_jobs
from ..commands.transact import EpochChanged
from ..domain import jobs as domain_jobs
from ..domain.jobs import AGGREGATE as JOB
from ..domain.jobs import Job, JobSubmitted
from ..domain.kernel import Rejection, derived_id
from ..domain.kinds import KINDS, Kind
from ..domain.queues import QueueIsBusy, QueueIsPaused
from ..projections import jobs
from .attempt import Attempt
from .group import Group
from .kinds import MODULES
from .leases import Lease
from .lifecycle import Services, by_itself, caller, now, pause
from .runner_client import Runner

TAKE_TIMEOUT_S = 1.0
WITHOUT_HINTS_PAUSE_S = 0.5
WITHOUT_DATABASE_PAUSE_S = 1.0
CANDIDATES_WITHOUT_HINTS = 20
REFUSED_HOLD_S = 1.0  # before a kind is looked at again that is paused or at its limit

log = structlog.get_logger(__name__)


async def run(services: Services, stopping: asyncio.Event) -> None:
    """Work in all slots until `stopping`, then hand back what is unfinished."""
    worker = Worker(services)
    lease = Lease(services.settings, worker.name)
    lease.start()
    try:
        await worker.run(stopping, lease)
    finally:
        lease.stop()


class Worker:
    """One boot of a worker process; its name is fresh, so that nobody mistakes it for the one before."""

    def __init__(self, services: Services, kinds: Sequence[str] = tuple(MODULES)) -> None:
        self.name = f"worker:{uuid7()}"
        self._services = services
        self._kinds = list(kinds)
        # Candidates that a slot has in hand: offered again meanwhile, they are no other's.
        self._ours: set[UUID] = set()

    async def run(self, stopping: asyncio.Event, lease: Lease) -> None:
        async with asyncio.TaskGroup() as slots:
            for number in range(self._services.settings.worker_slots):
                slots.create_task(self._slot(stopping, lease), name=f"slot-{number}")

    async def _slot(self, stopping: asyncio.Event, lease: Lease) -> None:
        memory_bytes_max = self._services.settings.worker_memory_mb_max * 1024 * 1024
        runner = Runner(memory_bytes_max=memory_bytes_max, readable=[self._services.models.directory])
        settling: asyncio.Task[None] | None = None
        try:
            while not stopping.is_set():
                if lease.over:
                    raise EpochChanged("the log was restored; this worker is of the one before")
                if lease.lost:
                    await pause(stopping, WITHOUT_DATABASE_PAUSE_S)
                    continue
                try:
                    attempts = await self._attempts(stopping, lease)
                except psycopg.Error as error:
                    log.warning("worker_without_database", error=str(error))
                    await pause(stopping, WITHOUT_DATABASE_PAUSE_S)
                    continue
                # An attempt that could not say how it ended takes the worker down with it: the job is still its own,
                # and only without its lease can another have it.
                group = None
                if len(attempts) == 1:
                    await attempts[0].run(runner, stopping, lease)
                    self._let_go(attempts)
                elif attempts:
                    group = await Group(self._services, attempts, lease.epoch).run(runner, stopping, lease)
                if settling is not None and (group is not None or settling.done()):
                    await settling
                    settling = None
                if group is not None:
                    # While they are told, the next are claimed: their events go into the same append.
                    settling = asyncio.create_task(self._settled(group))
            if settling is not None:
                await settling
        finally:
            if settling is not None:
                settling.cancel()
                await asyncio.wait({settling})
            await runner.close()

    async def _candidates(self, stopping: asyncio.Event) -> list[UUID]:
        """At most one from Valkey; without Valkey some from the read model, in no order that others share."""
        try:
            # In another order each time: the first kind that has any is served, and none may starve the others.
            kinds = random.sample(self._kinds, len(self._kinds))
            return await self._services.hints.take(kinds, count=1, timeout_s=TAKE_TIMEOUT_S)
        except RedisError as error:
            log.warning("worker_without_hints", error=repr(error))
            await pause(stopping, WITHOUT_HINTS_PAUSE_S)
            waiting = await jobs.waiting(
                self._services.reads, kinds=self._kinds, now=now(), limit=CANDIDATES_WITHOUT_HINTS
            )
            return [row.job_id for row in random.sample(waiting, min(1, len(waiting)))]

    async def _settled(self, group: Group) -> None:
        await group.settle()
        self._let_go(group.attempts)

    def _let_go(self, attempts: Sequence[Attempt]) -> None:
        """They are over: their kind may have room for another."""
        self._ours.difference_update(attempt.job_id for attempt in attempts)
        self._services.hints.release(attempts[0].submitted.kind)

    async def _attempts(self, stopping: asyncio.Event, lease: Lease) -> list[Attempt]:
        """At jobs that wait and that nobody claimed before us: one, or as many of a short kind as run together."""
        due = await self._due(await self._candidates(stopping))
        if not due:
            return []
        kind = KINDS[due[0].submitted.kind]
        try:
            room = kind.weight_max - kind.weight(due[0].submitted.params)
            if room > 0 and due[0].number == 1:
                with suppress(RedisError):
                    due += await self._due(await self._services.hints.take_more(kind.name, count=room))
            fitting = _fitting(due, kind)
            attempts, refused = await self._claims(fitting, lease)
        except BaseException:
            self._ours.difference_update(one.job_id for one in due)
            raise
        started = {attempt.job_id for attempt in attempts}
        self._ours.difference_update({one.job_id for one in due} - started)
        back = {one.job_id for one in due} - {one.job_id for one in fitting} | {one.job_id for one in refused}
        if back:
            with suppress(RedisError):  # then the clock brings them
                await self._services.hints.put_back(back, hold_s=REFUSED_HOLD_S if refused else 0.0)
        return attempts

    async def _due(self, job_ids: Sequence[UUID]) -> list["_Due"]:
        """Those of them that wait, whose time has come, and that no slot of ours has in hand; now this one has."""
        if not job_ids:
            return []
        moment = now()
        folded = await self._services.commands.fold_streams(JOB, job_ids)
        due = [
            _Due(last.stream_id, job.attempt + 1, job.submitted, last)
            for job, last in folded
            if domain_jobs.is_due(job, moment)
            and job.submitted is not None
            and job.submitted.kind in self._kinds
            and last.stream_id not in self._ours
        ]
        self._ours.update(one.job_id for one in due)
        return due

    async def _claims(self, due: Sequence["_Due"], lease: Lease) -> tuple[list[Attempt], Sequence["_Due"]]:
        """Attempts at those that nobody claimed before us; and those whose queue lets none start now."""
        if len(due) > 1:
            try:
                return await self._claimed_together(due, lease), ()
            except StoreUnavailable:
                raise  # as in _claimed()
            except Rejection as rejection:
                log.debug("claims_lost", jobs=len(due), code=rejection.code)
        attempts: list[Attempt] = []
        for number, one in enumerate(due):
            try:
                claim = await self._claimed(one, lease)
            except (QueueIsBusy, QueueIsPaused):
                return attempts, due[number:]
            except psycopg.Error:
                if not attempts:
                    raise
                return attempts, due[number:]  # those that it holds are run, whatever became of the others
            if claim is not None:
                attempts.append(claim)
        return attempts, ()

    async def _claimed(self, due: "_Due", lease: Lease) -> Attempt | None:
        """An attempt at the job, if our claim is the first.

        Raises:
            QueueIsBusy, QueueIsPaused: of its kind none starts now.
        """
        lease_until = now() + timedelta(seconds=self._services.settings.worker_lease_s)
        start = StartJob(job_id=due.job_id, worker=self.name, lease_until=lease_until)
        command_id = derived_id("start", due.job_id, due.number, self.name)
        correlation_id = due.last.envelope.correlation_id
        try:
            by = caller(self.name, command_id, correlation_id=correlation_id, cause=due.last.id)
            receipt = await self._services.commands.execute(attempt_commands.start_job, start, by, epoch=lease.epoch)
        except StoreUnavailable:
            raise  # The claim may stand: as above, a worker that does not know what it holds must go.
        except (QueueIsBusy, QueueIsPaused):
            raise
        except Rejection as rejection:
            log.debug("claim_lost", job_id=str(due.job_id), code=rejection.code)
            return None
        if not _holds(receipt.state, self.name, due):
            return None
        return self._attempt(due, receipt.state, receipt.position, lease)

    async def _claimed_together(self, due: Sequence["_Due"], lease: Lease) -> list[Attempt]:
        """Attempts at those of them that nobody else claimed first.

        Raises:
            Rejection: together they cannot be claimed.
        """
        command_id = uuid7()
        claims = [
            Claim(
                job_id=one.job_id,
                correlation_id=one.last.envelope.correlation_id,
                causation_id=f"event:{one.last.id}",
            )
            for one in due
        ]
        lease_until = now() + timedelta(seconds=self._services.settings.worker_lease_s)
        start = StartJobs(claims=tuple(claims), worker=self.name, lease_until=lease_until)
        by = by_itself(self.name, command_id)
        receipt = await self._services.commands.execute(start_jobs, start, by, epoch=lease.epoch)
        states = [(await self._services.commands.state(JOB, one.job_id, read_tail=False))[0] for one in due]
        held = [(one, job) for one, job in zip(due, states, strict=True) if _holds(job, self.name, one)]
        first = receipt.position - len(held) + 1  # each start is one event, in the order of the claims
        return [self._attempt(one, job, position, lease) for position, (one, job) in enumerate(held, first)]

    def _attempt(self, due: "_Due", job: Job, position: int, lease: Lease) -> Attempt:
        return Attempt(
            self._services,
            due.job_id,
            job,
            started_position=position,
            correlation_id=due.last.envelope.correlation_id,
            epoch=lease.epoch,
        )


def _fitting(due: Sequence["_Due"], kind: Kind) -> list["_Due"]:
    """The first of them, and as many others as run together with it.

    Only what has the same time, and only first attempts: whoever was in the way of the others, or had them in its way,
    is alone the next time.
    """
    first = due[0]
    fitting = [first]
    room = kind.weight_max - kind.weight(first.submitted.params)
    for one in due[1:]:
        weight = kind.weight(one.submitted.params)
        together = one.number == first.number == 1 and one.submitted.timeout_s == first.submitted.timeout_s
        if together and weight <= room:
            room -= weight
            fitting.append(one)
    return fitting


def _holds(job: Job, worker: str, due: "_Due") -> bool:
    return job.status == "processing" and (job.worker, job.attempt) == (worker, due.number)


class _Due(Struct, frozen=True):
    """A job that waits.

    Attributes:
        number: of the attempt that would be next.
        last: its last event, which the claim is a reaction to.
    """

    job_id: UUID
    number: int
    submitted: JobSubmitted
    last: Recorded
