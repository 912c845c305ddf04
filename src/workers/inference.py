"""The worker: claims jobs by event, runs each in a child process, and brings the result back under its attempt.

Hints from Valkey say which jobs seem to wait; the log alone says who holds one. Whoever loses the race takes the next.
"""

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import psycopg
import structlog
from redis.exceptions import RedisError

from ..adapters.event_store.codec import Recorded
from ..adapters.event_store.writer import StoreUnavailable
from ..adapters.ids import uuid7
from ..commands import attempts as attempt_commands
from ..commands.attempts import StartJob
from ..commands.transact import EpochChanged, Receipt
from ..domain import jobs as domain_jobs
from ..domain.jobs import Job
from ..domain.kernel import Rejection, derived_id
from ..projections import jobs
from .attempt import Attempt
from .kinds import MODULES
from .leases import Lease
from .lifecycle import Services, caller, now, pause
from .runner_client import Runner

TAKE_TIMEOUT_S = 1.0
WITHOUT_HINTS_PAUSE_S = 0.5
WITHOUT_DATABASE_PAUSE_S = 1.0
CANDIDATES_WITHOUT_HINTS = 20

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

    async def run(self, stopping: asyncio.Event, lease: Lease) -> None:
        async with asyncio.TaskGroup() as slots:
            for number in range(self._services.settings.worker_slots):
                slots.create_task(self._slot(stopping, lease), name=f"slot-{number}")

    async def _slot(self, stopping: asyncio.Event, lease: Lease) -> None:
        memory_bytes_max = self._services.settings.worker_memory_mb_max * 1024 * 1024
        runner = Runner(memory_bytes_max=memory_bytes_max, readable=[self._services.models.directory])
        try:
            while not stopping.is_set():
                if lease.over:
                    raise EpochChanged("the log was restored; this worker is of the one before")
                if lease.lost:
                    await pause(stopping, WITHOUT_DATABASE_PAUSE_S)
                    continue
                try:
                    attempts = [
                        await self._claimed(job_id, runner, lease) for job_id in await self._candidates(stopping)
                    ]
                except psycopg.Error as error:
                    log.warning("worker_without_database", error=str(error))
                    await pause(stopping, WITHOUT_DATABASE_PAUSE_S)
                    continue
                # An attempt that could not say how it ended takes the worker down with it: the job is still its own,
                # and only without its lease can another have it.
                for attempt in filter(None, attempts):
                    await attempt.run(stopping, lease)
        finally:
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

    async def _claimed(self, job_id: UUID, runner: Runner, lease: Lease) -> Attempt | None:
        """An attempt at the job, if it waits and our claim is the first."""
        events = await self._services.store.reader.stream(job_id)
        if not events:
            return None
        job = self._folded(events)
        if not domain_jobs.is_due(job, now()):
            return None
        started = await self._claim(job_id, job, events[-1], lease.epoch)
        if started is None:
            return None
        correlation_id = events[-1].envelope.correlation_id
        return Attempt(self._services, runner, self.name, started, correlation_id)

    def _folded(self, events: Sequence[Recorded]) -> Job:
        mapper = self._services.store.mapper
        return domain_jobs.AGGREGATE.fold(domain_jobs.AGGREGATE.initial, map(mapper.event, events))

    async def _claim(self, job_id: UUID, job: Job, last: Recorded, epoch: UUID | None) -> Receipt[Job] | None:
        lease_until = now() + timedelta(seconds=self._services.settings.worker_lease_s)
        start = StartJob(job_id=job_id, worker=self.name, lease_until=lease_until)
        command_id = derived_id("start", job_id, job.attempt + 1, self.name)
        try:
            by = caller(self.name, command_id, correlation_id=last.envelope.correlation_id, cause=last.id)
            receipt = await self._services.commands.execute(attempt_commands.start_job, start, by, epoch=epoch)
        except StoreUnavailable:
            raise  # The claim may stand: as above, a worker that does not know what it holds must go.
        except Rejection as rejection:
            log.debug("claim_lost", job_id=str(job_id), code=rejection.code)
            return None
        holds = receipt.state.status == "processing" and receipt.state.worker == self.name
        return receipt if holds else None
