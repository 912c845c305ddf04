"""A new data directory from a base backup and the WAL after it: everything, up to a time, or up to a position.

To a position: the events of one batch are one transaction, and commits stand in the WAL in the order of positions. So
all of the WAL is replayed once into a scratch copy, which tells the transaction that wrote the position; the copy that
is kept is replayed up to the end of that transaction, and holds exactly the log up to the end of that batch.
"""

import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID

import psycopg
from msgspec import Struct, field

from . import postgres
from .backup import SEGMENT_SIZE_BYTES, BackupError, WalRange, verify
from .embedded import identity
from .embedded.part import PartError
from .embedded.postgres import PostgresServer
from .embedded.processes import log_tail

RECOVERY_TIMEOUT_S = 4 * 3600.0
SEGMENT = re.compile(r"(?P<timeline>[0-9A-F]{8})(?P<log>[0-9A-F]{8})(?P<segment>[0-9A-F]{8})(\.partial)?")
SEGMENTS_PER_LOG = 2**32 // SEGMENT_SIZE_BYTES

# What PostgreSQL says when the target cannot be had.
REFUSALS = (
    "recovery ended before configured recovery target was reached",
    "requested recovery stop point is before consistent recovery point",
)

OUT_OF_REACH = "the target lies before the end of the base backup, or past the end of the WAL"

Say = Callable[[str], None]


class Target(Struct, frozen=True):
    """Where to stop; the end of the WAL if neither is given.

    Attributes:
        position: the log ends with the batch that holds it.
        moment: what was committed by then.
    """

    position: int | None = None
    moment: datetime | None = None


class Step(Struct, frozen=True):
    name: str
    seconds: float
    said: str


