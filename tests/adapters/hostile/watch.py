"""Evidence that nothing was read outside, and that nothing grew: what the kernel saw."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IN_ACCESS, IN_OPEN = 0x1, 0x20
EVENTS_BYTES = 1 << 16
CANARY = b"CANARY-" + bytes(range(33, 97)) + b"-YRANAC"


class Watch:
    """Counts who opens a file, or reads it, whichever process it is (inotify)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def touched(self) -> bool:
        """Since the watch began, or this was asked last."""
        try:
            return bool(os.read(self._fd, EVENTS_BYTES))
        except BlockingIOError:
            return False


@contextmanager
def watched(*paths: Path) -> Iterator[Watch]:
    """Until the end of the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        for path in paths:
            assert libc.inotify_add_watch(fd, os.fsencode(path), IN_OPEN | IN_ACCESS) > 0, os.strerror(
                ctypes.get_errno()
            )
        yield Watch(fd)
    finally:
        os.close(fd)


def memory_bytes(pid: int | str, name: str) -> int:
    """`VmPeak` (address space), `VmHWM` (resident) or `VmRSS` of a process; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith(f"{name}:")), "")
    return int(line.split()[1]) * 1024 if line else 0


def address_space_bytes_max(pid: int) -> str:
    """As the kernel holds it: a number, or `unlimited`."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    return next(line for line in limits.splitlines() if line.startswith("Max address space")).split()[3]
