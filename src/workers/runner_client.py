"""The worker's end of the runner child: asks, waits, and replaces it when it dies or overruns.

Each failure is a `KindFailed`, so a worker handles one exception, whose code and retryable say what to do next.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import assert_never

import structlog
from msgspec.structs import replace

from ..adapters.child import STARTUP_S_MAX, Child, ChildDied
from .kinds import JobInput, KindFailed
from .runner_messages import RunnerAnswer, RunnerError, RunnerProgress, decode_said, encode

BATCH_JOBS_MAX = 1024

log = structlog.get_logger("sightline.runner")

OnProgress = Callable[[int, str], None]


class RunnerTimedOut(KindFailed):
    """The job overran. Not retried: the limit was the caller's own, and the next attempt would meet it too."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__("timeout", f"not done within {timeout_s:g} s", retryable=False)


class RunnerDied(KindFailed):
    """The child died under the job.

    Attributes:
        signal: that killed it, or none if it exited. SIGKILL without our doing is often the host's out-of-memory
            killer, SIGABRT a library that could not allocate.
    """

    def __init__(self, reason: str, signal: int | None = None) -> None:
        super().__init__("runner_died", f"the runner {reason}", retryable=True)
        self.signal = signal


class RunnerOutOfMemory(KindFailed):
    """The job needs more than the child may have. The child is replaced: what a failed allocation left is unknown."""

    def __init__(self, message: str) -> None:
        super().__init__("out_of_memory", message, retryable=False)


class RunnerCrowdedOut(KindFailed):
    """The job's time passed while those before it in its group ran, or before it could have all of it."""

    def __init__(self) -> None:
        super().__init__("crowded_out", "its time passed while others of its group ran", retryable=True)


class RunnerCancelled(KindFailed):
    """`cancel` was called while the job ran."""

    def __init__(self) -> None:
        super().__init__("cancelled", "cancelled while it ran", retryable=False)


