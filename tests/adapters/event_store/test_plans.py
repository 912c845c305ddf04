"""No plan scans the log, whatever PostgreSQL believes about its size.

The embedded build has no auto_explain, so the server's own counters are asked: whoever scanned `events` or `receipts`
by whichever statement has raised `seq_scan`. A table's length is beyond doubt only after an ANALYZE that may never
have come; a plan made for an empty table cost fifty times as much on a full one.
"""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from tests.conftest_log import LogDatabase, command, database, utc
from tests.conftest_parts import wait_for

from sightline.adapters.embedded import binaries
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.event_store.reader import EventFilter
from sightline.adapters.event_store.store import EventStore, open_event_store
from sightline.adapters.event_store.wire import Guard
from sightline.adapters.event_store.writer import Appended, Repeat, Stale
from sightline.domain.events import EVENTS

FILLED_EVENTS = 20_000
ROUNDS = 12  # more than the executions after which PostgreSQL turns to a generic plan

SCANS = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN ('events', 'receipts')"


def no_session_of_ours(database: LogDatabase) -> bool:
    with database.connect(superuser=True) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'sightline'"
        ).fetchone()
    return found == (0,)


def scans(database: LogDatabase) -> dict[str, int]:
    """Sequential scans of each table since the database was made; a session's are told when it ends."""
    wait_for(lambda: no_session_of_ours(database))
    with database.connect(superuser=True) as connection:
        return dict(connection.execute(SCANS).fetchall())


async def fill(store: EventStore) -> None:
    for _ in range(FILLED_EVENTS // 500):
        outcomes = await asyncio.gather(
            store.append(command((uuid4(), 0), events_each=400)),
            *(store.append(command((uuid4(), 0))) for _ in range(100)),
        )
        assert all(isinstance(outcome, Appended) for outcome in outcomes)


async def append_in_every_way(store: EventStore) -> UUID:
    looked_at, written = uuid4(), uuid4()
    first = command((written, 0), looks=[(looked_at, 0)], guards=[Guard("k", 1, 10**9)], events_each=3)
    assert isinstance(await store.append(first), Appended)
    for version in range(3, 3 + ROUNDS):
        assert isinstance(await store.append(command((written, version), looks=[(looked_at, 0)])), Appended)
        assert isinstance(await store.append(command((written, 1))), Stale)
        assert isinstance(await store.append(first), Repeat)
        assert isinstance(await store.append(command(looks=[(written, version + 1)])), Appended)
    return written


async def read_in_every_way(store: EventStore, stream: UUID) -> None:
    reader = store.reader
    for n in range(ROUNDS):
        head = (await reader.head()).position
        await reader.receipt(uuid4())
        await reader.stream(stream, after=n)
        await reader.stream(stream, up_to_position=head)
        for limit in (1, 100, 1_000):
            await reader.page(after=0, limit=limit)
            await reader.page(after=max(head - 10, 0), limit=limit)
        await reader.search(EventFilter(stream_id=stream), after=0, limit=100)
        await reader.position_at(datetime.now(UTC))
    for wanted in (EventFilter(topic="session."), EventFilter(actor="nobody"), EventFilter(since=utc(1), until=utc(2))):
        await reader.search(wanted, after=0, limit=100)


async def work(store: EventStore) -> None:
    await read_in_every_way(store, await append_in_every_way(store))


async def while_it_fills(database: LogDatabase) -> None:
    """Plans made on the empty tables go on being used on the full ones."""
    async with open_event_store(database.dsn, EVENTS) as store:
        await work(store)
        await fill(store)
        await work(store)


async def analysed_while_tiny(database: LogDatabase) -> None:
    """A scan of one page is the best plan there is, and would be kept."""
    async with open_event_store(database.dsn, EVENTS) as store:
        await work(store)
        analyse(database)
        await work(store)
        await fill(store)
        await work(store)


async def filled_by_others(database: LogDatabase) -> None:
    """New sessions meet full tables that nobody analysed."""
    async with open_event_store(database.dsn, EVENTS) as store:
        await fill(store)
    async with open_event_store(database.dsn, EVENTS) as store:
        await work(store)


async def analysed_while_empty(database: LogDatabase) -> None:
    """The server is sure that the tables are empty, and they no longer are."""
    analyse(database)
    await filled_by_others(database)


async def analysed_when_full(database: LogDatabase) -> None:
    async with open_event_store(database.dsn, EVENTS) as store:
        await fill(store)
    analyse(database)
    async with open_event_store(database.dsn, EVENTS) as store:
        await work(store)


def analyse(database: LogDatabase) -> None:
    with database.connect() as connection:
        connection.execute("ANALYZE events, receipts")


@pytest.mark.parametrize(
    "history", [while_it_fills, analysed_while_tiny, filled_by_others, analysed_while_empty, analysed_when_full]
)
async def test_no_plan_scans_the_log(
    log_database: LogDatabase, history: Callable[[LogDatabase], Awaitable[None]]
) -> None:
    without_autovacuum(log_database)
    before = scans(log_database)
    await history(log_database)
    assert scans(log_database) == before


async def test_not_on_a_restored_log_either(postgres_server: PostgresServer, log_database: LogDatabase) -> None:
    async with open_event_store(log_database.dsn, EVENTS) as store:
        await fill(store)
    with restored(postgres_server, log_database) as copy:
        before = scans(copy)
        async with open_event_store(copy.dsn, EVENTS) as store:
            assert (await store.reader.head()).position == FILLED_EVENTS
            await work(store)
        assert scans(copy) == before


@contextmanager
def restored(server: PostgresServer, original: LogDatabase) -> Iterator[LogDatabase]:
    with database(server, "log_restored", "template0") as copy:
        pg_dump: list[str | Path] = [
            binaries.postgres_program("pg_dump"),
            "--no-statistics",
            "-d",
            original.superuser_dsn,
        ]
        psql: list[str | Path] = [
            binaries.postgres_program("psql"),
            "-qX",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            copy.superuser_dsn,
        ]
        dump = subprocess.run(pg_dump, check=True, capture_output=True, timeout=60)
        subprocess.run(psql, check=True, input=dump.stdout, stdout=subprocess.DEVNULL, timeout=60)
        yield copy


def without_autovacuum(database: LogDatabase) -> None:
    """It might come at any moment and put the statistics right, or never."""
    with database.connect() as connection:
        for table in ("events", "receipts"):
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())


@pytest.mark.parametrize(
    ("breakage", "table"),
    [
        ("ALTER FUNCTION append_batch RESET ALL; ALTER FUNCTION append_batch SET search_path = public", "receipts"),
        ("ALTER TABLE receipts DROP CONSTRAINT receipts_pkey", "receipts"),
        ("DROP INDEX events_stream_id_version", "events"),
    ],
)
async def test_the_counters_tell(log_database: LogDatabase, breakage: str, table: str) -> None:
    """The control: without the settings, or without an index, this file is red."""
    without_autovacuum(log_database)
    with log_database.connect(superuser=True) as superuser:
        superuser.execute(breakage.encode())
    before = scans(log_database)
    async with open_event_store(log_database.dsn, EVENTS) as store:
        await append_in_every_way(store)
        analyse(log_database)
        await append_in_every_way(store)
    assert scans(log_database)[table] > before[table]
