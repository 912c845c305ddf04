"""Backup and restore, as an operator does it: by the command line, on a database that is in use."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec import Struct
from tests.conftest_log import assert_whole, command
from tests.conftest_parts import wait_for

from sightline.adapters import backup, postgres, restore
from sightline.adapters.backup import BackupError
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.event_store.writer import Appended, Writer

BATCH = 7


class Place(Struct, frozen=True):
    """A running database, and where its backups go."""

    server: PostgresServer
    directory: Path

    @property
    def base(self) -> Path:
        return self.directory / "base"

    @property
    def wal(self) -> Path:
        return self.directory / "wal"

    @property
    def new(self) -> Path:
        return self.directory / "new"


@pytest.fixture
def place() -> Iterator[Place]:
    """With a receiver that runs, a base backup, and a batch before and after it."""
    with tempfile.TemporaryDirectory(prefix="sightline-backup-") as name:
        directory = Path(name)
        with PostgresServer(directory / "old") as server:
            postgres.migrate(server.dsn)
            yield Place(server, directory)


def sightline(*words: str | Path, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sightline", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def receiving(place: Place) -> Iterator[None]:
    """`sightline backup wal`, connected."""
    command_line = ["backup", "wal", "--data-dir", str(place.directory / "old"), "--to", str(place.wal)]
    with subprocess.Popen([sys.executable, "-m", "sightline", *command_line], stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: backup.lag_bytes(place.server) is not None)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=15)
            assert process.returncode == 0


def append(server: PostgresServer, batches: int) -> list[UUID]:
    """Batches of BATCH events, each acknowledged; their streams."""

    async def appended() -> list[UUID]:
        writer = Writer(server.dsn)
        await writer.start()
        streams = [uuid4() for _ in range(batches)]
        for stream in streams:
            assert isinstance(await writer.append(command((stream, 0), events_each=BATCH)), Appended)
        await writer.close()
        return streams

    return asyncio.run(appended())


def rows_of(server: PostgresServer) -> list[tuple[int, UUID, int]]:
    with psycopg.connect(server.dsn) as connection:
        return connection.execute("SELECT position, stream_id, version FROM events ORDER BY position").fetchall()


def received(place: Place) -> None:
    wait_for(lambda: backup.lag_bytes(place.server) == 0)


def restored(place: Place, target: restore.Target) -> tuple[int, list[tuple[int, UUID, int]]]:
    """The position that the restore says it reached, and the log that is there."""
    shutil.rmtree(place.new, ignore_errors=True)
    timed = restore.Timed(print)
    with restore.restored(place.base, place.wal, place.new, target, timed) as (server, result):
        rows = rows_of(server)
        assert_whole(rows)
        append(server, 1)  # It waits for no receiver: none is connected to it.
        return result.position, rows


def test_restore_to_the_end_to_a_position_and_to_a_time(place: Place) -> None:
    old = place.directory / "old"
    with receiving(place):
        append(place.server, 2)
        assert "verified" in sightline("backup", "base", "--data-dir", old, "--to", place.base)
        append(place.server, 2)
        received(place)
        moment = datetime.now(UTC)
        append(place.server, 2)
        received(place)
        with psycopg.connect(place.server.dsn) as connection:
            (before,) = connection.execute("SELECT epoch FROM log_head").fetchone() or (None,)
        os.kill(place.server.pid or 0, signal.SIGKILL)
    place.server.poll()
    given = ("restore", "--from", place.base, "--wal", place.wal, "--data-dir")
    said = sightline(*given, place.new, "--latest")
    assert "Restored to position 42 " in said
    assert "42 events whole" in said
    assert f"{before} →" in said
    with PostgresServer(place.new) as server:  # as `sightline up` starts it
        assert len(rows_of(server)) == 6 * BATCH
        append(server, 1)
    assert "exists; restore into a new data directory" in sightline(*given, place.new, "--latest", status=1)
    assert "needs a zone" in sightline(*given, place.new, "--to-time", "2099-01-01T00:00:00", status=2)

    for position, end in ((3 * BATCH, 3 * BATCH), (3 * BATCH + 1, 4 * BATCH)):
        reached, rows = restored(place, restore.Target(position))
        assert reached == len(rows) == end
    assert restored(place, restore.Target(moment=moment))[0] == 4 * BATCH

    far = datetime(2099, 1, 1, tzinfo=UTC)
    for target, refusal in (
        (restore.Target(6 * BATCH + 1), "reach only to position 42"),
        (restore.Target(3), "before the end of the base backup"),
        (restore.Target(moment=far), "past the end of the WAL"),
    ):
        with pytest.raises(BackupError, match=refusal):
            restored(place, target)
        assert not (place.new / "postgres" / "data").exists()
    assert not list(place.directory.glob("*.scratch"))


def receiver_pid(place: Place) -> int:
    """Of pg_receivewal, a child of the command."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            words = (entry / "cmdline").read_bytes().split(b"\0") if (entry / "cmdline").exists() else []
            if words[0].endswith(b"pg_receivewal") and f"--directory={place.wal}".encode() in words:
                return int(entry.name)
    raise LookupError