class Runner:
    """One child, one job at a time; more callers wait their turn.

    Args:
        memory_bytes_max: of the child's address space; 0 sets none, which CUDA needs.
        module: the child's program.
        environ: added to what the child's environment has.
        readable: directories that hold what its jobs read, models for one, beside the temporary one.
    """

    def __init__(
        self,
        *,
        memory_bytes_max: int,
        module: str = "sightline.workers.runner",
        environ: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
    ) -> None:
        self._child = Child(module, memory_bytes_max=memory_bytes_max, environ=environ, readable=readable, writes=True)
        self._turn = asyncio.Lock()
        self._cancelled = False

    @property
    def pid(self) -> int | None:
        """Of the child; none before the first job and between a death and the next job."""
        return self._child.pid

    async def start(self) -> None:
        """Have the child ready before the first job, which otherwise waits for it.

        Raises:
            RunnerDied: it cannot be started.
        """
        async with self._turn:
            await self._start()

    async def run(self, job: JobInput, timeout_s: float, on_progress: OnProgress | None = None) -> RunnerAnswer:
        """Run one job, in at most `timeout_s` once the child is up.

        Raises:
            KindFailed: the kind says why; or RunnerTimedOut, RunnerDied, RunnerOutOfMemory, RunnerCancelled.
        """
        [said] = await self.run_many([job], timeout_s, on_progress)
        if isinstance(said, KindFailed):
            raise said
        return said

    async def run_many(
        self,
        jobs: Sequence[JobInput],
        timeout_s: float,
        on_progress: OnProgress | None = None,
        *,
        together: bool = False,
    ) -> list[RunnerAnswer | KindFailed]:
        """Run `jobs` (at most BATCH_JOBS_MAX) one after another, all in `timeout_s` once the child is up; for jobs so
        short that asking one by one would cost more than they do. One that fails leaves the others right: those behind
        it run on the next child, or are crowded out when the time is up. `together` lets their kind run them all at
        once; where the child does not outlive that, they run one after another.

        Raises:
            RunnerDied: the child cannot be started, which is no job's fault.
        """
        if len(jobs) > BATCH_JOBS_MAX:
            raise ValueError(f"{len(jobs)} jobs at once are more than {BATCH_JOBS_MAX}")
        said: list[RunnerAnswer | KindFailed] = []
        time_up: float | None = None
        async with self._turn:
            self._cancelled = False
            while len(said) < len(jobs):  # each round but the one of all at once answers at least one
                if self._cancelled:
                    said += [RunnerCancelled() for _ in jobs[len(said) :]]
                    break
                await self._start()
                left = [_bounded(job, timeout_s) for job in jobs[len(said) :]]
                at_once, together = together and len(left) > 1, False
                had_all = time_up is None and not at_once
                time_up = time_up or asyncio.get_running_loop().time() + timeout_s
                ask = self._at_once if at_once else self._in_turn
                before = len(said)
                try:
                    async with asyncio.timeout_at(time_up):
                        await ask(left, on_progress, said)
                except TimeoutError:
                    await self._child.kill()
                    if had_all and len(said) == before:
                        said.append(RunnerTimedOut(timeout_s))
                    said += [RunnerCrowdedOut() for _ in jobs[len(said) :]]
                except KindFailed as failed:
                    await self._child.kill()
                    if not at_once:
                        said.append(failed)
                except BaseException:
                    await self._child.kill()  # its next words would be about a job that nobody waits for
                    raise
        return said

    def cancel(self) -> None:
        """Kill the child under whatever it runs, which fails with RunnerCancelled."""
        self._cancelled = self._turn.locked()
        self._child.interrupt()

    async def close(self) -> None:
        """Kill the child; nothing is left of it."""
        self.cancel()
        async with self._turn:
            await self._child.kill()

    async def _start(self) -> None:
        try:
            await self._child.start()
        except ChildDied as died:
            raise (RunnerCancelled() if self._cancelled else RunnerDied(died.reason, died.signal)) from died
        except TimeoutError as error:
            raise RunnerDied(f"was not ready within {STARTUP_S_MAX:g} s") from error

    async def _in_turn(
        self, jobs: Sequence[JobInput], on_progress: OnProgress | None, said: list[RunnerAnswer | KindFailed]
    ) -> None:
        """Ask for all of `jobs`, append what each led to; a failure that the child did not outlive is raised."""
        self._child.send([encode(job) for job in jobs])
        for job in jobs:
            said.append(await self._answer(job, on_progress))  # noqa: PERF401  # each counts at once: the next may raise

    async def _at_once(
        self, jobs: Sequence[JobInput], on_progress: OnProgress | None, said: list[RunnerAnswer | KindFailed]
    ) -> None:
        """The same, as one question, whose answers come when all are done. A failure leaves none of them."""
        self._child.send([encode(jobs)])
        said += [await self._answer(job, on_progress) for job in jobs]

    async def _answer(self, job: JobInput, on_progress: OnProgress | None) -> RunnerAnswer | KindFailed:
        while True:
            try:
                said = decode_said(await self._child.receive())
            except ChildDied as died:
                log.warning("the runner died", job_id=job.job_id, kind=job.kind, reason=died.reason)
                raise (RunnerCancelled() if self._cancelled else RunnerDied(died.reason, died.signal)) from died
            match said:
                case RunnerProgress(percent=percent, message=message):
                    if on_progress is not None:
                        on_progress(percent, message)
                case RunnerAnswer() as answer:
                    return answer
                case RunnerError() as error:
                    if error.stack:
                        log.error("a job failed", job_id=job.job_id, kind=job.kind, code=error.code, stack=error.stack)
                    if error.code == "out_of_memory":
                        raise RunnerOutOfMemory(error.message)
                    return KindFailed(error.code, error.message, retryable=error.retryable)
                case never:
                    assert_never(never)


def _bounded(job: JobInput, timeout_s: float) -> JobInput:
    """One core more than its session has: a runtime keeps threads of its own. The clock is the tighter bound."""
    return replace(job, cpu_s_max=timeout_s * (job.intra_op_threads + 1))
