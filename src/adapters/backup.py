"""Backups of an embedded PostgreSQL, by PostgreSQL's own tools: a base copy, and the WAL that is written after it.

Together they are every commit up to the last byte received. `restore` puts them into a new data directory.
"""

import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psycopg
import structlog
from msgspec import Struct, field
from psycopg import sql
from psycopg.conninfo import make_conninfo

from .embedded import binaries
from .embedded.postgres import PostgresServer
from .embedded.processes import spawn, terminate

# The slot keeps WAL until it was received; under the same name the receiver is known to synchronous_standby_names.
RECEIVER = "sightline_backup"
MANIFEST = "backup_manifest"
# What a base copy may have more or other than its manifest says; WAL is checked by its own checksums.
UNCHECKED = frozenset({MANIFEST, "postgresql.auto.conf", "recovery.signal", "standby.signal"})
NAMED_MAX = 5
RETRY_PAUSE_S = (0.2, 0.5, 1.0, 2.0, 5.0)
LAG_EVERY_S = 30.0
STEADY_S = 60.0  # a receiver that ran for so long starts again without a pause
STOP_GRACE_S = 5.0
STATUS_EVERY_S = 1
WAL_CHECK_TIMEOUT_S = 3600.0
SEGMENT_SIZE_BYTES = 16 * 1024 * 1024

Say = Callable[[str], None]

log = structlog.get_logger(__name__)


class BackupError(RuntimeError):
    """A backup that was not made, or cannot be used; the message says why."""


class _File(Struct, frozen=True, rename="pascal"):
    size: int
    path: str = ""
    encoded_path: str = field(default="", name="Encoded-Path")
    algorithm: str = field(default="", name="Checksum-Algorithm")
    checksum: str = ""

    @property
    def name(self) -> str:
        return self.path or bytes.fromhex(self.encoded_path).decode(errors="surrogateescape")


class WalRange(Struct, frozen=True):
    """The WAL that makes a base copy consistent; without it the copy is no database."""

    timeline: int = field(name="Timeline")
    start_lsn: str = field(name="Start-LSN")
    end_lsn: str = field(name="End-LSN")


class _Manifest(Struct, frozen=True):
    files: list[_File] = field(name="Files")
    ranges: list[WalRange] = field(name="WAL-Ranges")


class Verified(Struct, frozen=True):
    """What was found whole."""

    files: int
    size_bytes: int
    ranges: Sequence[WalRange]


def base(server: PostgresServer, to: Path, *, say: Say) -> Verified:
    """A copy of the running server's files in `to`, which must not exist or be empty, read back and verified.

    Raises:
        BackupError: it was not made; nothing usable is in `to`.
    """
    argv: list[str | Path] = [
        binaries.postgres_program("pg_basebackup"),
        f"--pgdata={to.absolute()}",
        f"--dbname={server.superuser_dsn}",
        "--checkpoint=fast",
        "--wal-method=stream",  # with the WAL of its own making: a base restores without any other
        "--manifest-checksums=SHA256",
        "--no-password",
        "--progress",
    ]
    run(argv, say=say)
    return verify(to)


def verify(copy: Path) -> Verified:
    """Hold every file of a base copy against the manifest, and read the WAL that it needs.

    As pg_verifybackup does; the one in the wheel of the embedded binaries does not start.

    Raises:
        BackupError: a file is missing, superfluous or altered.
    """
    manifest = _manifest(copy)
    listed = {
        one.path or bytes.fromhex(one.encoded_path).decode(errors="surrogateescape"): one for one in manifest.files
    }
    found = {
        str(path.relative_to(copy)): path
        for path in copy.rglob("*")
        if path.is_file() and path.relative_to(copy).parts[0] != "pg_wal"
    }
    wrong = [f"{name} is missing" for name in listed.keys() - found.keys() - UNCHECKED]
    wrong += [f"{name} is not of this backup" for name in found.keys() - listed.keys() - UNCHECKED]
    for name in sorted((listed.keys() & found.keys()) - UNCHECKED):
        if _altered(found[name], listed[name]):
            wrong.append(f"{name} was altered")
    if wrong:
        raise BackupError(f"{copy} is damaged in {len(wrong)} places: {'; '.join(sorted(wrong)[:NAMED_MAX])}")
    for one in manifest.ranges:
        run(
            [
                binaries.postgres_program("pg_waldump"),
                "--quiet",
                f"--path={copy.absolute() / 'pg_wal'}",
                f"--timeline={one.timeline}",
                f"--start={one.start_lsn}",
                f"--end={one.end_lsn}",
            ],
            say=lambda _: None,
        )
    return Verified(len(listed), sum(one.size for one in listed.values()), manifest.ranges)


def _manifest(copy: Path) -> _Manifest:
    try:
        text = (copy / MANIFEST).read_bytes()
    except OSError as error:
        raise BackupError(f"{copy} is no finished base backup: {MANIFEST} cannot be read") from error
    signed, _, checksum = text.rpartition(b'"Manifest-Checksum"')
    if hashlib.sha256(signed).hexdigest() not in checksum.decode(errors="replace"):
        raise BackupError(f"{copy / MANIFEST} was altered")
    return msgspec.json.decode(text, type=_Manifest)


