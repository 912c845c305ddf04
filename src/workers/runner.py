"""The runner child: `python -m sightline.workers.runner`, started by `runner_client.py`; runs one job after another.

It has no database, no network and no secrets: files in, files out. Whatever a kind does, the worker survives it.
"""

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from ..adapters.confinement import Channel, CpuTime, enter
from .kinds import JobInput, JobOutput, KindFailed, Progress, TogetherModule, module_of
from .runner_messages import Output, RunnerAnswer, RunnerError, RunnerProgress, decode_question, encode

STACK_CHARACTERS_MAX = 20_000
CPU_TIME = CpuTime()


def main() -> None:
    """Answer until the parent closes its end, or dies."""
    channel = enter()
    for question in channel:
        for said in answers(question, channel):
            channel.send(encode(said))


def answers(question: bytes, channel: Channel) -> Iterator[RunnerAnswer | RunnerError]:
    """An answer for each job that was asked for, in their order."""

    def progress(percent: int, message: str) -> None:
        channel.send(encode(RunnerProgress(percent=min(100, max(0, percent)), message=message[:200])))

    try:
        jobs = decode_question(question)
    except msgspec.MsgspecError as error:
        yield RunnerError("internal_error", f"no job: {error}", retryable=False, stack=_stack())
        return
    if isinstance(jobs, JobInput):
        yield answer(jobs, partial(_alone, jobs, progress))
        return
    for job, done in zip(jobs, _together(jobs), strict=True):
        yield answer(job, partial(_one_of_them, job, done))


def answer(job: JobInput, run: Callable[[], JobOutput]) -> RunnerAnswer | RunnerError:
    """What became of one job. Whatever it raises is an answer; only the death of this process is none."""
    try:
        if job.cpu_s_max:
            CPU_TIME.allow(job.cpu_s_max)
        began = time.perf_counter()
        done = run()
        outputs = [measured(Path(job.output_dir), one.name, one.content_type) for one in done.outputs]
        return _answer(done, outputs, (time.perf_counter() - began) * 1000)
    except KindFailed as failed:
        stack = _stack() if failed.__cause__ else ""
        return RunnerError(failed.code, failed.message, failed.retryable, stack)
    except msgspec.MsgspecError as error:
        return RunnerError("rule_violated", f"the job does not fit its kind: {error}", retryable=False, stack=_stack())
    except MemoryError:
        return RunnerError(
            "out_of_memory", "the job needs more memory than it may use", retryable=False, stack=_stack()
        )
    except Exception as error:  # noqa: BLE001  a bug in a kind is one job's failure, not the runner's
        message = f"the kind failed unexpectedly ({type(error).__name__})"
        return RunnerError("internal_error", message, retryable=True, stack=_stack())


def _alone(job: JobInput, progress: Progress) -> JobOutput:
    return module_of(job.kind).run(job, progress)


def _together(jobs: Sequence[JobInput]) -> Sequence[JobOutput | KindFailed | None]:
    """What became of each of some jobs of one kind that were run at once; nothing where that failed as a whole."""
    try:
        CPU_TIME.allow(sum(job.cpu_s_max for job in jobs))
        done = cast("TogetherModule", module_of(jobs[0].kind)).run_many(jobs, _silently)
    except Exception:  # noqa: BLE001  # each is run alone then, and tells its own
        return [None] * len(jobs)
    return done if len(done) == len(jobs) else [None] * len(jobs)


def _silently(percent: int, message: str) -> None:
    """Jobs that run together are short."""


def _one_of_them(job: JobInput, done: JobOutput | KindFailed | None) -> JobOutput:
    """What became of it among the others. What went wrong with all is found again with the one whose fault it is."""
    if done is None:
        return _alone(job, _silently)
    if isinstance(done, KindFailed):
        raise done
    return done


def measured(directory: Path, name: str, content_type: str) -> Output:
    """Size and digest of an output.

    Raises:
        KindFailed: `internal_error`: the kind named something outside its directory, or wrote nothing there.
    """
    path = directory / name
    if not name or name != path.name or path.is_symlink() or not path.is_file():
        raise KindFailed("internal_error", f"the kind names an output that it did not write: {name!r}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Output(name, str(path), content_type, path.stat().st_size, sha256)


def _answer(done: JobOutput, outputs: list[Output], run_ms: float) -> RunnerAnswer:
    timings = {name: round(value, 3) for name, value in {**done.timings, "run_ms": run_ms}.items()}
    return RunnerAnswer(outputs=outputs, manifest=done.manifest, timings=timings, receipt=done.receipt)


def _stack() -> str:
    return traceback.format_exc()[-STACK_CHARACTERS_MAX:]


if __name__ == "__main__":
    main()
