"""Run by tests: becomes a program whose fsync and fdatasync fail when the test says so: `faulty_sync.py SOCKET ARGV…`.

The kernel asks a listener about each such call (seccomp's user notification, Linux 5.5 or newer); the listener is
passed to the test over the unix socket, and the test answers: go on, or EIO. No compiler, no disk of its own.
"""

import ctypes
import os
import platform
import socket
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 1 << 3
ALLOW, ASK = 0x7FFF0000, 0x7FC00000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
# seccomp, fsync, fdatasync
CALLS = {"x86_64": (317, 74, 75), "aarch64": (277, 82, 83)}


class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def instruction(code: int, true: int, false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, true, false, value)


def listener() -> int:
    """The descriptor on which the kernel asks, about this process and its children from now on."""
    seccomp, *asked = CALLS[platform.machine()]
    program = instruction(LOAD_WORD, 0, 0, 0)  # the number of the call
    for left, number in zip(range(len(asked), 0, -1), asked, strict=True):
        program += instruction(JUMP_IF_EQUAL, left, 0, number)
    program += instruction(RETURN, 0, 0, ALLOW) + instruction(RETURN, 0, 0, ASK)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    given = Filter(len(program) // 8, program)
    found = libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, ctypes.byref(given))
    if found < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(found)


def main(address: str, *argv: str) -> None:
    with socket.socket(socket.AF_UNIX) as way:
        way.connect(address)
        socket.send_fds(way, [b"x"], [listener()])
        way.recv(1)  # the test listens: from here on nothing waits for ever
    os.execv(argv[0], argv)  # no shell: that is the point


if __name__ == "__main__":
    main(*sys.argv[1:])
