"""The child's end: what a process gives up before it touches a stranger's bytes, and the pipes it answers on.

Given up: core files, most descriptors, new sockets, new programs (memory beyond its limit and a life beyond its
parent's were given up before it began, in `embedded/launch.py`). The last two by a seccomp filter, which needs no
privilege; on a machine type that is not in SYSTEM_CALLS there is none. Then all files but a few, see `landlock.py`;
on a kernel without it there is no such bound.
"""

import ctypes
import math
import os
import platform
import resource
import struct
import time
from collections.abc import Iterator

from . import landlock
from .child import READ_BYTES, READABLE, WRITABLE, Frames, framed

OPEN_FILES_MAX = 128

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

# Audit architecture, then the calls that are refused: socket, execve, execveat, io_uring_setup (it opens sockets too).
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, (41, 59, 322, 425)),
    "aarch64": (0xC00000B7, (198, 221, 281, 425)),
}

# Classic BPF, as seccomp(2) and linux/bpf_common.h have it.
LOAD_WORD = 0x20
JUMP_IF_EQUAL = 0x15
JUMP_IF_AT_LEAST = 0x35
RETURN = 0x06
RETURN_ALLOW = 0x7FFF0000
RETURN_EPERM = 0x00050001
NUMBER_OFFSET, ARCHITECTURE_OFFSET = 0, 4
X32_BIT = 0x40000000  # the same calls under other numbers


class Channel:
    """Questions in, answers out, on descriptors that nothing else in this process knows.

    Standard output now leads to standard error, so that a print in a kind, or in a C library under it, lands in the
    log (see `Child`) and not between two frames.
    """

    def __init__(self) -> None:
        self._input, self._output = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)

    def __iter__(self) -> Iterator[bytes]:
        """Questions, until the parent closes its end."""
        frames = Frames()
        while data := os.read(self._input, READ_BYTES):
            yield from frames.feed(data)

    def send(self, payload: bytes) -> None:
        """Written whole before this returns."""
        rest = memoryview(framed(payload))
        while rest:
            rest = rest[os.write(self._output, rest) :]


def enter() -> Channel:
    """Confine this process, and open its channel; the parent's `Child.start` returns when this does."""
    limit()
    refuse_sockets_and_programs()
    readable, writable = (os.environ.get(name, "").split(os.pathsep) for name in (READABLE, WRITABLE))
    landlock.allow_only(readable=readable, writable=writable)
    channel = Channel()
    channel.send(b"")
    return channel


def limit() -> None:
    """Bounds that the kernel keeps, beside the one on memory, which was set before this program began."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(OPEN_FILES_MAX, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


class CpuTime:
    """What the next question may cost, kept by the kernel: SIGXCPU ends a child whose parent was stopped, and so
    cannot end it when its time is over.
    """

    def __init__(self) -> None:
        self._allowed_s = self._since_s = -math.inf

    def allow(self, cpu_s: float) -> None:
        """From now on, in whole seconds, rounded up. Where nothing was used, nothing is set again: jobs may be many."""
        used_s = time.process_time()
        if cpu_s == self._allowed_s and used_s - self._since_s < 1:
            return
        self._allowed_s, self._since_s = cpu_s, used_s
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used_s + cpu_s) + 1, hard))


def refuse_sockets_and_programs() -> bool:
    """From here on those calls answer EPERM, in every thread to come. False where we do not know their numbers."""
    known = SYSTEM_CALLS.get(platform.machine())
    if known is None:
        return False
    architecture, refused = known
    checks = [(JUMP_IF_AT_LEAST, X32_BIT), *((JUMP_IF_EQUAL, number) for number in refused)]
    # A jump is (taken, not taken) in instructions to skip; the last instruction refuses, the one before it allows.
    program = [(LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET), (JUMP_IF_EQUAL, 0, len(checks) + 2, architecture)]
    program += [(LOAD_WORD, 0, 0, NUMBER_OFFSET)]
    program += [(code, len(checks) - n, 0, value) for n, (code, value) in enumerate(checks)]
    program += [(RETURN, 0, 0, RETURN_ALLOW), (RETURN, 0, 0, RETURN_EPERM)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filter_ = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(filter_))
    return True


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *padded) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
