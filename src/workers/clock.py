"""The clock: says what time alone brings. Every second it asks what is due and commands it.

Commands carry ids that follow from what they are about, so that two clocks, or one that was killed and started again,
say everything once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import structlog
from redis.exceptions import RedisError

from ..adapters.hints import Candidate
from ..commands import attempts as attempt_commands
from ..commands import jobs as job_commands
from ..commands import sessions as session_commands
from ..commands.transact import C, Handler, S
from ..domain import retries
from ..domain.kernel import Caller, Rejection, derived_id
from ..domain.kinds import KINDS
from ..projections import jobs, queues, sessions
from ..projections.jobs import Running
from . import comparisons, watchdog
from .batches import Batches
from .janitor import Janitor
from .leases import PRUNE
from .lifecycle import Services, now, pause, say_due

TICK_S = 1.0
PER_TICK_MAX = 1_000
GUARD_ROWS_KEPT = 100  # of each counter
QUOTA_COUNTERS_KEPT = timedelta(days=2)  # whatever a process with a slow clock takes for today
START_COUNTERS_KEPT = timedelta(hours=2)
CLOCK_SET_S = 5.0  # the machine's clock moved by so much more than time did: somebody has set it
TIMEOUT_GRACE_S = 10  # a worker ends its own overruns; the clock only those of a worker that fails to
ACTOR = "clock"

log = structlog.get_logger(__name__)


async def run(services: Services, stopping: asyncio.Event) -> None:
    """Tick until `stopping`; and beside that compare, which may take longer than a duty should."""
    async with asyncio.TaskGroup() as both:
        both.create_task(_tick(services, stopping), name="clock")
        both.create_task(comparisons.run(services, stopping), name="comparer")


async def _tick(services: Services, stopping: asyncio.Event) -> None:
    """A tick that fails is logged, and the next one does its work."""
    clock = Clock(services)
    while not stopping.is_set():
        for duty in clock.duties:
            try:
                await duty(now())
            except (psycopg.Error, RedisError, Rejection) as error:
                log.warning("duty_failed", duty=duty.__name__, error=repr(error))
            except Exception as error:
                # Of whatever one duty dies, leases and timeouts are judged on: they are what the jobs rest on.
                log.exception("duty_broke", duty=duty.__name__, error=repr(error))
        await pause(stopping, TICK_S)


class Clock:
    """What is due, and the commands that say so."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._leads_s: dict[tuple[UUID, int], float] = {}  # the clock's over time's, when each attempt was first seen
        self.duties: tuple[Callable[[datetime], Awaitable[None]], ...] = (
            self.expire_sessions,
            self.expire_jobs,
            self.reap_leases,
            self.time_out_jobs,
            self.refill_hints,
            self.prune_guards,
            self.watch_analysts,
            Janitor(services).remove_orphans,
            *Batches(services).duties,
        )

    async def expire_sessions(self, moment: datetime) -> None:
        for row in await sessions.due(self._services.reads, now=moment, limit=PER_TICK_MAX):
            command = session_commands.ExpireSession(session_id=row.session_id)
            await self._say(moment, session_commands.expire_session, command, row.session_id, row.version, row.position)

    async def expire_jobs(self, moment: datetime) -> None:
        """Jobs that wait in an expired session go with it; one that is processing finishes."""
        for row in await jobs.pending_of_expired_sessions(self._services.reads, limit=PER_TICK_MAX):
            command = job_commands.ExpireJob(job_id=row.job_id)
            await self._say(moment, job_commands.expire_job, command, row.job_id, row.version, row.position)

    async def reap_leases(self, moment: datetime) -> None:
        """Jobs held by a worker that has no lease any more go to another attempt."""
        for row in await jobs.lost(self._services.reads, limit=PER_TICK_MAX):
            log.warning("lease_expired", job_id=str(row.job_id), attempt=row.attempt, worker=row.worker)
            lost = attempt_commands.LoseLease(
                job_id=row.job_id, attempt=row.attempt, worker=row.worker, retry_delay_s=self._delay_s(row)
            )
            await self._say(moment, attempt_commands.lose_lease, lost, row.job_id, row.attempt, row.position)
        async with self._services.store.pool.connection() as connection:
            await connection.execute(PRUNE)

    async def time_out_jobs(self, moment: datetime) -> None:
        """Jobs whose worker lives and yet let them overrun: by the time that passed, not by a clock that was set."""
        running = await jobs.running(self._services.reads, limit=PER_TICK_MAX)
        lead_s = moment.timestamp() - time.monotonic()
        seen = self._leads_s
        self._leads_s = {(row.job_id, row.attempt): seen.get((row.job_id, row.attempt), lead_s) for row in running}
        for row in running:
            set_s = lead_s - self._leads_s[row.job_id, row.attempt]
            due = moment - timedelta(seconds=set_s) if abs(set_s) > CLOCK_SET_S else moment
            if due > row.started_at + timedelta(seconds=row.timeout_s + TIMEOUT_GRACE_S):
                timed_out = attempt_commands.TimeOutJob(job_id=row.job_id, attempt=row.attempt, worker=row.worker)
                await self._say(due, attempt_commands.time_out_job, timed_out, row.job_id, row.attempt, row.position)

    async def refill_hints(self, moment: datetime) -> None:
        """Offer every waiting job again: what was lost in Valkey costs a second, never a job. Of a kind that is paused
        none: a worker would only drop it.
        """
        kinds = sorted(KINDS.keys() - await queues.paused_kinds(self._services.reads))
        waiting = await jobs.waiting(self._services.reads, kinds=kinds, now=moment, limit=PER_TICK_MAX)
        await self._services.hints.offer(
            Candidate(row.job_id, row.kind, row.priority, row.since, row.owner) for row in waiting
        )

    async def prune_guards(self, moment: datetime) -> None:
        """A counter is its newest row; the others go, some aside for whoever wonders. So do those of days gone by."""
        async with self._services.store.pool.connection() as connection:
            await connection.execute("SELECT prune_guards(%s)", (GUARD_ROWS_KEPT,))
            await connection.execute("SELECT prune_quota_counters(%s)", ((moment - QUOTA_COUNTERS_KEPT).date(),))
            minute = f"{moment - START_COUNTERS_KEPT:%Y-%m-%dT%H:%M}"
            await connection.execute("SELECT prune_start_counters(%s)", (minute,))

    async def watch_analysts(self, moment: datetime) -> None:
        await watchdog.watch(self._services, moment)

    def _delay_s(self, row: Running) -> float:
        base_s = self._services.settings.job_retry_base_s
        return retries.retry_delay_s("lease_expired", max(row.attempt, 1), base_s, 1.0)

    async def _say(
        self, moment: datetime, handler: Handler[C, S], command: C, subject: UUID, state: int, position: int
    ) -> None:
        """`state` (a version or an attempt) makes the same duty about a later state another command.

        `moment` is when the duty was found due: decided at another time, it might say nothing, and its receipt would
        silence every repeat.
        """
        command_id = derived_id(ACTOR, handler.__name__, subject, state)
        caller = Caller(
            actor=ACTOR,
            now=moment,
            command_id=command_id,
            correlation_id=str(subject),
            causation_id=f"event:{position}",
        )
        await say_due(self._services, handler, command, caller)
