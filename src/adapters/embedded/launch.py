"""Prepares a child process, then becomes it: run as a script between fork and exec of every child of `processes.spawn`.

Not a `preexec_fn`: that would run Python in a fork of a process with threads (the event loop's, ONNX Runtime's), where
a lock held by another thread is held for ever, and it would copy the page tables of a worker full of models instead of
using vfork. This costs about 12 ms a start (`-I -S`, three imports), and nothing afterwards: `exec` keeps the pid.

    launch.py PARENT_PID DEATH_SIGNAL MEMORY_BYTES_MAX IDENTITY ARGV…

MEMORY_BYTES_MAX 0 is no limit. IDENTITY is `keep`, `map:UID:GID` (a new user namespace in which this user is seen as
UID) or `drop:UID:GID` (become UID). Only the standard library: the package is not importable here.
"""

import ctypes
import os
import resource
import sys

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
SIGPIPE, SIGXFSZ, SIG_DFL = 13, 25, 0
EXIT_CANNOT_START = 127  # as a shell says it


def main(parent_pid: str, death_signal: str, memory_bytes_max: str, identity: str, *argv: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for ignored_by_python in (SIGPIPE, SIGXFSZ):  # An ignored signal stays ignored across exec.
        libc.signal(ignored_by_python, SIG_DFL)
    _become(libc, identity)
    if limit := int(memory_bytes_max):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # After the last change of credentials, which would clear it; and the parent may have died before it was set.
    _check(libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0))
    if os.getppid() != int(parent_pid):
        sys.exit(EXIT_CANNOT_START)
    os.execv(argv[0], argv)  # noqa: S606  no shell: that is the point


def _become(libc: ctypes.CDLL, identity: str) -> None:
    way, _, ids = identity.partition(":")
    if way == "keep":
        return
    uid, gid = map(int, ids.split(":"))
    if way == "drop":
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    _check(libc.unshare(CLONE_NEWUSER))
    _write("/proc/self/setgroups", "deny")  # Without it an unprivileged user may not write the next line but one.
    _write("/proc/self/uid_map", f"{uid} {outside_uid} 1")
    _write("/proc/self/gid_map", f"{gid} {outside_gid} 1")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123  pathlib's import would double the start time
        file.write(text)


def _check(result: int) -> None:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        print(f"cannot start {' '.join(sys.argv[5:6])}: {error}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
