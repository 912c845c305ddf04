"""Attempts at short jobs of one kind, run together.

Alone, a job costs its worker a question to the child and two appends to the log, each waited for; together, the child
is asked once and the log takes their events in a batch. How many run together is their kind's to say (`weight_max`).
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self
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
from .attempt import PROGRESS_S, STOP_GRACE_S, Attempt, say
from .kinds import JobInput
from .leases import Lease
from .lifecycle import Services, by_itself
from .runner_client import Runner
from .runner_messages import RunnerAnswer

MOVING_MAX = 8  # attempts whose files are fetched or stored at once

log = structlog.get_logger(__name__)

Outcome = RunnerAnswer | Exception


class Group:
    """A few attempts, from JobStarted to whatever ends each of them; run(), then settle()."""

    def __init__(self, services: Services, attempts: Sequence[Attempt], epoch: UUID | None) -> None:
        self._services = services
        self.attempts = attempts
        self._epoch = epoch
        self._kind = KINDS[attempts[0].submitted.kind]
        self._outcomes: list[Outcome] = []
        self._until_settled = ExitStack()
        self._moving = asyncio.Semaphore(MOVING_MAX)

    async def run(self, runner: Runner, stopping: asyncio.Event, lease: Lease) -> Self:
        """Have all of them computed. Never raises for what a job did."""
        watch = asyncio.create_task(self._watch(runner, stopping, lease))
        began = time.monotonic()
        try:
            root = Path(self._until_settled.enter_context(tempfile.TemporaryDirectory(prefix="sightline-jobs-")))
            asked = await asyncio.gather(
                *(self._question(attempt, root / str(number)) for number, attempt in enumerate(self.attempts))
            )
            self._outcomes = await self._answers(runner, asked)
        except Exception as error:  # noqa: BLE001  # a full disk, no child: all of theirs to tell
            self._outcomes = [error] * len(self.attempts)
        finally:
            watch.cancel()
            await asyncio.wait({watch})
        each_s = (time.monotonic() - began) / len(self.attempts)
        for _ in self.attempts:
            metrics.JOB_SECONDS.labels(kind=self._kind.name).observe(each_s)
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
        """Results as one command; each by itself where one of them cannot be had or taken as it is."""
        completions = await asyncio.gather(*(self._completion(*one) for one in done))
        if len(done) > 1 and all(isinstance(one, Completion) for one in completions):
            try:
                await self._say([one for one in completions if isinstance(one, Completion)])
            except StoreUnavailable:
                raise
            except (Rejection, NotStorable, CommandRefused) as error:
                log.info("results_brought_one_by_one", jobs=len(done), error=repr(error))
            else:
                for attempt, _ in done:
                    job, _, _ = await self._services.commands.state(jobs.AGGREGATE, attempt.job_id, read_tail=False)
                    await attempt.conclude(job)
                return
        for attempt, answer in done:
            await attempt.settle(answer)

    async def _completion(self, attempt: Attempt, answer: RunnerAnswer) -> Completion | Exception:
        async with self._moving:
            try:
                return await attempt.completion(answer)
            except Exception as error:  # noqa: BLE001  # settle() meets it again, and says what it means
                return error

    async def _say(self, completions: Sequence[Completion]) -> None:
        by = by_itself(completions[0].result.worker, uuid7())
        await say(self._services, complete_jobs, CompleteJobs(completions=tuple(completions)), by, self._epoch)

    async def _question(self, attempt: Attempt, directory: Path) -> JobInput | Exception:
        """What the child is asked; or why it cannot be."""
        async with self._moving:
            try:
                return await attempt.question(directory)
            except Exception as error:  # noqa: BLE001  # the attempt says how it ended, whatever it was
                return error

    async def _answers(self, runner: Runner, asked: Sequence[JobInput | Exception]) -> list[Outcome]:
        questions = [one for one in asked if isinstance(one, JobInput)]
        times_s = [
            attempt.submitted.timeout_s
            for attempt, one in zip(self.attempts, asked, strict=True)
            if isinstance(one, JobInput)
        ]
        answers = await runner.run_many(questions, times_s, together=self._kind.together)
        left = iter(answers)
        return [next(left) if isinstance(one, JobInput) else one for one in asked]

    async def _watch(self, runner: Runner, stopping: asyncio.Event, lease: Lease) -> None:
        """Stop the child once nobody wants any of it. One that is cancelled meanwhile is refused at its end, which is
        near.
        """
        reason = None
        stop_by: float | None = None
        while reason is None:
            await asyncio.sleep(PROGRESS_S)
            if stopping.is_set() and stop_by is None:
                stop_by = time.monotonic() + STOP_GRACE_S
            if lease.lost:
                reason = "lease_lost"
            elif stop_by is not None and time.monotonic() >= stop_by:
                reason = "worker_stopped"
        for attempt in self.attempts:
            attempt.stop(reason)
        while True:  # as Attempt does
            runner.cancel()
            await asyncio.sleep(PROGRESS_S)