async def acknowledged_until_killed(server: PostgresServer, *, stopped_receiver: int | None) -> dict[int, UUID]:
    """Append under load, then take the database away without a word: the positions that were acknowledged."""
    ledger: dict[int, UUID] = {}
    writer = Writer(server.dsn)
    await writer.start()

    async def append_for_ever() -> None:
        while True:
            stream = uuid4()
            outcome = await writer.append(command((stream, 0)))
            assert isinstance(outcome, Appended)
            ledger[outcome.position] = stream

    load = [asyncio.create_task(append_for_ever()) for _ in range(8)]
    async with asyncio.timeout(10):
        while len(ledger) < 200:  # noqa: ASYNC110  # what is waited for is what the tasks have done
            await asyncio.sleep(0.01)
    if stopped_receiver is not None:
        os.kill(stopped_receiver, signal.SIGSTOP)
        await asyncio.sleep(0.3)
    os.kill(server.pid or 0, signal.SIGKILL)
    for task in load:
        task.cancel()
    await asyncio.wait(load)
    await writer.close()
    return ledger


@pytest.mark.parametrize(
    ("synchronous", "stopped"),
    [(True, False), (True, True), (False, True)],
    ids=["under load", "the receiver stops first", "control"],
)
def test_what_was_acknowledged_survives_the_loss_of_the_machine(
    place: Place, *, synchronous: bool, stopped: bool
) -> None:
    """RPO 0. The control: without waiting for the receiver, what it had not received yet is gone."""
    with receiving(place):
        backup.base(place.server, place.base, say=print)
        if synchronous:
            backup.set_synchronous(place.server, on=True)
        pid = receiver_pid(place)
        ledger = asyncio.run(acknowledged_until_killed(place.server, stopped_receiver=pid if stopped else None))
        place.server.poll()
        shutil.rmtree(place.server.data)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # with what it was sent and has not read
    _, rows = restored(place, restore.Target())
    found = {position: stream for position, stream, _ in rows}
    lost = [position for position, stream in ledger.items() if found.get(position) != stream]
    assert bool(lost) is not synchronous


def test_a_segment_whose_filling_was_cut_short_is_filled_up(place: Place) -> None:
    """By whoever receives again, and in the copy that is replayed; PostgreSQL's own tools refuse both."""
    with receiving(place):
        backup.base(place.server, place.base, say=print)
        with psycopg.connect(place.server.superuser_dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_switch_wal()")
        append(place.server, 2)
        received(place)
    partial = max(place.wal.glob("*.partial"))
    os.truncate(partial, 14 * 1024 * 1024)
    assert restored(place, restore.Target())[0] == 2 * BATCH
    with receiving(place):
        append(place.server, 1)
        received(place)
    assert restored(place, restore.Target())[0] == 3 * BATCH


def test_wal_that_was_damaged_is_not_the_end_of_it(place: Place) -> None:
    """PostgreSQL itself ends the replay there and serves what it has."""
    with receiving(place):
        backup.base(place.server, place.base, say=print)
        for _ in range(3):
            append(place.server, 1)
            with psycopg.connect(place.server.superuser_dsn, autocommit=True) as connection:
                connection.execute("SELECT pg_switch_wal()")
        append(place.server, 1)
        received(place)
    assert restored(place, restore.Target())[0] == 4 * BATCH
    damaged = sorted(one for one in place.wal.iterdir() if one.suffix == "")[-3]  # of three whole ones
    with damaged.open("r+b") as file:
        file.seek(200)
        file.write(b"\xff" * 8_000)
    for target in (restore.Target(), restore.Target(3 * BATCH)):
        with pytest.raises(BackupError, match=f"the replay ended at .*{damaged.name}.* is damaged"):
            restored(place, target)
        assert not (place.new / "postgres" / "data").exists()


def test_synchronous_is_refused_while_nobody_receives(place: Place) -> None:
    said = sightline("backup", "synchronous", "on", "--data-dir", place.directory / "old", status=1)
    assert "no receiver is connected" in said


@pytest.fixture(scope="module")
def sound_base(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("backup") / "base"
    backup.base(postgres_server, base, say=print)
    return base


@pytest.mark.parametrize("damage", ["none", "altered", "shortened", "missing", "superfluous", "manifest", "wal"])
def test_a_damaged_base_is_found(sound_base: Path, tmp_path: Path, damage: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(sound_base, base)
    victim = max((path for path in (base / "base").rglob("*") if path.is_file()), key=lambda one: one.stat().st_size)
    match damage:
        case "none":
            assert backup.verify(base).files > 100
            return
        case "altered":
            content = bytearray(victim.read_bytes())
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
        case "shortened":
            os.truncate(victim, victim.stat().st_size - 1)
        case "missing":
            victim.unlink()
        case "superfluous":
            victim.with_name("1").write_bytes(b"")
        case "manifest":
            manifest = base / "backup_manifest"
            manifest.write_bytes(manifest.read_bytes().replace(b'"Size": 3,', b'"Size": 4,', 1))
        case "wal":
            segment = min(path for path in (base / "pg_wal").iterdir() if path.is_file())
            segment.write_bytes(b"\0" * segment.stat().st_size)
    with pytest.raises(BackupError, match=r"altered|damaged|pg_waldump"):
        backup.verify(base)


def test_a_hole_in_the_wal_is_not_taken_for_its_end(place: Place) -> None:
    with receiving(place):
        backup.base(place.server, place.base, say=print)
        for _ in range(3):
            append(place.server, 1)
            with psycopg.connect(place.server.superuser_dsn, autocommit=True) as connection:
                connection.execute("SELECT pg_switch_wal()")
        received(place)
    segments = sorted(place.wal.iterdir())
    segments[-2].unlink()
    with pytest.raises(BackupError, match="is missing"):
        restored(place, restore.Target())
