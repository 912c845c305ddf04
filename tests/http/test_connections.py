"""Clients that are slow, large or many: each is told so, in time, and costs the others nothing."""

import asyncio
import json
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import pytest
import uvicorn
from structlog.testing import capture_logs
from uvicorn.lifespan.off import LifespanOff

from sightline.http import connections, patience
from sightline.http.canonical import CanonicalLine
from sightline.http.connections import Connection
from sightline.http.patience import Patience

QUICK_S = 0.2
REST_S = 2.0  # of one who does send it, on a busy machine
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
GET = b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n"


class Application:
    """What a test has behind the connection: it reads the body, waits for `may_answer`, and says how much came."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.was_asked = asyncio.Event()
        self.reads_body = True
        self.answer_bytes = 0
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.was_asked.set()
        size_bytes, more = 0, self.reads_body
        try:
            while more:
                message = await receive()
                size_bytes, more = size_bytes + len(message.get("body", b"")), message.get("more_body", False)
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        body = str(size_bytes).encode() + b"." * self.answer_bytes
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(application: Application) -> AsyncIterator[int]:
    """The port of a server in this loop."""
    wrapped: Any = CanonicalLine(Patience(application, (), set[UUID]()))
    config = uvicorn.Config(wrapped, http=Connection, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = LifespanOff(config)
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(config=config, server_state=server.server_state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        for task in server.server_state.tasks:
            task.cancel()
        if server.server_state.tasks:
            await asyncio.wait(server.server_state.tasks)
        await listener.wait_closed()


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
async def port(application: Application) -> AsyncIterator[int]:
    async with served(application) as port:
        yield port


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits short enough to be waited for."""
    for name in ("HEAD_S_MAX", "REST_S_MAX", "STALLED_S_MAX"):
        monkeypatch.setattr(connections, name, QUICK_S)
    monkeypatch.setattr(patience, "BODY_GRACE_S", QUICK_S)
    monkeypatch.setattr(patience, "LOOK_S", QUICK_S / 10)


async def _answer(reader: Reader) -> tuple[int, dict[str, str], bytes]:
    """One answer; (0, …) where the connection ended without one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return 0, {}, error.partial
    status, *lines = head.decode().strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(status.split()[1]), headers, body


async def _problem(reader: Reader, status: int, code: str) -> dict[str, str]:
    """The answer is this problem, whole and with what every answer carries; and the connection ends."""
    found, headers, body = await _answer(reader)
    problem = json.loads(body)
    assert (found, problem["status"], problem["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert problem["instance"] == f"urn:sightline:request:{headers['x-request-id']}"
    assert problem["detail"].startswith(f"{code}: ")
    for name in ("x-content-type-options", "content-security-policy", "cache-control"):
        assert name in headers
    assert ("retry-after" in headers) == (status == 503)
    return headers


async def _ends(reader: Reader, *, while_sending: bool = False) -> None:
    """Whoever goes on sending may find the connection reset once it is closed; the answer is read by then."""
    async with asyncio.timeout(60):
        with suppress(*[ConnectionResetError] * while_sending):
            assert await reader.read() == b""


@asynccontextmanager
async def _connected(port: int) -> AsyncIterator[tuple[Reader, Writer]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


HEADS = {
    "nonsense": (b"nonsense\r\n\r\n", 400, "malformed_request"),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_request"),
    "a header with NUL": (b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", 400, "malformed_request"),
    "a header without a colon": (b"GET / HTTP/1.1\r\nnonsense\r\n\r\n", 400, "malformed_request"),
    "two lengths": (HEAD.replace(b"%d", b"1\r\nContent-Length: 2"), 400, "malformed_request"),
    "length and chunks": (HEAD.replace(b"%d", b"1\r\nTransfer-Encoding: chunked"), 400, "malformed_request"),
    "a path beyond ASCII": (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
    "a long URL": (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 414, "url_too_long"),
    "a URL without end": (b"GET /" + b"x" * 1_000_000, 414, "url_too_long"),
    "a long header": (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431, "headers_too_large"),
    "a header without end": (b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000, 431, "headers_too_large"),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 101 + b"\r\n", 431, "headers_too_large"),
    "headers that are large together": (
        b"GET / HTTP/1.1\r\n" + (b"X: " + b"x" * 6_000 + b"\r\n") * 12 + b"\r\n",
        431,
        "headers_too_large",
    ),
}


@pytest.mark.parametrize("what", HEADS)
async def test_heads_that_cannot_be(port: int, what: str) -> None:
    head, status, code = HEADS[what]
    async with _connected(port) as (reader, writer):
        writer.write(head)
        assert (await _problem(reader, status, code))["connection"] == "close"
        await _ends(reader)


async def test_a_head_that_comes_byte_by_byte_within_the_time(port: int) -> None:
    """The control: what is refused below is the time, not the pieces."""
    async with _connected(port) as (reader, writer):
        for byte in GET:
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await _answer(reader))[0] == 200


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("first", [b"G", b"GET / HTTP/1.1\r\n", GET[:-2], GET + b"GET"])
async def test_a_slow_head_is_408(port: int, first: bytes) -> None:
    async with _connected(port) as (reader, writer):
        writer.write(first)
        if first.startswith(GET):
            assert (await _answer(reader))[0] == 200
        dripping = asyncio.create_task(_drip(writer, b"X: x\r\n" if first.endswith(b"\r\n") else b""))
        await _problem(reader, 408, "request_timeout")
        await _ends(reader)
        dripping.cancel()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("drip", [b"", b"\r\n"])
async def test_a_client_that_says_nothing_is_let_go(port: int, drip: bytes) -> None:
    async with _connected(port) as (reader, writer):
        dripping = asyncio.create_task(_drip(writer, drip))
        await _ends(reader, while_sending=True)
        dripping.cancel()


async def _drip(writer: Writer, piece: bytes) -> None:
    while True:
        writer.write(piece)
        await asyncio.sleep(QUICK_S / 4)


@pytest.mark.usefixtures("quick")
async def test_a_slow_body_is_408(port: int, application: Application) -> None:
    async with _connected(port) as (reader, writer):
        writer.write(HEAD % 1_000_000)
        dripping = asyncio.create_task(_drip(writer, b"x"))
        await _problem(reader, 408, "request_timeout")
        assert application.cancelled == 1
        await _ends(reader, while_sending=True)
        dripping.cancel()


@pytest.mark.usefixtures("quick")
async def test_a_body_may_take_as_long_as_its_size_allows(
    port: int, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the grace, at more than the rate; and an answer that takes its time is not the body's fault."""
    monkeypatch.setattr(patience, "BODY_BYTES_PER_S_MIN", 25)
    application.may_answer.clear()
    async with _connected(port) as (reader, writer):
        writer.write(HEAD % 4_000)
        for _ in range(16):
            writer.write(b"x" * 250)
            await asyncio.sleep(QUICK_S / 4)
        await asyncio.sleep(2 * QUICK_S)
        application.may_answer.set()
        assert (await _answer(reader))[::2] == (200, b"4000")


