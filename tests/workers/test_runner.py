"""The runner child and its client: what a job says, and what is left when a job takes the child with it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path

import pytest

from sightline.workers.kinds import JobInput, KindFailed
from sightline.workers.runner_client import (
    Runner,
    RunnerCancelled,
    RunnerCrowdedOut,
    RunnerDied,
    RunnerOutOfMemory,
    RunnerTimedOut,
)
from sightline.workers.runner_messages import RunnerAnswer

MEMORY_BYTES = 1024 * 1024 * 1024
HOSTILE = {"PYTHONPATH": str(Path(__file__).parent)}  # where hostile_runner.py is


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    made = Runner(memory_bytes_max=MEMORY_BYTES, module="hostile_runner", environ=HOSTILE)
    yield made
    await made.close()


def hostile(do: str, output_dir: str = "") -> JobInput:
    return JobInput("j1", "hostile", {"do": do}, output_dir=output_dir)


def noop(**params: object) -> JobInput:
    return JobInput("j2", "noop", params)


def pid_of(runner: Runner) -> int:
    assert runner.pid is not None
    return runner.pid


async def until(true: Callable[[], object], limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not true():  # noqa: ASYNC110  the kernel tells nobody of a process that is not our child
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_noop_is_answered_without_outputs_or_receipt(runner: Runner) -> None:
    answer = await runner.run(noop(), 10)
    assert answer.outputs == []
    assert answer.receipt is None
    assert answer.timings.keys() == {"run_ms"}


async def test_outputs_are_measured_and_hashed(runner: Runner, tmp_path: Path) -> None:
    answer = await runner.run(hostile("write", str(tmp_path)), 10)
    [output] = answer.outputs
    assert output.path == str(tmp_path / "a.txt")
    assert (output.name, output.content_type, output.size_bytes) == ("a.txt", "text/plain", 5)
    assert output.sha256 == sha256(b"hello").hexdigest()
    assert answer.manifest == {"n": 1}
    assert answer.timings["write_ms"] == 1.5


@pytest.mark.parametrize("do", ["escape", "claim"])
async def test_an_output_that_was_not_written_into_its_directory_is_refused(
    runner: Runner, tmp_path: Path, do: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a.txt").write_text("somebody else's")
    with pytest.raises(KindFailed) as failed:
        await runner.run(hostile(do, str(tmp_path / "out")), 10)
    assert failed.value.code == "internal_error"


async def test_progress_arrives_in_order_and_within_bounds(runner: Runner) -> None:
    heard: list[tuple[int, str]] = []
    await runner.run(hostile("progress"), 10, lambda percent, message: heard.append((percent, message)))
    assert [percent for percent, _ in heard] == [0, 50, 100]
    assert len(heard[2][1]) == 200


async def test_stray_prints_do_not_reach_the_protocol(runner: Runner) -> None:
    await runner.run(noop(), 10)
    pid = runner.pid
    assert isinstance(await runner.run(hostile("print"), 10), RunnerAnswer)
    await runner.run(noop(), 10)
    assert runner.pid == pid


async def test_garbage_on_the_pipe_itself_costs_the_child_not_the_worker(runner: Runner) -> None:
    """The control of the test above: what does get onto the pipe is noticed."""
    with pytest.raises(RunnerDied):
        await runner.run(hostile("garbage"), 10)
    await runner.run(noop(), 10)


@pytest.mark.parametrize(
    ("job", "code", "retryable"),
    [
        (hostile("fail"), "too_blue", False),
        (hostile("bug"), "internal_error", True),
        (noop(fail=True), "noop_failed", True),
        (noop(unknown=1), "rule_violated", False),
        (JobInput("j", "no-such-kind"), "unknown_kind", False),
    ],
)
async def test_a_failure_has_a_code_and_tells_no_internals(
    runner: Runner, job: JobInput, code: str, retryable: bool
) -> None:
    with pytest.raises(KindFailed) as failed:
        await runner.run(job, 10)
    assert (failed.value.code, failed.value.retryable) == (code, retryable)
    assert "secret" not in failed.value.message
    assert "Traceback" not in failed.value.message
    await runner.run(noop(), 10)


async def test_a_job_that_overruns_is_killed_and_the_next_one_runs(runner: Runner) -> None:
    await runner.start()
    pid = pid_of(runner)
    with pytest.raises(RunnerTimedOut) as failed:
        await runner.run(noop(sleep_s=60), 0.2)
    assert failed.value.code == "timeout"
    assert not alive(pid)
    await runner.run(noop(), 10)
    assert runner.pid != pid


async def test_starting_the_child_does_not_count_against_the_job(runner: Runner) -> None:
    assert runner.pid is None
    await runner.run(noop(sleep_s=0.01), 0.2)


@pytest.mark.parametrize(("do", "signal_"), [("abort", signal.SIGABRT), ("exit", None)])
async def test_a_job_that_takes_the_child_with_it(runner: Runner, do: str, signal_: int | None) -> None:
    with pytest.raises(RunnerDied) as failed:
        await runner.run(hostile(do), 10)
    assert failed.value.signal == signal_
    assert failed.value.retryable
    await runner.run(noop(), 10)


async def test_somebody_kills_the_child_under_a_job(runner: Runner) -> None:
    await runner.start()
    task = asyncio.create_task(runner.run(noop(sleep_s=60), 30))
    await asyncio.sleep(0)
    os.kill(pid_of(runner), signal.SIGKILL)
    with pytest.raises(RunnerDied) as failed:
        await task
    assert failed.value.signal == signal.SIGKILL
    await runner.run(noop(), 10)


async def test_a_child_that_died_while_idle_costs_no_job(runner: Runner) -> None:
    await runner.run(noop(), 10)
    pid = runner.pid
    runner.cancel()
    await runner.run(noop(), 10)
    assert runner.pid != pid


async def test_memory_is_bounded(runner: Runner) -> None:
    await runner.start()
    pid = pid_of(runner)
    with pytest.raises(RunnerOutOfMemory):
        await runner.run(hostile("memory"), 10)
    assert not alive(pid)
    await runner.run(noop(), 10)


async def test_without_the_bound_the_same_job_passes() -> None:
    """The control of the test above."""
    free = Runner(memory_bytes_max=0, module="hostile_runner", environ=HOSTILE)
    try:
        await free.run(hostile("memory"), 30)
    finally:
        await free.close()


@pytest.mark.parametrize("do", ["socket", "program"])
async def test_a_kind_reaches_no_network_and_starts_no_program(runner: Runner, do: str) -> None:
    with pytest.raises(KindFailed) as failed:
        await runner.run(hostile(do), 10)
    assert "PermissionError" in failed.value.message


async def test_what_the_child_sees(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@host/db")
    with open("/dev/zero", "rb"):  # noqa: ASYNC230, PTH123  a descriptor of ours that it must not inherit
        seen = (await runner.run(hostile("look"), 10)).manifest
    assert seen["cwd"] == []
    assert not {"SECRET_KEY", "DATABASE_URL"} & seen["environ"].keys()
    assert not any("zero" in target for target in seen["fds"])
    limits = dict(line.split("  ", 1) for line in seen["limits"].splitlines()[1:])
    assert limits["Max core file size"].split()[:2] == ["0", "0"]
    assert limits["Max open files"].split()[:2] == ["128", "128"]
    assert limits["Max address space"].split()[:2] == [str(MEMORY_BYTES)] * 2
    assert "numpy" not in seen["modules"]
    assert "onnxruntime" not in seen["modules"]


async def test_cancel_kills_the_job_and_only_that(runner: Runner) -> None:
    task = asyncio.create_task(runner.run(noop(sleep_s=60), 30))
    await until(lambda: runner.pid)
    runner.cancel()
    with pytest.raises(RunnerCancelled):
        await task
    await runner.run(noop(), 10)


async def test_a_cancelled_waiter_leaves_no_answer_behind(runner: Runner) -> None:
    await runner.start()
    task = asyncio.create_task(runner.run(hostile("progress"), 10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    heard: list[int] = []
    await runner.run(noop(), 10, lambda percent, _: heard.append(percent))
    assert heard == []


async def test_callers_take_turns(runner: Runner) -> None:
    answers = await asyncio.gather(*(runner.run(noop(sleep_s=0.001), 10) for _ in range(20)))
    assert len(answers) == 20


async def test_many_jobs_in_one_go_and_only_the_guilty_fail(runner: Runner) -> None:
    jobs = [noop() for _ in range(100)]
    jobs[10] = noop(fail=True)
    jobs[20] = hostile("abort")
    jobs[99] = hostile("memory")
    said = await runner.run_many(jobs, 60)
    kinds = [type(one) for one in said]
    assert kinds[10] is KindFailed
    assert kinds[20] is RunnerDied
    assert kinds[99] is RunnerOutOfMemory
    assert all(kind is RunnerAnswer for n, kind in enumerate(kinds) if n not in {10, 20, 99})


@pytest.mark.parametrize("together", [False, True])
async def test_what_lies_behind_a_job_that_overruns_is_crowded_out_and_may_be_tried_again(
    runner: Runner, *, together: bool
) -> None:
    """Their time passed as well; nobody says of them that they overran."""
    await runner.start()
    first = await runner.run_many([hostile("sleep"), hostile("look")], 1, together=together)
    behind = await runner.run_many([hostile("look"), hostile("sleep"), hostile("look")], 2)
    said = first + behind
    assert [getattr(one, "code", "done") for one in said] == [
        "crowded_out" if together else "timeout",
        "crowded_out",
        "done",
        "crowded_out",
        "crowded_out",
    ]
    assert all(one.retryable for one in said if isinstance(one, RunnerCrowdedOut))


async def test_jobs_that_are_run_at_once_are_answered_one_by_one(runner: Runner) -> None:
    said = await runner.run_many([hostile(do) for do in ("look", "fail", "look")], 10, together=True)
    assert [type(one) for one in said] == [RunnerAnswer, KindFailed, RunnerAnswer]
    assert isinstance(said[0], RunnerAnswer)
    assert said[0].manifest == {"together": 3}


@pytest.mark.parametrize(("do", "guilty"), [("bug", "internal_error"), ("abort", "runner_died")])
async def test_what_fails_at_once_is_run_one_by_one_and_only_the_guilty_fail(
    runner: Runner, do: str, guilty: str
) -> None:
    said = await runner.run_many([hostile("look"), hostile(do), hostile("look")], 10, together=True)
    assert isinstance(said[1], KindFailed)
    assert said[1].code == guilty
    for one in (said[0], said[2]):
        assert isinstance(one, RunnerAnswer)
        assert "together" not in one.manifest


async def test_a_runner_that_cannot_start_says_so_once() -> None:
    broken = Runner(memory_bytes_max=MEMORY_BYTES, module="no_such_module")
    with pytest.raises(RunnerDied):
        await broken.run_many([noop(), noop()], 10)
    await broken.close()


ORPHAN = """
import asyncio, sys
from sightline.workers.kinds import JobInput
from sightline.workers.runner_client import Runner

async def main():
    runner = Runner(memory_bytes_max=1 << 30)
    await runner.start()
    print(runner.pid, flush=True)
    await runner.run(JobInput("j", "noop", {"sleep_s": 300}), 600)

asyncio.run(main())
"""


async def test_the_child_does_not_outlive_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-P", "-c", ORPHAN], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220  # a start that blocks is what the test wants
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    await until(lambda: not alive(pid))
