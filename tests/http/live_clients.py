"""Clients that listen: server-sent events and WebSockets, over sockets of their own, and a server in this loop."""

import asyncio
import base64
import json
import os
import socket
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import wsproto
from msgspec import Struct
from msgspec.structs import replace
from tests.conftest_service import by
from tests.http.door import Door
from wsproto import events

from sightline.adapters.event_store.codec import Fact
from sightline.adapters.event_store.wire import Append, Expectation
from sightline.adapters.event_store.writer import Appended
from sightline.adapters.ids import uuid7
from sightline.domain.jobs import JobSubmitted
from sightline.http.app import create_app
from sightline.http.server import Server
from sightline.http.services import Services

ANSWER_S = 60.0
SUBMITTED_AT_ONCE = 50


async def submitted(
    services: Services, count: int, *, owner: str = "local", kind: str = "noop", batch_id: UUID | None = None
) -> list[UUID]:
    """So many jobs, in appends of up to SUBMITTED_AT_ONCE; each one event, whatever its kind would take."""
    found: list[UUID] = []
    while len(found) < count:
        ids = [uuid7() for _ in range(min(SUBMITTED_AT_ONCE, count - len(found)))]
        event = JobSubmitted(at=datetime.now(UTC), owner=owner, kind=kind, batch_id=batch_id, attempts_max=1)
        append = Append(
            command_id=uuid7(),
            expectations=[Expectation(job_id, 0, writes=True) for job_id in ids],
            events=[services.store.mapper.to_stored_event(Fact(job_id, 1, event)) for job_id in ids],
            metadata=services.store.mapper.metadata(by(owner)),
            guards=(),
            result=None,
        )
        assert isinstance(await services.store.append(append), Appended)
        found += ids
    return found


@asynccontextmanager
async def served(services: Services) -> AsyncIterator[Server]:
    """The application over these services, on a port of this machine."""
    server = Server(create_app(services), replace(services.settings, port=0), None, services.feed.stop)
    await server.startup()
    try:
        yield server
    finally:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        for task in server.server_state.tasks:
            task.cancel()
        await server.shutdown()