@pytest.mark.usefixtures("quick")
async def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(port: int, application: Application) -> None:
    application.reads_body = False
    async with _connected(port) as (reader, writer):
        writer.write(HEAD % 1_000_000)
        assert (await _answer(reader))[0] == 200
        dripping = asyncio.create_task(_drip(writer, b"x"))
        await _ends(reader, while_sending=True)
        dripping.cancel()


@pytest.mark.usefixtures("quick")
async def test_a_body_that_was_answered_early_and_comes_whole_keeps_the_connection(
    port: int, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REST_S_MAX", REST_S)
    application.reads_body = False
    async with _connected(port) as (reader, writer):
        for _ in range(3):
            writer.write(HEAD % 10)
            assert (await _answer(reader))[0] == 200
            writer.write(b"x" * 10)
        await asyncio.sleep(REST_S + QUICK_S)
        writer.write(GET + GET)  # and two at once
        assert [(await _answer(reader))[0] for _ in range(2)] == [200, 200]


@pytest.mark.usefixtures("quick")
async def test_a_client_that_does_not_read_is_cut_off(port: int, application: Application) -> None:
    application.answer_bytes = 30_000_000
    async with _connected(port) as (reader, writer):
        writer.write(GET)
        await application.was_asked.wait()
        await asyncio.sleep(5 * QUICK_S)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await _answer(reader)


async def test_a_client_that_reads_gets_it_all(port: int, application: Application) -> None:
    """The control of the one before."""
    application.answer_bytes = 30_000_000
    async with _connected(port) as (reader, writer):
        writer.write(GET)
        assert len((await _answer(reader))[2]) == 30_000_001


async def test_one_connection_too_many_is_503(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 2)
    async with _connected(port) as first, _connected(port) as second:
        for reader, writer in (first, second):
            writer.write(GET)
            assert (await _answer(reader))[0] == 200
        async with _connected(port) as (reader, _):
            await _problem(reader, 503, "overloaded")
            await _ends(reader)
        second[1].close()
        await _ends(second[0])
    async with _connected(port) as (reader, writer):
        writer.write(GET)
        assert (await _answer(reader))[0] == 200


async def test_one_request_too_many_is_503_and_supervisors_are_answered(
    port: int, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "REQUESTS_MAX", 1)
    application.may_answer.clear()
    async with _connected(port) as (reader, writer), _connected(port) as (second, also):
        writer.write(GET)
        await application.was_asked.wait()
        also.write(GET)
        await _problem(second, 503, "overloaded")
        also.write(GET.replace(b"/v1/x", b"/livez"))
        application.may_answer.set()
        assert [(await _answer(one))[0] for one in (reader, second)] == [200, 200]
        also.write(GET)
        assert (await _answer(second))[0] == 200


async def test_an_answer_that_takes_too_long_is_503(
    port: int, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "REQUEST_S_MAX", QUICK_S)
    monkeypatch.setattr(patience, "LOOK_S", QUICK_S / 10)
    application.may_answer.clear()
    async with _connected(port) as (reader, writer):
        writer.write(HEAD % 1 + b"x")
        await _problem(reader, 503, "timed_out")
        assert application.cancelled == 1
        application.may_answer.set()
        writer.write(GET)  # the connection is as good as before
        assert (await _answer(reader))[0] == 200


@pytest.mark.parametrize("name", sorted(name.decode() for name in patience.SINGULAR))
async def test_a_header_that_readers_could_read_differently(port: int, name: str) -> None:
    for count, status in ((1, 200), (2, 400)):
        async with _connected(port) as (reader, writer):
            head = b"GET /v1/x HTTP/1.1\r\n" + f"{name}: a\r\n".encode() * count + b"\r\n"
            writer.write(head)
            assert (await _answer(reader))[0] == status


async def test_head_is_get_without_its_body(port: int, application: Application) -> None:
    application.answer_bytes = 100
    async with _connected(port) as (reader, writer):
        writer.write(GET.replace(b"GET", b"HEAD"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-length: 101" in head
        writer.write(GET)
        assert len((await _answer(reader))[2]) == 101


async def test_a_refused_connection_is_one_line(port: int) -> None:
    with capture_logs() as told:
        async with _connected(port) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nX: canary\0canary\r\n\r\n")
            await _problem(reader, 400, "malformed_request")
    assert [line["event"] for line in told] == ["connection_refused"]
    assert "canary" not in str(told)