class Timed:
    """The steps of one restore, as they end."""

    def __init__(self, say: Say) -> None:
        self.steps: list[Step] = []
        self._say = say

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times what is done inside; what is put into the list is said beside the time."""
        said: list[str] = []
        began = time.monotonic()
        yield said
        step = Step(name, time.monotonic() - began, " ".join(said))
        self.steps.append(step)
        self._say(f"{step.name:<12} {step.seconds:7.2f} s  {step.said}")

    @property
    def total_s(self) -> float:
        return sum(step.seconds for step in self.steps)


class Restored(Struct, frozen=True):
    """
    Attributes:
        position: of the last event.
        epoch: of the log from now on; what was handed out under the one before is refused.
        lsn: where the replay ended.
    """

    position: int
    epoch: UUID
    epoch_before: UUID
    lsn: str


class _Recovery(Struct, frozen=True):
    """One replay.

    Attributes:
        settings: more lines for postgresql.auto.conf.
    """

    base: Path
    wal: Path | None
    settings: dict[str, str] = field(default_factory=dict)


@contextmanager
def restored(
    base: Path, wal: Path | None, data_dir: Path, target: Target, timed: Timed
) -> Iterator[tuple[PostgresServer, Restored]]:
    """Restore into `data_dir`, which has no database yet, and lend the running server; it is stopped at the end.

    Args:
        base: as `backup.base` made it.
        wal: as `backup.receive` fills it; None for the base alone, as it was when it ended.
        data_dir: of Sightline; what lies in it beside the database is left alone.
        target: where to stop.
        timed: takes the time of each step.

    Raises:
        BackupError: it cannot be done; `data_dir` has no database then.
    """
    server = PostgresServer(data_dir)
    if server.data.exists():
        raise BackupError(f"{server.data} exists; restore into a new data directory")
    with timed.step("verify") as said:
        verified = verify(base)
        if wal is not None:
            _check_segments(wal, verified.ranges[-1])
        said.append(f"{verified.files} files, {verified.size_bytes / 1e6:.0f} MB")
    settings = {}
    if target.moment is not None:
        settings = {"recovery_target_time": target.moment.isoformat()}
    elif target.position is not None:
        with timed.step("find") as said:
            xid, head = _find(_Recovery(base, wal), data_dir, target.position)
            settings = {"recovery_target_xid": xid}
            said.append(f"position {target.position} is of transaction {xid}; the backup reaches to {head}")
    with _recovered(server, _Recovery(base, wal, settings), timed):
        with timed.step("epoch") as said:
            result = _renew_epoch(server)
            said.append(f"{result.epoch_before} → {result.epoch}")
        yield server, result


def _find(recovery: _Recovery, data_dir: Path, position: int) -> tuple[str, int]:
    """The transaction that wrote the position, and where the whole log ends; from a copy that is thrown away."""
    scratch = data_dir.with_name(f"{data_dir.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    hasty = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    server = PostgresServer(scratch)
    try:
        with (
            _recovered(server, _Recovery(recovery.base, recovery.wal, hasty), Timed(lambda _: None)),
            psycopg.connect(server.dsn) as connection,
        ):
            row = connection.execute("SELECT xmin::text FROM events WHERE position = %s", (position,)).fetchone()
            head = _head(connection)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if row is None:
        raise BackupError(f"the backup and its WAL reach only to position {head}")
    return row[0], head


@contextmanager
def _recovered(server: PostgresServer, recovery: _Recovery, timed: Timed) -> Iterator[None]:
    """The server of a fresh copy, running, with its recovery ended."""
    with timed.step("copy") as said:
        size_bytes = _copy(server, recovery.base)
        said.append(f"{size_bytes / 1e6:.0f} MB")
    settings = recovery.settings | {
        "restore_command": _restore_command(recovery.wal),
        "recovery_target_action": "promote",
        "hot_standby": "off",  # ready is when the replay has ended, and the server may be written to
        "synchronous_standby_names": "",  # nobody receives from here yet, and every commit would wait for it
    }
    try:
        with timed.step("replay") as said:
            _write_settings(server, settings)
            server.start(timeout_s=RECOVERY_TIMEOUT_S)
            with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
                for name in settings:
                    connection.execute(f"ALTER SYSTEM RESET {name}".encode())  # names of ours, not a caller's
                connection.execute("SELECT pg_reload_conf()")
            end_lsn = _end_lsn(server)
            said.append(f"up to {end_lsn}")
            if recovery.wal is not None and not any(name.startswith("recovery_target_") for name in recovery.settings):
                _require_all(recovery.wal, end_lsn)
    except (PartError, psycopg.OperationalError) as error:
        server.stop()
        end = log_tail(server.log_path, lines_max=20)
        shutil.rmtree(server.data)
        if any(words in end for words in REFUSALS):
            raise BackupError(OUT_OF_REACH) from error
        raise BackupError(f"the replay failed: {error}") from error
    except BaseException:
        server.stop()
        shutil.rmtree(server.data, ignore_errors=True)
        raise
    try:
        yield
    finally:
        server.stop()


def _copy(server: PostgresServer, base: Path) -> int:
    """The base as the server's files, beside their final place first; returns their size in bytes."""
    fresh = server.data.with_name("data.new")
    shutil.rmtree(fresh, ignore_errors=True)
    server.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(base, fresh, symlinks=True)
    fresh.chmod(0o700)
    uid, gid = identity.owner_ids(identity.choose(server.data))
    size_bytes = 0
    for path in (fresh, *fresh.rglob("*")):
        if (path.stat().st_uid, path.stat().st_gid) != (uid, gid):
            os.chown(path, uid, gid, follow_symlinks=False)
        size_bytes += path.stat().st_size
    (fresh / "backup_manifest").unlink()
    (fresh / "recovery.signal").touch(mode=0o600)
    os.chown(fresh / "recovery.signal", uid, gid)
    fresh.rename(server.data)
    return size_bytes


