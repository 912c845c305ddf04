"""As whom PostgreSQL runs: it refuses to be root, and its `initdb` wants a user whose name is known."""

import os
import pwd
import sys
from pathlib import Path

from .part import PartError
from .processes import RunAs, spawn

NOBODY = "nobody"
PROBE_TIMEOUT_S = 10.0


def choose(data: Path) -> RunAs | None:
    """Who shall own the server of the data directory `data` (which may not exist yet); None is this user as it is.

    Root is seen as another user in a user namespace of the server's own: no user is made, no file changes hands. Where
    user namespaces are blocked root becomes an unprivileged user, who then owns `data` and `run`.

    Raises:
        PartError: `data` is another user's, or this user cannot run PostgreSQL.
    """
    uid = os.geteuid()
    owner = data.stat().st_uid if data.exists() else None
    if owner is not None and owner != uid:
        if uid == 0 and data.parent.stat().st_uid == 0:
            return RunAs(owner, data.stat().st_gid, namespace=False)  # As it was decided on the first start.
        raise PartError(f"{data} belongs to user {owner}; start as that user, or choose another data directory")
    if uid != 0 and _is_known(uid):
        return None
    ordinary = _ordinary_user()
    if owner == uid or user_namespaces_work(ordinary):
        return RunAs(ordinary.pw_uid, ordinary.pw_gid, namespace=True)
    if uid != 0:
        raise PartError(f"user {uid} has no entry in /etc/passwd, and PostgreSQL does not start without a user's name")
    return RunAs(ordinary.pw_uid, ordinary.pw_gid, namespace=False)


def user_namespaces_work(user: pwd.struct_passwd) -> bool:
    """Tried, not read from a setting: seccomp, AppArmor, a limit or the kernel's build may each forbid them."""
    probe = spawn(
        [sys.executable, "-I", "-S", "-c", ""],
        run_as=RunAs(user.pw_uid, user.pw_gid, namespace=True),
        log_path=Path(os.devnull),
    )
    return probe.wait(PROBE_TIMEOUT_S) == 0


def owner_ids(run_as: RunAs | None) -> tuple[int, int]:
    """Uid and gid that the server's files have, seen from here."""
    if run_as is None or run_as.namespace:
        return os.geteuid(), os.getegid()
    return run_as.uid, run_as.gid


def open_the_way(home: Path, run_as: RunAs | None) -> None:
    """Let the unprivileged user through `home` and the data directory above it, which are ours; nothing further up.

    Raises:
        PartError: a directory further up is closed to it.
    """
    if run_as is None or run_as.namespace:
        return
    for ours in (home, home.parent):
        ours.chmod(ours.stat().st_mode | 0o011)
    for above in home.parent.resolve().parents:
        if not above.stat().st_mode & 0o001:
            raise PartError(
                f"root runs PostgreSQL as user {run_as.uid}, whom {above} does not let through; choose a data "
                "directory outside it, or start as an ordinary user"
            )


def _is_known(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _ordinary_user() -> pwd.struct_passwd:
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    if not users:
        raise PartError("PostgreSQL does not run as root, and /etc/passwd names nobody else")
    return next((user for user in users if user.pw_name == NOBODY), users[0])
