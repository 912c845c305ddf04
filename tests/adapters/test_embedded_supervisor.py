"""`Supervisor`, as a process of its own: what dies is started again, what is told to stop stops, nothing is left."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.conftest_parts import is_running, wait_for

SUPERVISOR = """
import ctypes, json, os, pathlib, sys
import structlog
from sightline.adapters.embedded.charges import ProcessSpec
from sightline.adapters.embedded.parts import Parts
from sightline.adapters.embedded.supervisor import Supervisor
from sightline.adapters.settings import Settings

structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory())
data_dir, children, grace_s = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: it inherits orphans, as process 1 does

def plan(settings):
    print(json.dumps({"event": "planning", "url": settings.database_url}), flush=True)
    if children is None:
        sys.stdin.readline()
    return [ProcessSpec(name=name, argv=(sys.executable, "-S", "-c", code),
                        ready=(data_dir / f"{name}.ready").exists if name == "slow" else None)
            for name, code in (children or {}).items()]

parts = Parts(Settings(data_dir=data_dir), attach=False)
sys.exit(Supervisor(parts, plan, grace_s=grace_s, on_ready=lambda: print('{"event": "all_ready"}', flush=True)).run())
"""
GRACE_S = 120.0
STOP_S_MAX = 60.0  # less than the grace, however busy the machine is: nobody waited for it
SLEEP = "import time; time.sleep(60)"
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"event": "deaf"}', flush=True)
time.sleep(60)
"""


class Watched:
    """A supervisor, and what it has logged so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    def until(self, event: str, **fields: object) -> dict[str, Any]:
        """The next line of that kind; an end of the output fails."""
        assert self.process.stdout
        for text in self.process.stdout:
            line: dict[str, Any] = json.loads(text)
            self.lines.append(line)
            if line.get("event") == event and fields.items() <= line.items():
                return line
        raise AssertionError(f"no {event} {fields} in {self.lines}")

    def stop(self, *numbers: int) -> float:
        """Seconds from the first of the signals to the end, with exit status 0 and nothing left of the processes."""
        began = time.monotonic()
        for number in numbers or (signal.SIGTERM,):
            self.process.send_signal(number)
            time.sleep(0.05 if len(numbers) > 1 else 0)
        assert self.process.stdout
        self.lines += [json.loads(line) for line in self.process.stdout]
        assert self.process.wait(60) == 0
        assert self.left() == []
        return time.monotonic() - began

    def left(self) -> list[int]:
        pids = {line["pid"] for line in self.lines if line.get("event") == "process_started"}
        return [pid for pid in pids if is_running(pid)]


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sightline-tests-") as directory:
        yield Path(directory)


@contextmanager
def supervised(data_dir: Path, children: dict[str, str] | None, grace_s: float = GRACE_S) -> Iterator[Watched]:
    run = [sys.executable, "-c", SUPERVISOR, str(data_dir), json.dumps(children), str(grace_s)]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Watched(process)
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def postgres_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def test_it_starts_waits_for_readiness_and_stops_in_order(data_dir: Path) -> None:
    (data_dir / "slow.ready").unlink(missing_ok=True)
    with supervised(data_dir, {"slow": SLEEP, "other": SLEEP}) as watched:
        assert answers(watched.until("planning")["url"])
        watched.until("process_ready", process="other")
        (data_dir / "slow.ready").touch()
        watched.until("process_ready", process="slow")
        watched.until("all_ready")
        assert watched.stop() < STOP_S_MAX
        assert not (data_dir / "postgres" / "data" / "postmaster.pid").exists()


def test_a_dead_process_is_started_again_with_a_growing_pause(data_dir: Path) -> None:
    with supervised(data_dir, {"brief": "raise SystemExit(3)", "steady": SLEEP}) as watched:
        deaths = [watched.until("process_died", process="brief") for _ in range(4)]
        assert [death["again_in_s"] for death in deaths] == [0.1, 0.2, 0.4, 0.8]
        assert {death["status"] for death in deaths} == {3}
        steady = next(line for line in watched.lines if line.get("process") == "steady")
        os.kill(steady["pid"], signal.SIGKILL)
        assert watched.until("process_died", process="steady")["status"] == -signal.SIGKILL
        assert watched.until("process_started", process="steady")["starts"] == 2
        assert watched.stop() < STOP_S_MAX


def test_killed_parts_are_started_again_and_their_orphans_buried(data_dir: Path) -> None:
    with supervised(data_dir, {"steady": SLEEP}) as watched:
        url = watched.until("planning")["url"]
        watched.until("all_ready")
        for _ in range(2):
            os.kill(postgres_pid(data_dir), signal.SIGKILL)
            watched.until("process_started", process="postgres")
            wait_for(lambda: answers(url))
        valkey = Path(f"/proc/{watched.process.pid}/task/{watched.process.pid}/children").read_text().split()
        pid = next(int(pid) for pid in valkey if Path(f"/proc/{pid}/comm").read_text() == "valkey-server\n")
        os.kill(pid, signal.SIGKILL)
        watched.until("process_started", process="valkey")
        wait_for(lambda: zombies_of(watched.process.pid) == [])
        assert watched.stop() < STOP_S_MAX


def zombies_of(parent: int) -> list[str]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in children if not is_running(int(pid))]


def test_a_deaf_process_is_killed_after_its_grace(data_dir: Path) -> None:
    with supervised(data_dir, {"deaf": DEAF}, grace_s=0.5) as watched:
        watched.until("deaf")
        assert 0.5 <= watched.stop() < STOP_S_MAX
        assert any(line.get("event") == "process_killed" for line in watched.lines)


def test_a_second_signal_does_not_wait(data_dir: Path) -> None:
    with supervised(data_dir, {"deaf": DEAF}, grace_s=GRACE_S) as watched:
        watched.until("deaf")
        assert watched.stop(signal.SIGINT, signal.SIGINT) < STOP_S_MAX


def test_it_can_be_stopped_while_it_starts(data_dir: Path) -> None:
    with supervised(data_dir, None) as watched:
        url = watched.until("planning")["url"]
        assert watched.stop() < STOP_S_MAX
        assert not answers(url)


def test_a_killed_supervisor_leaves_no_process(data_dir: Path) -> None:
    with supervised(data_dir, {"one": SLEEP, "two": DEAF}) as watched:
        url = watched.until("planning")["url"]
        watched.until("all_ready")
        postgres = postgres_pid(data_dir)
        watched.process.kill()
        watched.process.wait()
        wait_for(lambda: watched.left() == [] and not is_running(postgres) and not answers(url))
    with supervised(data_dir, {"one": SLEEP}) as watched:
        watched.until("all_ready")
        assert watched.stop() < STOP_S_MAX
