"""A unix socket between a client and PostgreSQL that can lose the answer to a statement which was carried out."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

SOCKET = ".s.PGSQL.5432"
READY_FOR_QUERY = b"Z\x00\x00\x00\x05I"  # the end of an answer; sent after the commit
CHUNK_BYTES = 65_536


class Proxy:
    """
    Args:
        dsn: of the server, by its socket's directory.
        directory: where this one listens.
        asked: only answers to what holds these bytes are lost.
    """

    def __init__(self, dsn: str, directory: Path, *, asked: bytes = b"") -> None:
        self._asked = asked
        self._server_socket = Path(str(conninfo_to_dict(dsn)["host"])) / SOCKET
        self._socket = directory / SOCKET
        self._connections: set[asyncio.Task[None]] = set()
        self._answers_to_lose = 0
        self.answers_lost = 0
        self.dsn = make_conninfo(dsn, host=str(directory), port=5432)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accepted, self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def refuse(self) -> None:
        """Listen no more, and cut whoever is connected."""
        self._server.close()
        self._socket.unlink(missing_ok=True)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def lose_next_answer(self) -> None:
        """Wait for the next answer's end, and cut the connection instead of passing it on."""
        self._answers_to_lose += 1

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._server_socket)
        except OSError:  # the server is away, and so is this one
            writer.close()
            return
        due = asyncio.Event()  # the answer to something that may be lost comes next
        to_server = asyncio.create_task(self._forward(reader, up_writer, due))
        to_client = asyncio.create_task(self._answer(up_reader, writer, due))
        try:
            await asyncio.wait({to_server, to_client}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # refuse() ends it; the streams are closed below all the same
        finally:
            for pump in (to_server, to_client):
                pump.cancel()
            await asyncio.gather(to_server, to_client, return_exceptions=True)
            for stream in (writer, up_writer):
                stream.close()
                with suppress(OSError):
                    await stream.wait_closed()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, due: asyncio.Event) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._asked in data:
                due.set()
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, due: asyncio.Event) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._answers_to_lose and due.is_set():
                while not data.endswith(READY_FOR_QUERY):
                    data += await reader.readexactly(1)
                self._answers_to_lose -= 1
                self.answers_lost += 1
                return
            if data.endswith(READY_FOR_QUERY):
                due.clear()
            writer.write(data)
            await writer.drain()