def _write_settings(server: PostgresServer, settings: dict[str, str]) -> None:
    with (server.data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
        for name, value in settings.items():
            quoted = value.replace("'", "''")
            file.write(f"{name} = '{quoted}'\n")


def _restore_command(wal: Path | None) -> str:
    """What PostgreSQL runs for each file of WAL. Beyond 125 means: stop. To be refused is not to be at the end.

    A receiver that died while it filled a new segment with zeros left a shorter one, which PostgreSQL does not take:
    the zeros that are missing are added to the copy.
    """
    if wal is None:
        return "false"
    directory = shlex.quote(str(wal.absolute())).replace("%", "%%")
    return (
        f'd={directory}; test -r "$d" -a -x "$d" || exit 126; if test -e "$d/%f"; then cp "$d/%f" "%p" || exit 126; '
        f'elif test -e "$d/%f.partial"; then cp "$d/%f.partial" "%p" && truncate -s {SEGMENT_SIZE_BYTES} "%p" '
        "|| exit 126; else exit 1; fi"
    )


def _check_segments(wal: Path, needed: WalRange) -> None:
    """
    Raises:
        BackupError: the WAL does not begin with what the base needs, or has a hole: the replay would end there and
            take it for the end.
    """
    if not wal.is_dir():
        raise BackupError(f"{wal} is no directory")
    first = _segment_of(needed.end_lsn)
    for timeline, present in _segments(wal).items():
        wanted = {number for number in present if number >= first}
        if timeline == needed.timeline and present and first not in present and wanted:
            raise BackupError(f"{wal} begins after the base backup ended; take one from before")
        holes = sorted(set(range(min(wanted, default=0), max(wanted, default=-1) + 1)) - wanted)
        if holes:
            raise BackupError(
                f"{_file_of(timeline, holes[0])} is missing from {wal}: what comes after it cannot be replayed"
            )


def _require_all(wal: Path, end_lsn: str) -> None:
    """
    Raises:
        BackupError: the replay ended before the last whole segment of its timeline. PostgreSQL takes a damaged record
            for the end of the WAL, and says nothing.
    """
    whole = _segments(wal, partial=False)
    ended = _segment_of(end_lsn)
    timeline = max(whole, default=0)
    last = max(whole.get(timeline, ()), default=0)
    if last > ended:
        raise BackupError(
            f"the replay ended at {end_lsn}, in {_file_of(timeline, ended)}, and {wal} goes on to"
            f" {_file_of(timeline, last)}: that segment is damaged"
        )


def _segments(wal: Path, *, partial: bool = True) -> dict[int, set[int]]:
    """The numbers of the segments of each timeline."""
    numbers: dict[int, set[int]] = {}
    for name in os.listdir(wal):  # noqa: PTH208  # names alone; there may be many
        if (found := SEGMENT.fullmatch(name)) and (partial or not name.endswith(".partial")):
            number = int(found["log"], 16) * SEGMENTS_PER_LOG + int(found["segment"], 16)
            numbers.setdefault(int(found["timeline"], 16), set()).add(number)
    return numbers


def _segment_of(lsn: str) -> int:
    log, _, offset = lsn.partition("/")
    return int(log, 16) * SEGMENTS_PER_LOG + int(offset, 16) // SEGMENT_SIZE_BYTES


def _file_of(timeline: int, segment: int) -> str:
    return f"{timeline:08X}{segment // SEGMENTS_PER_LOG:08X}{segment % SEGMENTS_PER_LOG:08X}"


def _renew_epoch(server: PostgresServer) -> Restored:
    postgres.migrate(server.dsn)  # an older backup has no function to renew it with
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        before = connection.execute("SELECT epoch FROM log_head").fetchone()
        after = connection.execute("SELECT renew_epoch()").fetchone()
        assert before is not None
        assert after is not None
        return Restored(_head(connection), after[0], before[0], _end_lsn(server))


def _head(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
    assert row is not None
    return int(row[0])


def _end_lsn(server: PostgresServer) -> str:
    """Where the new timeline left the one before: the last line of its history says it."""
    newest = max((server.data / "pg_wal").glob("*.history"))
    return newest.read_text(encoding="ascii").strip().splitlines()[-1].split("\t")[1]
