"""The channel gives its socket up the moment that it is lost: the descriptor's number is another's right after."""

import asyncio
import socket
from contextlib import ExitStack

import psycopg
import pytest
from tests.conftest_log import LogDatabase, command

from sightline.adapters import postgres
from sightline.adapters.event_store import wire
from sightline.adapters.event_store.channel import Channel


@pytest.mark.parametrize("busy", [False, True])
async def test_closing_a_lost_channel_leaves_the_next_owner_of_its_descriptor_alone(
    log_database: LogDatabase, busy: bool
) -> None:
    connection = await postgres.connect(log_database.dsn)
    row = await (await connection.execute("SELECT epoch FROM log_head")).fetchone()
    assert row is not None
    channel = Channel(connection, prepare=True)
    number = connection.pgconn.socket
    calling = None
    with log_database.connect(superuser=True) as superuser:
        if busy:  # it waits for the log's lock when it is lost
            superuser.execute("BEGIN")
            superuser.execute("SELECT FROM log_head FOR UPDATE")
            batch = [wire.render(command())]
            calling = asyncio.create_task(channel.call(wire.payloads(row[0], batch)))
            await asyncio.sleep(0.1)
        superuser.execute("SELECT pg_terminate_backend(%s)", [connection.pgconn.backend_pid])
    if calling is not None:
        with pytest.raises(psycopg.OperationalError):
            await calling
    while channel._lost is None:  # noqa: ASYNC110  # until the loop has read the end of the stream
        await asyncio.sleep(0.01)

    with ExitStack() as held:
        ours, theirs = _pair_at(number, held)
        reader, writer = await asyncio.open_connection(sock=ours)
        await channel.close()
        theirs.sendall(b"still read\n")
        async with asyncio.timeout(60):
            assert await reader.readline() == b"still read\n"
        writer.close()
        await writer.wait_closed()


def _pair_at(number: int, held: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, the first one on that descriptor."""
    for _ in range(100):
        ours, theirs = socket.socketpair()
        held.enter_context(theirs)
        held.enter_context(ours)
        if number in (ours.fileno(), theirs.fileno()):
            return (ours, theirs) if ours.fileno() == number else (theirs, ours)
    raise AssertionError(f"descriptor {number} is still open")
