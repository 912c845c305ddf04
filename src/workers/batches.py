"""What the clock does about batches: ends the jobs of cancelled ones, and says when the last job of one has ended."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from ..commands import batches as commands
from ..domain import jobs
from ..domain.kernel import Caller, derived_id
from ..projections import batches
from ..projections.batches import CancelledJob
from .lifecycle import Services, say_due

CANCELLED_PER_TICK_MAX = 2_000  # jobs; so many take most of a second, for which the clock's other duties wait
COMPLETED_PER_TICK_MAX = 200  # batches
AT_ONCE = 200  # commands on their way together, which the log takes in one append
ACTOR = "clock"


class Batches:
    """One process's; keeps nothing between ticks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.duties: tuple[Callable[[datetime], Awaitable[None]], ...] = (self.cancel_jobs, self.complete_batches)

    async def cancel_jobs(self, moment: datetime) -> None:
        """End jobs of cancelled batches: each by a command of its own, so that one which a worker takes meanwhile is
        decided again and the others are not.
        """
        found = await batches.cancelled_jobs(self._services.reads, limit=CANCELLED_PER_TICK_MAX)
        for start in range(0, len(found), AT_ONCE):
            await self._cancel(found[start : start + AT_ONCE], moment)

    async def _cancel(self, found: Sequence[CancelledJob], moment: datetime) -> None:
        with suppress(Exception):  # it only saves reads: each reads its own stream then, and says what is wrong with it
            await self._services.commands.fold_streams(jobs.AGGREGATE, [one.job_id for one in found])
        said = await asyncio.gather(*(self._cancel_one(one, moment) for one in found), return_exceptions=True)
        for error in said:
            if isinstance(error, BaseException):
                raise error  # alone, as whoever calls duties knows it: it is the same for all of them

    async def _cancel_one(self, one: CancelledJob, moment: datetime) -> None:
        command = commands.CancelJobOfBatch(batch_id=one.batch_id, job_id=one.job_id)
        command_id = derived_id(ACTOR, commands.cancel_job_of_batch.__name__, one.job_id, one.version)
        caller = _caller(moment, command_id, one.batch_id, one.position)
        await say_due(self._services, commands.cancel_job_of_batch, command, caller)

    async def complete_batches(self, moment: datetime) -> None:
        """Say what batches came to whose jobs have all ended; once, whoever says it."""
        for one in await batches.over(self._services.reads, limit=COMPLETED_PER_TICK_MAX):
            batch_id = one.batch.batch_id
            command = commands.CompleteBatch(batch_id=batch_id, counts=one.counts)
            command_id = derived_id(ACTOR, commands.complete_batch.__name__, batch_id)
            caller = _caller(moment, command_id, batch_id, one.position)
            await say_due(self._services, commands.complete_batch, command, caller)


def _caller(moment: datetime, command_id: UUID, batch_id: UUID, position: int) -> Caller:
    """Everything about a batch has one correlation id; `position` is that of the event that led to it."""
    return Caller(
        actor=ACTOR,
        now=moment,
        command_id=command_id,
        correlation_id=str(batch_id),
        causation_id=f"event:{position}",
    )
