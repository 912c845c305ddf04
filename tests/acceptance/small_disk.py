"""Run by tests: becomes a program for which a directory is a small disk of its own: `small_disk.py DIR BYTES ARGV…`.

In a user and a mount namespace, so that no privilege is needed and nobody else sees it; `/proc/<pid>/root` leads there.
"""

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def main(directory: str, size_bytes: str, *argv: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    check(libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", 0, f"size={size_bytes},mode=700".encode()))
    os.execv(argv[0], argv)  # no shell: that is the point


if __name__ == "__main__":
    main(*sys.argv[1:])
