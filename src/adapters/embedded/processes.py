"""Child processes that end when their parent does.

Every process that Sightline starts is started here. The rule that makes `kill -9` of any of them leave nothing behind:
each one starts its children through `spawn` (never `multiprocessing`, never a shell that forks), so that the kernel
passes the death on, generation by generation. PostgreSQL does the same for its own children.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from msgspec import Struct

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_SIZE_BYTES_MAX = 10 * 1024 * 1024  # a longer log is set aside at the next start, one generation kept
KILL_WAIT_S = 5.0


class RunAs(Struct, frozen=True):
    """Another identity for a child.

    Attributes:
        namespace: True: this user, seen as `uid` in a user namespace of the child's own, so that files keep their
            owner. False: really become `uid`, which needs root.
    """

    uid: int
    gid: int
    namespace: bool

    def __str__(self) -> str:
        return f"{'map' if self.namespace else 'drop'}:{self.uid}:{self.gid}"


def launcher_argv(
    argv: Sequence[str | Path],
    *,
    death_signal: int = signal.SIGKILL,
    memory_bytes_max: int = 0,
    run_as: RunAs | None = None,
    lasting_thread: bool = False,
) -> list[str]:
    """The command line that becomes `argv` under these limits; for `asyncio.create_subprocess_exec` and its like.

    Raises:
        FileNotFoundError: no such program.
        RuntimeError: called from a thread other than the main one. The kernel sends `death_signal` when the *thread*
            that started the child ends; `lasting_thread=True` is the caller's word that this one lasts as long as
            its process.
    """
    if threading.current_thread() is not threading.main_thread() and not lasting_thread:
        raise RuntimeError("a child started here would be killed when this thread ends; start it from the main thread")
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(f"{argv[0]}: no such program, or it may not be executed")
    isolated = [sys.executable, "-I", "-S", str(LAUNCHER)]
    order = [os.getpid(), int(death_signal), memory_bytes_max, run_as or "keep"]
    return [*isolated, *map(str, order), program, *map(str, argv[1:])]


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log_path: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    death_signal: int = signal.SIGKILL,
    memory_bytes_max: int = 0,
    run_as: RunAs | None = None,
    lasting_thread: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start `argv` in a session of its own, so that a Ctrl-C in the terminal reaches only its supervisor.

    `env` is its whole environment, None this process's. `log_path` takes stdout and stderr where they are not given.
    `death_signal` is what it gets when this process ends, however it ends. `memory_bytes_max` limits its address
    space (RLIMIT_AS); 0 is no limit. `lasting_thread` and what is raised: see `launcher_argv`.
    """
    command = launcher_argv(
        argv,
        death_signal=death_signal,
        memory_bytes_max=memory_bytes_max,
        run_as=run_as,
        lasting_thread=lasting_thread,
    )
    log = _open_log(log_path) if log_path else None
    try:
        return subprocess.Popen(
            command,
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=log if stdout is None else stdout,
            stderr=log if stderr is None else stderr,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    finally:
        if log is not None:
            os.close(log)


def terminate(process: "subprocess.Popen[bytes]", *, grace_s: float, first: int = signal.SIGTERM) -> int:
    """Ask with `first`, wait `grace_s`, then kill the child and what is left of its session. Reaps it.

    Returns:
        The exit status, negative for a signal.
    """
    process.send_signal(first)  # Does nothing to a child that was reaped already.
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        return kill(process)


def kill(process: "subprocess.Popen[bytes]") -> int:
    """SIGKILL to the child's whole process group; reaps the child and returns its exit status."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # Not covered by the line above in the instant before the child has its own group.
    return process.wait(KILL_WAIT_S)


def log_tail(path: Path, *, lines_max: int = 8) -> str:
    """The end of a log, for an error message; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines_max:])
    except OSError:
        return ""


def _open_log(path: Path) -> int:
    with suppress(FileNotFoundError):
        if path.stat().st_size > LOG_SIZE_BYTES_MAX:
            path.replace(path.with_name(path.name + ".1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
