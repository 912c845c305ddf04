"""Attempts at short jobs of one kind, run together.

Alone, a job costs its worker a question to the child and two appends to the log, each waited for; together, the child
is asked once and the log takes their events in a batch. How many run together is their kind's to say (`weight_max`).
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self, TypeVar
from uuid import UUID

import structlog

from ..adapters import metrics
from ..adapters.event_store.codec import NotStorable
from ..adapters.event_store.writer import CommandRefused, StoreUnavailable
from ..adapters.ids import uuid7
from ..commands.groups import CompleteJobs, Completion, complete_jobs
from ..domain import jobs
from ..domain.kernel import Rejection
from ..domain.kinds import KINDS
from .attempt import PROGRESS_S, Attempt, Grace, keep_cancelling, say
from .kinds import JobInput
from .leases import Lease
from .lifecycle import Services, by_itself
from .runner_client import Runner
from .runner_messages import RunnerAnswer

MOVING_MAX = 8  # attempts whose files are fetched or stored at once

log = structlog.get_logger(__name__)

Outcome = RunnerAnswer | Exception
T = TypeVar("T")


class Group:
    """A few attempts, from JobStarted to whatever ends each of them; run(), then settle()."""

    def __init__(self, services: Services, attempts: Sequence[Attempt], epoch: UUID | None) -> None:
        self._services = services
        self.attempts = attempts
        self._epoch = epoch
        self._kind = KINDS[attempts[0].submitted.kind]
        self._outcomes: list[Outcome] = []
        self._until_settled = ExitStack()

    async def run(self, runner: Runner, stopping: asyncio.Event, lease: Lease) -> Self:
        """Have all of them computed. Never raises for what a job did."""
        watch = asyncio.create_task(self._watch(runner, stopping, lease))
        began = time.monotonic()
        try:
            root = self._until_settled.enter_context(tempfile.TemporaryDirectory(prefix="sightline-jobs-"))
            asked = await self._moved(
                partial(_question, attempt, f"{root}/{number}") for number, attempt in enumerate(self.attempts)
            )
            self._outcomes = await self._answers(runner, asked)
        except Exception as error:  # noqa: BLE001  # a full disk, no child: all of theirs to tell
            self._outcomes = [error] * len(self.attempts)
        finally:
            watch.cancel()
            await asyncio.wait({watch})
        each_s = (time.monotonic() - began) / len(self.attempts)
        seconds = metrics.JOB_SECONDS.labels(kind=self._kind.name)
        for _ in self.attempts:
            seconds.observe(each_s)
        return self

    async def settle(self) -> None:
        """Bring all results, and say of the others how they failed; raises as Attempt.run()."""
        done: list[tuple[Attempt, RunnerAnswer]] = []
        try:
            async with asyncio.TaskGroup() as settling:
                for attempt, outcome in zip(self.attempts, self._outcomes, strict=True):
                    if isinstance(outcome, RunnerAnswer):
                        done.append((attempt, outcome))
                    else:
                        settling.create_task(attempt.settle(outcome))
                settling.create_task(self._complete(done))
        finally:
            await asyncio.to_thread(self._until_settled.close)

    async def _complete(self, done: Sequence[tuple[Attempt, RunnerAnswer]]) -> None:
        """Results as one command; each by itself where together they are not taken."""
        brought = await self._moved(partial(_completion, *one) for one in done)
        completions: list[tuple[Attempt, Completion]] = []
        for (attempt, _), one in zip(done, brought, strict=True):
            if isinstance(one, Completion):
                completions.append((attempt, one))
            else:
                await attempt.settle(one)
        if len(completions) > 1:
            try:
                await self._say([one for _, one in completions])
            except StoreUnavailable:
                raise
            except (Rejection, NotStorable, CommandRefused) as error:
                log.info("results_brought_one_by_one", jobs=len(completions), error=repr(error))
            else:
                taken = 0
                for attempt, _ in completions:
                    job, _, _ = await self._services.commands.state(jobs.AGGREGATE, attempt.job_id, read_tail=False)
                    taken += await attempt.conclude(job)
                log.info("attempts_ended", kind=self._kind.name, status="completed", jobs=taken)
                return
        for attempt, completion in completions:
            await attempt.settle(completion)

    async def _say(self, completions: Sequence[Completion]) -> None:
        by = by_itself(completions[0].result.worker, uuid7())
        await say(self._services, complete_jobs, CompleteJobs(completions=tuple(completions)), by, self._epoch)

    async def _moved(self, moves: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
        """The results, in order; MOVING_MAX at once where there are files to wait for. Else a task would cost more."""
        if not self._kind.writes:
            return [await move() for move in moves]
        moving = asyncio.Semaphore(MOVING_MAX)

        async def moved(move: Callable[[], Awaitable[T]]) -> T:
            async with moving:
                return await move()

        return await asyncio.gather(*map(moved, moves))

    async def _answers(self, runner: Runner, asked: Sequence[JobInput | Exception]) -> list[Outcome]:
        questions = [one for one in asked if isinstance(one, JobInput)]
        timeout_s = self.attempts[0].submitted.timeout_s  # of all of them, or they would not be together
        answers = await runner.run_many(questions, timeout_s, together=self._kind.together)
        left = iter(answers)
        return [next(left) if isinstance(one, JobInput) else one for one in asked]

    async def _watch(self, runner: Runner, stopping: asyncio.Event, lease: Lease) -> None:
        """Stop the child once nobody wants any of it. One that is cancelled meanwhile is refused at its end, which is
        near.
        """
        grace = Grace(stopping, lease)
        while (reason := grace.why_over()) is None:  # noqa: ASYNC110  # the lease is watched by a thread
            await asyncio.sleep(PROGRESS_S)
        for attempt in self.attempts:
            attempt.stop(reason)
        await keep_cancelling(runner)


async def _question(attempt: Attempt, directory: str) -> JobInput | Exception:
    """What the child is asked; or why it cannot be."""
    try:
        return await attempt.question(directory)
    except Exception as error:  # noqa: BLE001  # the attempt says how it ended, whatever it was
        return error


async def _completion(attempt: Attempt, answer: RunnerAnswer) -> Completion | Exception:
    try:
        return await attempt.completion(answer)
    except Exception as error:  # noqa: BLE001  # settle() says what it means
        return error
