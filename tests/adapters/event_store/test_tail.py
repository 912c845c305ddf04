"""R3: whoever reads the log while others append skips nothing."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from tests.adapters.event_store.test_append_batch import Log
from tests.conftest_log import ROOT, LogDatabase, command, log_rows

from sightline.adapters.event_store.reader import CHANNEL, Tail, subscribe
from sightline.adapters.event_store.store import open_event_store
from sightline.domain.events import EVENTS

EVENTS_IN_ALL = 150_000
PROCESSES, WRITERS_EACH = 2, 3
TAIL_TIMEOUT_S = 300.0


@contextmanager
def appenders(*words: object, processes: int = PROCESSES) -> Iterator[list[subprocess.Popen[bytes]]]:
    line = [sys.executable, "-m", "tests.adapters.event_store.appender", *map(str, words)]
    running = [subprocess.Popen(line, cwd=ROOT) for _ in range(processes)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


async def test_a_tailing_reader_beside_6_writers_sees_each_event_once_and_in_order(log_database: LogDatabase) -> None:
    seen: list[tuple[int, object, int]] = []
    each = EVENTS_IN_ALL // (PROCESSES * WRITERS_EACH)
    async with open_event_store(log_database.dsn, EVENTS) as store, Tail(log_database.dsn) as tail:
        with appenders("events", log_database.dsn, WRITERS_EACH, each) as processes:
            beside = 0
            async with asyncio.timeout(TAIL_TIMEOUT_S):
                async for page in subscribe(store.reader, tail, after=0):
                    seen += [(one.position, one.stream_id, one.originator_version) for one in page]
                    beside += any(process.poll() is None for process in processes)
                    if len(seen) >= EVENTS_IN_ALL:
                        break
            assert [process.wait(60) for process in processes] == [0] * PROCESSES
    assert [position for position, _, _ in seen] == list(range(1, EVENTS_IN_ALL + 1))
    assert seen == log_rows(log_database)
    assert beside > 5  # pages were read while the writers wrote


async def test_with_positions_from_a_sequence_and_no_lock_it_skips(log_database: LogDatabase) -> None:
    """The control: what a bigserial gives, where one transaction takes a position and another is through before it."""
    at = "SELECT position FROM loose WHERE position > %s ORDER BY position"
    say = "INSERT INTO loose DEFAULT VALUES RETURNING position"
    with log_database.connect() as reader, log_database.connect() as slow, log_database.connect() as quick:
        reader.execute("CREATE TABLE loose (position bigserial PRIMARY KEY)")
        slow.execute("BEGIN")
        assert slow.execute(say).fetchone() == (1,)
        assert quick.execute(say).fetchone() == (2,)
        seen = reader.execute(at, [0]).fetchall()
        slow.execute("COMMIT")
        seen += reader.execute(at, [seen[-1][0]]).fetchall()
        assert seen == [(2,)]
        assert reader.execute("SELECT count(*) FROM loose").fetchone() == (2,)


async def test_with_the_lock_the_second_waits_for_the_first(log_database: LogDatabase) -> None:
    """The same two, appended by the function that there is."""
    async with open_event_store(log_database.dsn, EVENTS) as store:
        with log_database.connect() as slow, log_database.connect(superuser=True) as superuser:
            slow.execute("BEGIN")
            Log(slow).call(command((uuid4(), 0)))
            quick = asyncio.create_task(store.append(command((uuid4(), 0))))
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = %s"
            )
            while superuser.execute(waiting, ["Lock"]).fetchone() != (1,):  # noqa: ASYNC110  # it happens in the server
                await asyncio.sleep(0.005)
            assert await store.reader.page(after=0) == []
            slow.execute("COMMIT")
        await quick
        assert [one.position for one in await store.reader.page(after=0)] == [1, 2]


async def test_a_notification_wakes_and_the_poll_does_without(log_database: LogDatabase) -> None:
    async with open_event_store(log_database.dsn, EVENTS) as store, Tail(log_database.dsn) as tail:
        await tail.wait(60)  # it listens
        waiting = asyncio.create_task(tail.wait(600))
        await asyncio.sleep(0)
        await store.append(command((uuid4(), 0)))
        async with asyncio.timeout(60):
            await waiting

        pages = subscribe(store.reader, tail, after=1)
        with log_database.connect(superuser=True) as superuser:
            cut = superuser.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE query LIKE %s AND pid <> pg_backend_pid() AND datname = current_database()",
                [f'LISTEN "{CHANNEL}"%'],
            ).fetchone()
        assert cut == (1,)
        following = asyncio.ensure_future(anext(pages))
        await store.append(command((uuid4(), 0)))
        async with asyncio.timeout(60):
            assert [one.position for one in await following] == [2]
            while not tail._woken.is_set():  # noqa: ASYNC110  # until it listens again; wait() would time out instead
                await asyncio.sleep(0.01)
