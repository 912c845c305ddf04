"""One embedded server on one data directory: claimed by one process at a time, started, watched, stopped."""

import fcntl
import os
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from .processes import log_tail

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.005
SOCKET_PATH_BYTES_MAX = 107  # sun_path less its NUL; beyond it bind() refuses


class PartError(RuntimeError):
    """An embedded part cannot run here; the message says why and what to do."""


class PartBusy(PartError):
    """Another process owns this part of this data directory."""


class Part(ABC):
    """A server whose files live under `data_dir/<name>`: `data`, `run` (its socket), `server.log`, `owner.lock`.

    Who holds the lock owns the server, and the server ends with its owner. Everybody else may use `url`s only.
    """

    name: ClassVar[str]
    socket_name: ClassVar[str]

    def __init__(self, data_dir: Path) -> None:
        self.home = data_dir.absolute() / self.name
        self.data = self.home / "data"
        self.log_path = self.home / "server.log"
        self._lock_fd: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def launch(self) -> None:
        """Start the server and return at once. Only for the owner; a server that died is cleaned up after first."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether our own server answers."""

    @abstractmethod
    def is_reachable(self) -> bool:
        """Whether the server answers, whoever owns it."""

    @abstractmethod
    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop our server, at the latest by killing it after `timeout_s`, and give the part up."""

    @property
    def pid(self) -> int | None:
        """Of our server, from the moment it is launched until it is reaped."""
        return self._process.pid if self._process else None

    def poll(self) -> int | None:
        """None while our server runs, else its exit status. Reaps it: a zombie would block its successor."""
        return self._process.poll() if self._process else None

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Own the part, start its server and wait until it answers.

        Raises:
            PartBusy: somebody else owns it.
            PartError: it did not start; nothing is left running.
        """
        self.claim()
        try:
            self.launch()
            self.wait_ready(timeout_s=timeout_s)
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """
        Raises:
            PartError: the server ended, or did not answer in time; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            status = self.poll()
            if status is not None or time.monotonic() > deadline:
                reason = f"ended with status {status}" if status is not None else f"did not answer in {timeout_s:g} s"
                raise PartError(f"{self.name} {reason}; the end of {self.log_path}:\n{log_tail(self.log_path)}")
            time.sleep(POLL_S)

    def claim(self) -> None:
        """Take the lock, making the directories on the way.

        Raises:
            PartBusy: somebody else holds it.
            PartError: the directory cannot be used by this user.
        """
        try:
            self.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.home.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self.home / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PartError(f"{self.home} cannot be used by user {os.geteuid()}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise PartBusy(f"{self.name} in {self.home.parent} is in use by process {owner}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = descriptor

    def release(self) -> None:
        """Give the lock back; its file stays, since removing it would let two processes lock two files."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @property
    def owned(self) -> bool:
        return self._lock_fd is not None

    @property
    def run_dir(self) -> Path:
        """Where the socket is: `run` under the part's home, or, where that path is too long for a socket, a private
        directory under the system's temporary one, whose name is kept in `run.path`.
        """
        usual = self.home / "run"
        if _fits(usual, self.socket_name):
            return usual
        with suppress(FileNotFoundError):
            return Path((self.home / "run.path").read_text(encoding="utf-8"))
        return usual

    def make_run_dir(self, uid: int, gid: int) -> None:
        """Make `run_dir`, for the owner of the part; mode 700 is the whole access control of the socket in it.

        Raises:
            PartError: no path is short enough.
        """
        usual = self.home / "run"
        if _fits(usual, self.socket_name):
            usual.mkdir(mode=0o700, exist_ok=True)
            os.chown(usual, uid, gid)
            return
        if _is_private(self.run_dir, uid):
            return
        short = Path(tempfile.mkdtemp(prefix="sightline-"))
        if not _fits(short, self.socket_name):
            short.rmdir()
            raise PartError(f"neither {usual} nor {short} is short enough for a socket; set TMPDIR to a short path")
        os.chown(short, uid, gid)
        (self.home / "run.path").write_text(str(short), encoding="utf-8")

    def remove_run_dir(self) -> None:
        """Remove the directory in the system's temporary one, if there is one; never the usual one."""
        directory = self.run_dir
        if directory.parent != self.home:
            with suppress(OSError):
                for left in directory.iterdir():
                    left.unlink()
                directory.rmdir()
            (self.home / "run.path").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _fits(directory: Path, socket_name: str) -> bool:
    return len(os.fsencode(directory / socket_name)) <= SOCKET_PATH_BYTES_MAX


def _is_private(directory: Path, uid: int) -> bool:
    """Whether it is a directory of `uid` that nobody else can enter: in a shared place a name proves nothing."""
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return False
    return stat.filemode(status.st_mode) == "drwx------" and status.st_uid == uid
