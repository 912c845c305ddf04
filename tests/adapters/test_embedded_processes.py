"""Children end when their parent does, stay within their limits, and are found out when they cannot start."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.conftest_parts import is_running, wait_for

from sightline.adapters.embedded.processes import LOG_SIZE_BYTES_MAX, RunAs, launcher_argv, log_tail, spawn, terminate

SLEEP = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
DEAF = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]
PARENT = """
import os, subprocess, sys, time
from sightline.adapters.embedded.processes import spawn
argv = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
child = {start}
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def child_of_a_killed_parent(start: str) -> int:
    with subprocess.Popen([sys.executable, "-c", PARENT.format(start=start)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    return child


def test_a_child_ends_with_its_killed_parent() -> None:
    child = child_of_a_killed_parent("spawn(argv, stdout=subprocess.PIPE)")
    wait_for(lambda: not is_running(child))


def test_without_the_launcher_it_would_not() -> None:
    child = child_of_a_killed_parent("subprocess.Popen(argv, stdout=subprocess.PIPE)")
    try:
        with pytest.raises(TimeoutError):
            wait_for(lambda: not is_running(child), timeout_s=0.3)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    command = launcher_argv([sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"])
    command[4] = "1"  # Another parent than the one it will find.
    assert subprocess.run(command, check=False).returncode != 0
    assert not (tmp_path / "ran").exists()


def test_only_the_main_thread_starts_children() -> None:
    refused: list[BaseException] = []

    def start(*, lasting_thread: bool) -> None:
        try:
            spawn(["true"], lasting_thread=lasting_thread).wait()
        except RuntimeError as error:
            refused.append(error)

    for lasting in (True, False):
        thread = threading.Thread(target=start, kwargs={"lasting_thread": lasting})
        thread.start()
        thread.join()
        assert len(refused) == (0 if lasting else 1)


def test_a_program_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        spawn(["no-such-program"])


def test_memory_is_limited() -> None:
    eat = [sys.executable, "-S", "-c", "b = bytearray(512 * 1024 * 1024)"]
    assert spawn(eat, memory_bytes_max=256 * 1024 * 1024, stderr=subprocess.DEVNULL).wait() == 1
    assert spawn(eat, memory_bytes_max=2 * 1024**3).wait() == 0


def test_a_child_that_will_not_end_is_killed() -> None:
    deaf = spawn(DEAF, stdout=subprocess.PIPE)
    willing = spawn(SLEEP, stdout=subprocess.PIPE)
    for child in (deaf, willing):
        assert child.stdout
        with child.stdout as out:
            out.readline()
    assert terminate(willing, grace_s=5) == -signal.SIGTERM
    assert terminate(deaf, grace_s=0.05) == -signal.SIGKILL
    assert terminate(deaf, grace_s=0.05) == -signal.SIGKILL  # Twice is once.


def test_a_child_has_its_own_session_default_signals_and_no_open_files(tmp_path: Path) -> None:
    look = "import os; print(os.getsid(0) == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd')))[:4])"
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)  # noqa: FBT003  its only form
        spawn([sys.executable, "-S", "-c", look], log_path=tmp_path / "log").wait()
    assert (tmp_path / "log").read_text() == "True [0, 1, 2, 3]\n"  # 3 is the listing itself.
    spawn(["grep", "SigIgn", "/proc/self/status"], log_path=tmp_path / "signals").wait()
    assert int((tmp_path / "signals").read_text().split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * (LOG_SIZE_BYTES_MAX + 1))
    spawn([sys.executable, "-S", "-c", "print('one\\ntwo')"], log_path=log).wait()
    assert log_tail(log) == "one\ntwo"
    assert (tmp_path / "log.1").stat().st_size == LOG_SIZE_BYTES_MAX + 1


@pytest.mark.parametrize("namespace", [True, False])
def test_another_identity(namespace: bool, tmp_path: Path) -> None:
    if os.geteuid() != 0 and not namespace:
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run(launcher_argv(["true"], run_as=RunAs(65534, 65534, namespace=False)), check=True)
        return
    show = ["cat", "/proc/self/uid_map", "/proc/self/gid_map"] if namespace else ["id", "-u"]
    spawn(show, run_as=RunAs(65534, 65534, namespace=namespace), log_path=tmp_path / "log").wait()
    seen = (tmp_path / "log").read_text().split()
    assert seen == (["65534", str(os.geteuid()), "1", "65534", str(os.getegid()), "1"] if namespace else ["65534"])
