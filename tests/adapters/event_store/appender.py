"""A process that appends; run by tests: `appender.py MODE DSN …`.

events DSN WRITERS EVENTS   each writer appends EVENTS events to streams of its own, then the process ends
endless DSN                 appends until it is killed
three-messages DSN          the same, with BEGIN, call and COMMIT said one by one: the control
"""

import asyncio
import sys
from uuid import uuid4

import psycopg
from tests.conftest_log import METADATA, event, register_arrays

from sightline.adapters import postgres
from sightline.adapters.event_store import wire
from sightline.adapters.event_store.wire import Append, Expectation
from sightline.adapters.event_store.writer import Appended, Writer

EVENTS_EACH = 25
IN_FLIGHT = 16


def new_stream(events: int) -> Append:
    stream = uuid4()
    return Append(
        command_id=uuid4(),
        expectations=[Expectation(stream, 0, writes=True)],
        events=[event(stream, version) for version in range(1, events + 1)],
        metadata=METADATA,
        result=b'{"kept":"%s"}' % (b"x" * 100),
    )


async def append(dsn: str, commands: int | None) -> None:
    """`commands` of EVENTS_EACH events on one connection, or without an end, some of them repeats."""
    writer = Writer(dsn)
    await writer.start()
    left = iter(range(commands)) if commands is not None else iter(int, 1)

    async def one_after_the_other() -> None:
        for _ in left:
            one = new_stream(EVENTS_EACH)
            assert isinstance(await writer.append(one), Appended)
            if commands is None:
                await writer.append(one)

    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
    await writer.close()


async def append_on(dsn: str, writers: int, events: int) -> None:
    await asyncio.gather(*(append(dsn, events // EVENTS_EACH) for _ in range(writers)))


def append_in_three_messages(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:  # not autocommit: BEGIN goes before the call, COMMIT after it
        register_arrays(connection)
        epoch = connection.execute("SELECT epoch FROM log_head").fetchone()
        connection.commit()
        assert epoch is not None
        while True:
            batch = [wire.render(new_stream(EVENTS_EACH)) for _ in range(IN_FLIGHT)]
            connection.execute(wire.STATEMENT, wire.parameters(epoch[0], batch)).fetchall()
            connection.commit()


if __name__ == "__main__":
    mode, dsn, *figures = sys.argv[1:]
    postgres.CONNECT_TIMEOUT_S = 30  # the test run may use every core
    if mode == "events":
        asyncio.run(append_on(dsn, *map(int, figures)))
    elif mode == "endless":
        asyncio.run(append(dsn, None))
    else:
        append_in_three_messages(dsn)
