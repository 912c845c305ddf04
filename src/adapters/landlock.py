"""Which files a confined process may still open: Landlock (Linux 5.13 and later), which needs no privilege.

A stranger's model or picture that takes over its decoder finds libraries, its own input and nothing else: no keys, no
log, no environment of its parent (the kernel also refuses to look into processes outside of the domain), and it may
send signals to nobody. Numbers and shapes are those of linux/landlock.h.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every machine type
ASK_VERSION = 1
RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REGULAR, REFER, TRUNCATE, IOCTL_DEVICE = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REGULAR | REFER | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEVICE
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE  # the rest is refused for what is no directory

# Rights that the kernel knows, by the version of its interface in which they came.
RIGHTS = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEVICE))
NETWORK_VERSION, TCP_BIND_AND_CONNECT = 4, 3
SCOPE_VERSION, ABSTRACT_SOCKETS_AND_SIGNALS = 6, 3

LIBRARIES = (
    *("/usr", "/lib", "/lib64", "/opt", "/nix", "/etc/ld.so.cache", "/etc/localtime"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def version() -> int:
    """Of the kernel's interface; 0 where there is none, or it is switched off."""
    found = _libc().syscall(CREATE_RULESET, None, 0, ASK_VERSION)
    return max(0, int(found))


def allow_only(*, readable: Iterable[str], writable: Iterable[str]) -> bool:
    """From here on every other file is refused with EACCES, in this thread and in all that it starts.

    What is open stays open. Paths that are not there are skipped. False where the kernel has no Landlock.

    Raises:
        OSError: the kernel has it, and refuses.
    """
    known = version()
    if not known:
        return False
    handled = 0
    for since, rights in RIGHTS:
        handled |= rights if known >= since else 0
    attributes = struct.pack("Q", handled)
    if known >= NETWORK_VERSION:
        attributes += struct.pack("Q", TCP_BIND_AND_CONNECT)
    if known >= SCOPE_VERSION:
        attributes += struct.pack("Q", ABSTRACT_SOCKETS_AND_SIGNALS)
    ruleset = _checked(_libc().syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        for path in (*LIBRARIES, *_python(), *readable):
            _allow(ruleset, path, READ & handled)
        for path in writable:
            _allow(ruleset, path, WRITE & handled)
        for path in DEVICES:
            _allow(ruleset, path, DEVICE & handled)
        _allow_accelerator(ruleset, handled)
        _checked(_libc().syscall(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def _python() -> list[str]:
    """Where modules that are not imported yet lie; ours too, when it is a checkout behind a link."""
    return [sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[1]), *filter(os.path.isdir, sys.path)]


def _allow_accelerator(ruleset: int, handled: int) -> None:
    """NVIDIA's driver looks for its cards below /proc, and speaks with them through their nodes."""
    nodes = [str(node) for node in Path("/dev").glob("nvidia*")]
    for node in nodes:
        _allow(ruleset, node, (DEVICE | READ_DIR) & handled)
    if nodes:
        _allow(ruleset, "/proc", READ & handled)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112  a string as it is: nothing else of it is needed
            rights &= OF_A_FILE
        rule = struct.pack("=Qi", rights, opened)
        _checked(_libc().syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0))
    finally:
        os.close(opened)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    return result
