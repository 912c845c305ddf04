"""The writer's own way over its connection: one prepared statement, binary both ways, one callback per answer.

psycopg opens the connection, speaks for its errors and closes it. Its cursors serve any query and cost 0.2 ms of this
process for each; this serves one and costs a tenth, which is what a lone writer waits for (`benchmarks/`).

Format of the answers: int4 and int8 big-endian, timestamptz as µs since 2000-01-01 UTC, text and json as they are.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct as Packer

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from . import wire

NAME = b"append_batch"
EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)

_int4 = Packer(">i").unpack
_int8 = Packer(">q").unpack

Row = tuple[int, str, int, bytes | None, datetime]


class Channel:
    """One connection; one call at a time.

    Args:
        connection: open, and used for nothing else until close().
        prepare: keep the statement on the server; off behind a pooler that hands each call to another server process.
    """

    def __init__(self, connection: psycopg.AsyncConnection, *, prepare: bool) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._readable: asyncio.Future[None] | None = None
        self._lost: psycopg.Error | None = None
        self._prepare = prepare
        self._prepared = False
        self._fd = self._pg.socket
        self._loop.add_reader(self._fd, self._on_readable)

    async def call(self, parameters: Sequence[bytes]) -> list[Row]:
        """The rows of append_batch.

        Raises:
            psycopg.Error: the server's own, or that the connection is lost.
        """
        try:
            return await self._called(parameters)
        except psycopg.Error as error:
            if self._pg.status == pq.ConnStatus.BAD:
                self._lose(error)  # at once: libpq has closed the socket, and its number may be another's next
            raise

    async def _called(self, parameters: Sequence[bytes]) -> list[Row]:
        formats = [pq.Format.BINARY] * len(parameters)
        if self._prepare and not self._prepared:
            self._pg.send_prepare(NAME, wire.PREPARED, wire.OIDS)
            await self._result()
            self._prepared = True
        if self._prepared:
            self._pg.send_query_prepared(NAME, parameters, formats, pq.Format.BINARY)
        else:
            self._pg.send_query_params(wire.PREPARED, parameters, wire.OIDS, formats, pq.Format.BINARY)
        return _rows(await self._result())

    async def close(self) -> None:
        """Give the connection up. Twice is once."""
        self._lose(psycopg.OperationalError("the channel is closed"))
        await self._connection.close()

    async def _result(self) -> pq.abc.PGresult:
        """The one result of what was sent."""
        self._flush()
        found = None
        while (result := await self._next()) is not None:
            found = result
        if found is None:
            raise psycopg.OperationalError("the connection gave no answer")
        if found.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(found)
        return found

    async def _next(self) -> pq.abc.PGresult | None:
        """The next result, without ever blocking for it."""
        while self._lost is None:
            if not self._pg.is_busy():
                return self._pg.get_result()
            self._readable = self._loop.create_future()
            await self._readable
        raise self._lost

    def _on_readable(self) -> None:
        try:
            self._pg.consume_input()
        except psycopg.Error as error:
            self._lose(error)
        self._wake()

    def _flush(self) -> None:
        """Send what the socket takes; the rest when it takes more."""
        try:
            pending = self._pg.flush()
        except psycopg.Error as error:
            self._lose(error)
            self._wake()
            return
        if pending:
            self._loop.add_writer(self._fd, self._flush)
        else:
            self._loop.remove_writer(self._fd)

    def _lose(self, error: psycopg.Error) -> None:
        """Once: afterwards the descriptor's number may belong to another socket of this process."""
        if self._lost is not None:
            return
        self._lost = error
        self._loop.remove_reader(self._fd)  # the socket of a lost connection stays readable for ever
        self._loop.remove_writer(self._fd)

    def _wake(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)


def _rows(result: pq.abc.PGresult) -> list[Row]:
    return [_row(result, number) for number in range(result.ntuples)]


def _row(result: pq.abc.PGresult, number: int) -> Row:
    n, outcome, position, kept, at = (result.get_value(number, column) for column in range(5))
    assert n is not None
    assert outcome is not None
    assert at is not None
    return (
        _int4(n)[0],
        outcome.decode(),
        0 if position is None else _int8(position)[0],
        kept,
        EPOCH_2000 + timedelta(microseconds=_int8(at)[0]),
    )
