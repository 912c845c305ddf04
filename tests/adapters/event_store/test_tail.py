"""R3: whoever reads the log while others append skips nothing."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
from tests.conftest_log import ROOT, LogDatabase, command, log_rows

from sightline.adapters.event_store.reader import CHANNEL, Tail, subscribe
from sightline.adapters.event_store.store import open_event_store
from sightline.domain.events import EVENTS

EVENTS_IN_ALL = 150_000
PROCESSES, WRITERS_EACH = 2, 3
TAIL_TIMEOUT_S = 60.0
CONTROL_ROUNDS_MAX = 30


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
            assert [process.wait(10) for process in processes] == [0] * PROCESSES
    assert [position for position, _, _ in seen] == list(range(1, EVENTS_IN_ALL + 1))
    assert seen == log_rows(log_database)
    assert beside > 50  # pages were read while the writers wrote


async def test_with_positions_from_a_sequence_and_no_lock_it_skips(log_database: LogDatabase) -> None:
    """The control: what a bigserial and a plain function give."""
    with log_database.connect() as connection:
        connection.execute("CREATE TABLE loose (position bigserial PRIMARY KEY)")
        connection.execute(
            "CREATE FUNCTION append_loosely() RETURNS void BEGIN ATOMIC"
            " INSERT INTO loose SELECT FROM generate_series(1, 10); SELECT pg_sleep(random() * 0.004); END"
        )
    for _ in range(CONTROL_ROUNDS_MAX):
        seen, stored = await tail_loosely(log_database)
        assert seen <= stored
        if seen < stored:
            return
    raise AssertionError("the control saw every event: this file shows nothing")


async def tail_loosely(database: LogDatabase) -> tuple[int, int]:
    """How many a tailing reader saw, and how many there are, after 6 connections appended."""
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as reader:
        at = "SELECT position FROM loose WHERE position > %s ORDER BY position LIMIT 1000"
        last = await (await reader.execute("SELECT coalesce(max(position), 0) FROM loose")).fetchone()
        before = await (await reader.execute("SELECT count(*) FROM loose")).fetchone()
        assert last is not None
        assert before is not None
        position, seen = last[0], before[0]
        writing = [asyncio.create_task(append_loosely(database)) for _ in range(6)]
        over = False
        while True:
            rows = await (await reader.execute(at, [position])).fetchall()
            if rows:
                position, seen = rows[-1][0], seen + len(rows)
            elif over:
                break
            over = all(task.done() for task in writing)
        await asyncio.gather(*writing)
        stored = await (await reader.execute("SELECT count(*) FROM loose")).fetchone()
        assert stored is not None
    return seen, stored[0]


async def append_loosely(database: LogDatabase) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection:
        for _ in range(20):
            await connection.execute("SELECT append_loosely()")


async def test_a_notification_wakes_and_the_poll_does_without(log_database: LogDatabase) -> None:
    async with open_event_store(log_database.dsn, EVENTS) as store, Tail(log_database.dsn) as tail:
        await tail.wait(5)  # it listens
        started = time.monotonic()
        waiting = asyncio.create_task(tail.wait(30))
        await asyncio.sleep(0)
        await store.append(command((uuid4(), 0)))
        await waiting
        assert time.monotonic() - started < 1

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
        async with asyncio.timeout(5):
            assert [one.position for one in await following] == [2]
            while not tail._woken.is_set():  # noqa: ASYNC110  # until it listens again; wait() would time out instead
                await asyncio.sleep(0.01)
