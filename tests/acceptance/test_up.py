"""`sightline up`: one command, all processes; what dies is started again, what is told to stop leaves nothing."""

import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest_parts import is_running, wait_for
from tests.conftest_up import Up, free_port, is_part

from sightline.adapters.embedded.identity import user_namespaces_work
from sightline.adapters.embedded.processes import RunAs

STOP_S = 60  # a guard: its grace and what the parts may take are in the settings, and tested where they are
NOBODY = 65534
PARTS = ("serve", "work", "project", "tick", "notarize", "deliver", "postgres", "valkey-server")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not pytest's own directory: that one is closed to other users, and kept."""
    with tempfile.TemporaryDirectory(prefix="sightline-up-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "data"


def _pid(up: Up, part: str) -> int:
    return min(pid for pid, line in up.pids().items() if is_part(line, part))


def test_a_second_start_answers_what_the_first_one_was_told(data_dir: Path) -> None:
    """Stopped in the middle of a long job, which the second start takes up again."""
    port = free_port()
    first = Up(data_dir, port)
    try:
        print(f"ready after {first.until_ready():.1f} s")
        job = first.until_job(first.post("/v1/jobs", {"kind": "noop"})["id"], "completed")
        long = first.post("/v1/jobs", {"kind": "noop", "params": {"sleep_s": 600}})
        first.until_job(long["id"], "processing")
        log = first.log_of_events()
        pids = list(first.pids())
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(STOP_S) == 0
        assert [pid for pid in pids if is_running(pid)] == []
        assert "process_killed" not in first.log_path.read_text(), "each ended by itself, the worker within its grace"
    finally:
        first.stop()
    second = Up(data_dir, port)
    try:
        print(f"ready again after {second.until_ready():.1f} s")
        assert second.get(f"/v1/jobs/{job['id']}") == job
        assert second.log_of_events()[: len(log)] == log
        wait_for(lambda: second.get(f"/v1/jobs/{long['id']}")["attempt"] == 2)
    finally:
        second.stop()


def test_a_killed_supervisor_leaves_no_process(data_dir: Path) -> None:
    """Nor does it while a job runs: the runner is a grandchild."""
    up = Up(data_dir, free_port())
    try:
        up.until_ready()
        job = up.post("/v1/jobs", {"kind": "noop", "params": {"sleep_s": 600}})
        up.until_job(job["id"], "processing")
        wait_for(lambda: any(line.endswith("sightline.workers.runner") for line in up.pids().values()))
        pids = list(up.pids())
        assert {part for part in PARTS if any(is_part(line, part) for line in up.pids().values())} == set(PARTS)
        up.process.kill()
        up.process.wait(STOP_S)
        wait_for(lambda: not any(map(is_running, pids)))
        again = Up(data_dir, free_port())
        try:
            again.until_ready()
            assert again.get(f"/v1/jobs/{job['id']}")["status"] in ("processing", "pending")
        finally:
            again.stop()
    finally:
        up.stop()


def test_an_ordinary_user_runs_it_too(data_dir: Path) -> None:
    """As `nobody`, on a directory of its own; where the tests themselves are no root, as whoever runs them."""
    user = NOBODY if os.geteuid() == 0 else None
    run_as = None if user is None else RunAs(user, user, namespace=user_namespaces_work(pwd.getpwuid(user)))
    data_dir.mkdir()
    if run_as is not None and not run_as.namespace:
        os.chown(data_dir, NOBODY, NOBODY)
    up = Up(data_dir, free_port(), run_as=run_as, HOME="/nonexistent")
    try:
        up.until_ready()
        job = up.post("/v1/jobs", {"kind": "noop"})
        up.until_job(job["id"], "completed")
        maps = {Path(f"/proc/{pid}/uid_map").read_text().split()[0] for pid in up.pids()}
        assert user is None or not run_as or not run_as.namespace or maps == {str(NOBODY)}
    finally:
        up.stop()


@pytest.fixture(scope="module")
def second_up(running: Up) -> "Iterator[subprocess.Popen[str]]":
    """Started on a directory that is taken. It waits for the owner to leave: meanwhile the tests below go by."""
    command = ["up", "--data-dir", str(running.data_dir), "--port", str(free_port())]
    with subprocess.Popen([sys.executable, "-m", "sightline", *command], stderr=subprocess.PIPE, text=True) as second:
        yield second
        second.kill()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("second_up")
def test_whatever_is_killed_is_started_again_and_serves(running: Up, part: str) -> None:
    wait_for(running.ready)
    before = _pid(running, part)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: not is_running(before))
    wait_for(lambda: any(is_part(line, part) and pid != before for pid, line in running.pids().items()))
    wait_for(running.ready)
    job: dict[str, str] = {}

    def submitted() -> bool:
        answer = running.client.post("/v1/jobs", json={"kind": "noop"}, headers={"Idempotency-Key": f"after-{before}"})
        job.update(answer.json())
        return answer.status_code == 201

    wait_for(submitted)
    running.until_job(job["id"], "completed")


def test_the_commands_of_the_operator_look_at_a_running_service(running: Up) -> None:
    wait_for(running.ready)
    for command, found in (("status", '"lag"'), ("events", '"type" : "model.registered"'), ("migrate", "head")):
        answer = subprocess.run(
            [sys.executable, "-m", "sightline", command, "--data-dir", str(running.data_dir)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        assert found in answer.stdout
    assert running.ready(), "a guest leaves the parts alone"


def test_a_second_up_on_the_same_directory_says_why_it_will_not(
    running: Up, second_up: "subprocess.Popen[str]"
) -> None:
    _, said = second_up.communicate(timeout=120)
    assert second_up.returncode == 1
    assert "Traceback" not in said
    assert str(running.data_dir) in said
    assert running.ready()