def port_of(server: Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


class Event(Struct, frozen=True):
    """One server-sent event.

    Attributes:
        id: the last one that was given up to here, by whichever event.
        name: empty where there was only an id.
    """

    id: str
    name: str
    data: Any = None

    @property
    def position(self) -> int:
        return int(self.id.partition("@")[0])


class Listening:
    """An open stream of server-sent events.

    Attributes:
        last_id: what a client that comes back sends as Last-Event-ID.
    """

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._text = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.last_id = ""
        self.retry_ms = 0
        self.beats = 0

    async def head(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        self.status = int(status.split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines)

    async def body(self) -> Any:
        """Of an answer that is no stream."""
        return json.loads(await self._reader.readexactly(int(self.headers["content-length"])))

    async def next(self) -> Event | None:
        """The next event; None where the stream has ended. Ids alone and comments are no events."""
        while True:
            block, found, rest = self._text.partition(b"\n\n")
            if found:
                self._text = rest
                event = self._event(block.decode())
                if event is not None:
                    return event
                continue
            chunk = await self._chunk()
            if not chunk:
                return None
            self._text += chunk

    async def until(self, name: str) -> list[Event]:
        """All events up to the first of this name, that one included."""
        found: list[Event] = []
        async with asyncio.timeout(ANSWER_S):
            while (event := await self.next()) is not None:
                found.append(event)
                if event.name == name:
                    return found
        raise AssertionError(f"the stream ended before {name}: {[one.name for one in found]}")

    async def rest(self) -> list[Event]:
        """All events up to the end of the stream."""
        found: list[Event] = []
        async with asyncio.timeout(ANSWER_S):
            while (event := await self.next()) is not None:
                found.append(event)
        return found

    async def _chunk(self) -> bytes:
        """Empty at the end; a connection that was cut ends as well."""
        try:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            return (await self._reader.readexactly(size + 2))[:size]
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    def _event(self, block: str) -> Event | None:
        name, data = "", None
        for line in block.split("\n"):
            field, _, value = line.partition(": ")
            match field:
                case "id":
                    self.last_id = value
                case "event":
                    name = value
                case "data":
                    data = json.loads(value)
                case "retry":
                    self.retry_ms = int(value)
                case ":" | "":
                    self.beats += 1
        return Event(self.last_id, name, data) if name else None


@asynccontextmanager
async def listening(
    port: int,
    path: str,
    headers: Mapping[str, str] = {},
    *,
    buffer_bytes: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Listening]:
    """A stream whose head has come; with a small buffer, one that reads no more than it is asked to."""
    reader, writer = await _connected(port, buffer_bytes, tls)
    try:
        lines = [f"GET {path} HTTP/1.1", "Host: sightline.test", *(f"{name}: {one}" for name, one in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        found = Listening(reader, writer)
        async with asyncio.timeout(ANSWER_S):
            await found.head()
        yield found
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _connected(
    port: int, buffer_bytes: int | None, tls: ssl.SSLContext | None
) -> tuple[StreamReader, StreamWriter]:
    if buffer_bytes is None:
        return await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    connecting = socket.socket()
    connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    connecting.setblocking(False)  # noqa: FBT003  # the standard library's own signature
    await asyncio.get_running_loop().sock_connect(connecting, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=connecting, limit=buffer_bytes)


class Talking:
    """An open WebSocket.

    Attributes:
        status: of the handshake.
        closed: the code of the close frame; 1006 where the connection ended without one.
    """

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ws = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._texts: list[str] = []
        self._partial = ""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.subprotocol: str | None = None
        self.body = b""
        self.closed: int | None = None
        self.reason: str | None = None
        self.pings = 0

    async def handshake(self, path: str, headers: Mapping[str, str], subprotocols: Sequence[str]) -> None:
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = events.Request(
            host="sightline.test", target=path, extra_headers=extra, subprotocols=list(subprotocols)
        )
        self._write(self._ws.send(request))
        async with asyncio.timeout(ANSWER_S):
            while not self.status and self.closed is None:
                await self._more()

    def say(self, message: Any) -> None:
        self.say_text(json.dumps(message))

    def say_text(self, text: str) -> None:
        self._write(self._ws.send(events.TextMessage(data=text)))

    def say_bytes(self, data: bytes) -> None:
        self._write(self._ws.send(events.BytesMessage(data=data)))

    def say_raw(self, data: bytes) -> None:
        self._write(data)

    async def next(self) -> Any:
        """The next message, decoded; None where the server has closed."""
        async with asyncio.timeout(ANSWER_S):
            while not self._texts and self.closed is None:
                await self._more()
        return json.loads(self._texts.pop(0)) if self._texts else None

    async def ended(self) -> int:
        """The close code, once there is one."""
        while await self.next() is not None:
            pass
        assert self.closed is not None
        return self.closed

    def _write(self, data: bytes) -> None:
        self._writer.write(data)

    async def _more(self) -> None:
        try:
            data = await self._reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = self.closed or 1006
            return
        self._ws.receive_data(data)
        for event in self._ws.events():
            match event:
                case events.AcceptConnection():
                    self.status, self.subprotocol = 101, event.subprotocol
                    self.headers = {name.decode().lower(): one.decode() for name, one in event.extra_headers}
                case events.RejectConnection():
                    self.status = event.status_code
                    self.headers = {name.decode().lower(): one.decode() for name, one in event.headers}
                case events.RejectData():
                    self.body += event.data
                case events.TextMessage():
                    self._partial += event.data
                    if event.message_finished:
                        self._texts.append(self._partial)
                        self._partial = ""
                case events.Ping():
                    self.pings += 1
                    self._write(self._ws.send(event.response()))
                case events.CloseConnection():
                    self.closed, self.reason = event.code, event.reason
                    if self._ws.state is wsproto.connection.ConnectionState.REMOTE_CLOSING:
                        self._write(self._ws.send(event.response()))


@asynccontextmanager
async def talking(
    port: int,
    headers: Mapping[str, str] = {},
    *,
    subprotocols: Sequence[str] = (),
    buffer_bytes: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Talking]:
    """A WebSocket whose handshake was answered."""
    reader, writer = await _connected(port, buffer_bytes, tls)
    try:
        found = Talking(reader, writer)
        await found.handshake("/v1/ws", headers, subprotocols)
        yield found
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


def handshake_lines(**changed: str | None) -> bytes:
    """A handshake's head by hand, with headers of it changed or left out."""
    key = base64.b64encode(os.urandom(16)).decode()
    given: dict[str, str | None] = {
        "Host": "sightline.test",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
    }
    given |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = ["GET /v1/ws HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join([*lines, "", ""]).encode()


async def handshaken(door: Door, path: str, headers: Mapping[str, str]) -> httpx.Response:
    """What the application itself answers to a handshake; it is closed at once."""
    raw = [(b"host", b"sightline.test"), *((name.lower().encode(), one.encode()) for name, one in headers.items())]
    scope: Any = {"type": "websocket", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": raw}
    scope |= {"state": {}, "subprotocols": [], "client": ("127.0.0.1", 1), "scheme": "ws", "root_path": "", "asgi": {}}
    received: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
    sent: list[Any] = []

    async def receive() -> Any:
        return received.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    application: Any = door.client._transport
    await application.app(scope, receive, send)
    status = 101 if sent[0]["type"] == "websocket.accept" else sent[0]["status"]
    body = b"" if status == 101 else sent[1]["body"]  # Switching Protocols
    return httpx.Response(
        status, headers=sent[0]["headers"], content=body, request=httpx.Request("GET", f"ws://x{path}")
    )
