"""The notary: signs soon, once, what was; continues where it was; and signs nothing that contradicts its own word."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
from tests.conftest_log import LogDatabase, command
from tests.conftest_service import until

from sightline.adapters import metrics, postgres
from sightline.adapters import settings as settings_
from sightline.adapters.event_store.store import EventStore
from sightline.adapters.event_store.tree import leaf_hashes
from sightline.adapters.notes import Checkpoint, Signer, verify_checkpoint
from sightline.adapters.settings import Settings
from sightline.domain.merkle import root_of
from sightline.workers import notary
from sightline.workers.notary import Contradiction, Kept, Notary, Overtaken, open_notary

EXPOSURE_S = 1.0


@pytest.fixture
def given(log_database: LogDatabase, tmp_path: Path) -> Settings:
    return settings_.read({}, data_dir=tmp_path, database_url=log_database.dsn, database_direct_url=log_database.dsn)


@pytest.fixture
def told() -> Iterator[list[structlog.types.EventDict]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


@asynccontextmanager
async def notary_of(given: Settings) -> AsyncIterator[Notary]:
    async with await postgres.connect(given.database_url) as connection:
        yield await open_notary(connection, Signer.load(given.data_dir / "keys"), Kept.of(given))


@asynccontextmanager
async def running(given: Settings) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    task = asyncio.create_task(notary.run(given, stopping))
    try:
        yield
    finally:
        stopping.set()
        await task


async def fill(store: EventStore, events: int = 3) -> None:
    await store.append(command((uuid4(), 0), events_each=events))


async def sign(given: Settings) -> int:
    async with notary_of(given) as opened:
        await opened.step()
        return opened.size


def checkpoints(database: LogDatabase, given: Settings) -> list[Checkpoint]:
    """As verified from their notes."""
    key = Signer.load(given.data_dir / "keys").public_key
    with database.connect() as connection:
        rows = connection.execute("SELECT note FROM notary_checkpoints ORDER BY tree_size").fetchall()
    return [verify_checkpoint(note, key) for (note,) in rows]


def tamper(database: LogDatabase, *statements: str) -> None:
    """As whoever owns the machine could."""
    with database.connect(superuser=True) as connection:
        for table in ("events", "notary_tiles", "notary_checkpoints"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL".encode())
        for statement in statements:
            connection.execute(statement.encode())


async def test_an_event_is_signed_for_within_a_second_and_a_quiet_log_not_at_all(
    store: EventStore, log_database: LogDatabase, given: Settings
) -> None:
    async with running(given):
        for size in (3, 6, 9):
            await fill(store)
            committed = time.monotonic()

            async def signed(size: int = size) -> list[Checkpoint]:
                found = await asyncio.to_thread(checkpoints, log_database, given)
                return [one for one in found if one.tree_size == size]

            assert await until(signed)
            assert time.monotonic() - committed <= EXPOSURE_S
        before = checkpoints(log_database, given)
        await asyncio.sleep(notary.INTERVAL_S * 2.5)  # that nothing happens can only be waited for
        assert checkpoints(log_database, given) == before
    assert metrics.NOTARISED_POSITION._value.get() == 9


async def test_a_checkpoint_has_the_root_of_all_that_was_appended(
    store: EventStore, log_database: LogDatabase, given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notary, "BATCH_EVENTS_MAX", 300)
    async with notary_of(given) as opened:
        for _ in range(4):
            await fill(store, 250)
        steps = [await opened.step() for _ in range(5)]
    assert steps == [300, 300, 300, 100, 0]
    async with await postgres.connect(log_database.dsn) as connection:
        leaves = await leaf_hashes(connection, after=0, until=1000)
    epoch = store.writer.epoch
    assert [(one.tree_size, one.root, one.extensions) for one in checkpoints(log_database, given)] == [
        (size, root_of(leaves[:size]), (f"epoch {epoch}",)) for size in (300, 600, 900, 1000)
    ]
    with log_database.connect() as owner:
        rows = owner.execute("SELECT epoch, lsn <= pg_current_wal_lsn(), signed_at FROM notary_checkpoints").fetchall()
    assert all((row[0], row[1]) == (epoch, True) and row[2] <= datetime.now(UTC) for row in rows)


async def test_a_notary_goes_on_where_another_stopped(
    store: EventStore, log_database: LogDatabase, given: Settings
) -> None:
    for n in (1, 300, 260):
        await fill(store, n)
        await sign(given)
    assert [one.tree_size for one in checkpoints(log_database, given)] == [1, 301, 561]
    with log_database.connect() as connection:
        tiles = connection.execute("SELECT level, index FROM notary_tiles ORDER BY 1, 2").fetchall()
    assert tiles == [(0, 0), (0, 1)]


async def test_a_notary_whose_disk_fails_goes_on_when_it_does_not(
    given: Settings, store: EventStore, told: list[structlog.types.EventDict]
) -> None:
    """Here a file lies where what it signed last would be kept."""
    await fill(store)
    kept = Kept.of(given)
    kept.path.parent.write_text("in the way")

    async def failed() -> bool:
        return any(line["event"] == "notary_failed" for line in told)

    async def signed() -> bool:
        return kept.path.exists()

    async with running(given):
        await until(failed)
        kept.path.parent.unlink()
        await until(signed)
        await fill(store)
    public_keys = Signer.load(given.data_dir / "keys").public_keys
    assert kept.read(public_keys) is not None


async def test_of_two_notaries_one_waits_until_the_other_is_gone(
    store: EventStore, log_database: LogDatabase, given: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notary, "WAITING_PAUSE_S", 0.05)

    async def signed() -> bool:
        position = (await store.reader.head()).position
        return [one.tree_size for one in checkpoints(log_database, given)][-1:] == [position]

    async with await postgres.connect(given.database_url) as first:
        assert await notary._locked(first)
        async with running(given):
            await fill(store)
            await asyncio.sleep(0.3)
            assert checkpoints(log_database, given) == []
            await first.close()
            assert await until(signed)


async def test_a_notary_whose_log_moved_under_it_starts_again(
    store: EventStore, log_database: LogDatabase, given: Settings
) -> None:
    await fill(store)
    async with notary_of(given) as slow:
        await sign(given)
        with pytest.raises(Overtaken):  # without the condition on the last checkpoint, two trees would be signed
            await slow.step()
    await fill(store)
    async with notary_of(given) as old:
        tamper(log_database, "UPDATE log_head SET epoch = gen_random_uuid()")
        with pytest.raises(Overtaken):
            await old.step()
    assert await sign(given) == 6
    first, second = checkpoints(log_database, given)
    assert first.extensions != second.extensions


# Whatever contradicts the last signature

TAMPERED = {
    "an event of an incomplete tile": ("UPDATE events SET topic = 'x' WHERE position = 601", "root that was signed"),
    "an event of a complete tile": ("UPDATE events SET topic = 'x' WHERE position = 300", "event 300 is not the one"),
    "an event that is gone": ("DELETE FROM events WHERE position = 300", "position 300 is missing"),
    "the end of the log": ("DELETE FROM events WHERE position > 500", "ends at 500"),
    "a tile": ("DELETE FROM notary_tiles WHERE index = 1", "level 0 is missing|tile of level 0"),
    "a tile's hashes": (
        "UPDATE notary_tiles SET hashes = decode(repeat('00', 8192), 'hex') WHERE index = 0",
        "is not the one that was signed",
    ),
    "the signed root": (
        "UPDATE notary_checkpoints SET root = sha256('') WHERE tree_size = 610",
        "says something else than its row",
    ),
    "the note": (
        "UPDATE notary_checkpoints SET note = replace(note, '610', '611') WHERE tree_size = 610",
        "not one of this notary's",
    ),
    "the last checkpoint": ("DELETE FROM notary_checkpoints WHERE tree_size = 610", "a tree of 610 events was signed"),
}


@pytest.mark.parametrize("what", TAMPERED)
async def test_a_contradiction_is_an_alarm_and_no_signature(
    store: EventStore,
    log_database: LogDatabase,
    given: Settings,
    told: list[structlog.types.EventDict],
    what: str,
) -> None:
    statement, reason = TAMPERED[what]
    await fill(store, 600)
    await sign(given)
    await fill(store, 10)
    await sign(given)
    tamper(log_database, statement)
    refusals = metrics.NOTARY_REFUSALS._value.get()

    async def refused() -> str | None:
        return next((line["error"] for line in told if line["event"] == "notary_refuses"), None)

    async with running(given):
        error = await until(refused)
    assert re.search(reason, error)
    assert metrics.NOTARY_REFUSALS._value.get() == refusals + 1
    with log_database.connect() as connection:
        row = connection.execute("SELECT max(tree_size) FROM notary_checkpoints").fetchone()
    assert row is not None
    assert row[0] <= 610


async def test_an_untouched_log_is_signed_on(store: EventStore, log_database: LogDatabase, given: Settings) -> None:
    """The control of the test above."""
    await fill(store, 600)
    await sign(given)
    await fill(store, 10)
    await sign(given)
    tamper(log_database, "SELECT 1")
    await fill(store)
    assert await sign(given) == 613


async def test_a_log_that_was_set_back_is_not_signed_over(
    store: EventStore, log_database: LogDatabase, given: Settings
) -> None:
    """A restore to an earlier moment takes the checkpoints after it along; the notary remembers them all the same."""
    await fill(store, 300)
    await sign(given)
    await fill(store, 10)
    await sign(given)
    tamper(
        log_database,
        "DELETE FROM notary_checkpoints WHERE tree_size > 300",
        "DELETE FROM events WHERE position > 300",
        "UPDATE log_head SET epoch = gen_random_uuid()",
    )
    with pytest.raises(Contradiction, match=r"a tree of 310 events was signed .* restored to an earlier moment"):
        await sign(given)
    with log_database.connect(superuser=True) as superuser:
        superuser.execute(
            "INSERT INTO events SELECT n, gen_random_uuid(), 1, 'x', '{}', '{}', now()"
            " FROM generate_series(301, 320) AS n"
        )
    with pytest.raises(Contradiction):  # no more so when it has grown past that, with other events
        await sign(given)
    Kept.of(given).path.unlink()  # a person decided
    assert await sign(given) == 320


async def test_another_past_of_the_same_length_is_not_signed(
    store: EventStore, log_database: LogDatabase, given: Settings
) -> None:
    """Whoever rewrites the log, its tree and its checkpoints with the key, and forgets the file."""
    await fill(store, 10)
    await sign(given)
    kept = Kept.of(given)
    note = kept.path.read_text()
    tamper(
        log_database,
        "DELETE FROM notary_checkpoints",
        'UPDATE events SET data = \'{"type":"x"}\' WHERE position = 5',
    )
    kept.path.unlink()
    assert await sign(given) == 10  # with nothing remembered it is signed: the witness outside would tell
    kept.path.write_text(note)
    with pytest.raises(Contradiction, match="the first 10 events are not those"):
        await sign(given)


async def test_a_kept_checkpoint_that_cannot_be_read_is_told(store: EventStore, given: Settings) -> None:
    await fill(store)
    await sign(given)
    Kept.of(given).path.write_text("nonsense")
    with pytest.raises(Contradiction, match="no blank line"):
        await sign(given)


async def test_a_lost_database_is_waited_for(
    store: EventStore, log_database: LogDatabase, given: Settings, told: list[structlog.types.EventDict]
) -> None:
    async def signed() -> bool:
        return [one.tree_size for one in checkpoints(log_database, given)][-1:] == [
            (await store.reader.head()).position
        ]

    async with running(given):
        await fill(store)
        assert await until(signed)
        with log_database.connect(superuser=True) as superuser:
            superuser.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        await fill(store)
        assert await until(signed)
    assert any(line["event"] == "notary_failed" for line in told)