def _altered(path: Path, listed: _File) -> bool:
    if path.stat().st_size != listed.size:
        return True
    if not listed.algorithm.startswith("SHA"):
        raise BackupError(f"{path} has a checksum of kind {listed.algorithm or 'none'}; make the base with SHA256")
    with path.open("rb") as file:
        return hashlib.file_digest(file, listed.algorithm).hexdigest() != listed.checksum


def receive(server: PostgresServer, to: Path, *, stopping: threading.Event) -> None:
    """Receive WAL into `to` until `stopping`, flushed as it comes; a lost connection is made again, with pauses.

    `server` need not be ours, nor run all the time: whoever runs on its directory is received from.

    Raises:
        BackupError: the slot lost WAL that was not received: what follows fits no earlier base.
    """
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    failures = 0
    while not stopping.is_set():
        status, ran_s = _receive_once(server, to, stopping)
        if stopping.is_set():
            return
        failures = 0 if ran_s > STEADY_S else failures + 1
        if _slot_status(server) == "lost":
            raise BackupError(
                f"the slot {RECEIVER} was left behind: drop it, move {to} aside, and take a new base backup"
            )
        pause_s = RETRY_PAUSE_S[min(failures, len(RETRY_PAUSE_S)) - 1]
        log.warning("wal_not_received", status=status, again_in_s=pause_s)
        stopping.wait(pause_s)


def _receive_once(server: PostgresServer, to: Path, stopping: threading.Event) -> tuple[int, float]:
    """Exit status of one pg_receivewal, and the seconds that it ran."""
    program = binaries.postgres_program("pg_receivewal")
    dsn = make_conninfo(server.superuser_dsn, application_name=RECEIVER)
    common = [f"--dbname={dsn}", f"--slot={RECEIVER}", "--no-password"]
    log_path = to.with_name(f"{to.name}.log")
    made = spawn([program, *common, "--create-slot", "--if-not-exists"], log_path=log_path)
    if (refused := made.wait()) != 0:
        return refused, 0.0
    _fill_up(to)
    options = ["--synchronous", "--no-loop", f"--status-interval={STATUS_EVERY_S}", f"--directory={to.absolute()}"]
    receiver = spawn([program, *common, *options], log_path=log_path)
    log.info("wal_receiver_started", pid=receiver.pid)
    ran_s, asked_at_s = 0.0, 0.0
    try:
        while (status := receiver.poll()) is None and not stopping.wait(RETRY_PAUSE_S[0]):
            ran_s += RETRY_PAUSE_S[0]
            if ran_s - asked_at_s >= LAG_EVERY_S:
                asked_at_s = ran_s
                log.info("wal_received", lag_bytes=lag_bytes(server))
        return status or 0, ran_s
    finally:
        # SIGINT: it tells the server how far it flushed, and ends.
        terminate(receiver, grace_s=STOP_GRACE_S, first=signal.SIGINT)


def _fill_up(to: Path) -> None:
    """Make a segment whole whose filling with zeros was cut short; pg_receivewal refuses to go on beside a shorter one.

    Received bytes are written only once a segment is filled: what is missing is zeros, and it sends the rest again.
    """
    for path in to.glob("*.partial"):
        if path.stat().st_size < SEGMENT_SIZE_BYTES:
            os.truncate(path, SEGMENT_SIZE_BYTES)


def lag_bytes(server: PostgresServer) -> int | None:
    """WAL written and not yet flushed by the receiver; None while none is connected."""
    query = (
        "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), flush_lsn)::bigint FROM pg_stat_replication"
        " WHERE application_name = %s AND state = 'streaming'"
    )
    try:
        with psycopg.connect(server.superuser_dsn, autocommit=True, connect_timeout=2) as connection:
            row = connection.execute(query, (RECEIVER,)).fetchone()
    except psycopg.OperationalError:
        return None
    return int(row[0]) if row else None


def _slot_status(server: PostgresServer) -> str | None:
    try:
        with psycopg.connect(server.superuser_dsn, autocommit=True, connect_timeout=2) as connection:
            row = connection.execute(
                "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", (RECEIVER,)
            ).fetchone()
    except psycopg.OperationalError:
        return None
    return row[0] if row else None


def set_synchronous(server: PostgresServer, on: bool) -> None:
    """Whether an append is acknowledged only when the receiver has flushed it too.

    Raises:
        BackupError: it is asked for, and no receiver is connected: every append would wait for ever.
    """
    if on and lag_bytes(server) is None:
        raise BackupError("no receiver is connected; start `sightline backup wal` first")
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        names = RECEIVER if on else ""
        connection.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(names)))
        connection.execute("SELECT pg_reload_conf()")


def drop_slot(server: PostgresServer) -> None:
    """Let the server forget the receiver, and the WAL that it keeps for it.

    Raises:
        psycopg.errors.ObjectInUse: a receiver is connected.
    """
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (RECEIVER,)
        )


def run(argv: Sequence[str | Path], *, say: Say) -> None:
    """One of the tools, to its end; each line that it prints goes to `say`.

    Raises:
        BackupError: it failed; with its last words.
    """
    with spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if text := line.decode(errors="replace").strip():
                last = text
                say(text)
    if process.returncode != 0:
        raise BackupError(f"{Path(argv[0]).name} ended with status {process.returncode}: {last}")
