"""The same frames over a WebSocket; and that nothing a client says there is answered by anything but a clear no."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.http.door import Door
from tests.http.live_clients import handshake_lines, listening, port_of, served, submitted, talking
from tests.http.test_live import _listeners, _positions, complete, start, submit

from sightline.adapters.ids import uuid7
from sightline.http import connections, upgrades, websocket
from sightline.http.feed import Subscription
from sightline.http.frames import Frame
from sightline.http.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(door: Door) -> AsyncIterator[Server]:
    async with served(door.services) as server:
        yield server


@pytest.fixture
def port(server: Server) -> int:
    return port_of(server)


async def test_whoever_goes_while_the_first_frame_is_sent_is_forgotten(
    door: Door, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription is followed by then, and the connection does not know its number yet."""
    await _listeners(door, 0)
    job_id, said, sending = await submit(door), websocket._Socket.say, asyncio.Event()

    async def unread(self: websocket._Socket, text: str) -> None:
        if '"snapshot"' in text:  # to a client that takes nothing
            sending.set()
            while connections.live:  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0.01)
        await said(self, text)

    monkeypatch.setattr(websocket._Socket, "say", unread)
    async with talking(port) as client:
        client.say({"subscribe": {"job": str(job_id)}})
        async with asyncio.timeout(5):
            await sending.wait()
        assert door.services.feed.subscriptions == 1, "the control: it is there to be forgotten"
    await _listeners(door, 0)
    assert door.services.feed.subscriptions == 0


async def test_whoever_unsubscribes_from_what_ends_just_then_is_told_so_once(
    door: Door, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the log is read for it: it is over by then, and no longer there to be ended. The connection goes on."""
    job_id = await submit(door)
    await start(door, job_id)
    await complete(door, job_id)
    feed = door.services.feed
    read, reading, told = feed.read, asyncio.Event(), asyncio.Event()

    async def slow(subscription: Subscription) -> list[Frame] | None:
        found = await read(subscription)
        if subscription.asked.job == job_id and found is None:
            reading.set()
            await told.wait()
        return found

    monkeypatch.setattr(feed, "read", slow)
    async with talking(port) as client, asyncio.timeout(10):
        client.say({"subscribe": {"job": str(job_id)}})
        assert (await client.next())["subscribed"] == 1
        assert (await client.next())["event"] == "snapshot"
        await reading.wait()
        client.say({"unsubscribe": 1})
        assert await client.next() == {"unsubscribed": 1}
        told.set()
        client.say({"subscribe": {"job": str(job_id)}})
        assert (await client.next())["subscribed"] == 2
        assert (await client.next())["event"] == "snapshot"
        assert await client.next() == {"subscription": 2, "event": "end", "data": {"reason": "completed"}}


async def test_several_subscriptions_on_one_connection(door: Door, port: int) -> None:
    job_id, batch_id = await submit(door), uuid7()
    async with talking(port) as client:
        assert client.status == 101
        client.say({"subscribe": {"job": str(job_id)}})
        assert (await client.next()).keys() == {"subscribed", "position"}
        snapshot = await client.next()
        assert (snapshot["subscription"], snapshot["event"]) == (1, "snapshot")
        assert snapshot["data"]["job"]["status"] == "pending"
        client.say({"subscribe": {"kind": "embed"}})
        assert (await client.next())["subscribed"] == 2
        await start(door, job_id)
        started = await client.next()
        assert (started["subscription"], started["event"]) == (1, "job.started")
        assert started["id"].startswith(f"{started['data']['position']}@")
        [embed] = await submitted(door.services, 1, kind="embed", batch_id=batch_id)
        told = await client.next()
        assert (told["subscription"], told["data"]["stream_id"]) == (2, str(embed))
        client.say({"unsubscribe": 2})
        assert await client.next() == {"unsubscribed": 2}
        await submitted(door.services, 1, kind="embed")
        await complete(door, job_id)
        assert (await client.next())["event"] == "job.completed"
        assert await client.next() == {"subscription": 1, "event": "end", "data": {"reason": "completed"}}


async def test_the_frames_are_those_of_the_events(door: Door, port: int) -> None:
    async with listening(port, "/v1/stream") as stream, talking(port) as client:
        client.say({"subscribe": {}})
        await client.next()
        await submitted(door.services, 3)
        for _ in range(3):
            event = (await stream.until("job.submitted"))[-1]
            assert await client.next() == {"subscription": 1, "id": event.id, "event": event.name, "data": event.data}


async def test_whoever_is_cut_off_misses_nothing(door: Door, port: int) -> None:
    began = await door.position()
    appending = asyncio.create_task(submitted(door.services, 500))
    seen: list[int] = []
    after, connects = str(began), 0
    while len(seen) < 500:
        async with talking(port) as client:
            connects += 1
            client.say({"subscribe": {"after": after, "kind": "noop"}})
            await client.next()
            for _ in range(min(90, 500 - len(seen))):
                frame = await client.next()
                seen.append(frame["data"]["position"])
                after = frame["id"]
    await appending
    assert seen == await _positions(door, began)
    assert connects > 3


DEEP = "[" * 60_000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "malformed_json"),
        ("hello", "malformed_json"),
        ('{"subscribe": {}', "malformed_json"),
        ("[]", "validation_failed"),
        ("{}", "validation_failed"),
        ('{"subscribe": {}, "unsubscribe": 1}', "validation_failed"),
        ('{"publish": {}}', "validation_failed"),
        ('{"subscribe": {"colour": "red"}}', "validation_failed"),
        ('{"subscribe": {"job": "x"}}', "validation_failed"),
        ('{"subscribe": {"after": "x"}}', "validation_failed"),
        ('{"subscribe": {"after": 7}}', "validation_failed"),
        ('{"subscribe": {"kind": "zzz"}}', "unknown_kind"),
        ('{"subscribe": {"after": "1@ffffffff"}}', "epoch_changed"),
        (json.dumps({"subscribe": {"job": str(uuid7())}}), "not_found"),
        (json.dumps({"subscribe": {"batch": str(uuid7())}}), "not_found"),
        ('{"unsubscribe": 9}', "validation_failed"),
        ('{"unsubscribe": 1e400}', "validation_failed"),
        (f'{{"unsubscribe": {10**30}}}', "validation_failed"),
        (DEEP, "validation_failed"),
        ('{"subscribe": {"kind": "\\u0000"}}', "unknown_kind"),
        ('{"subscribe": {"kind": "\\ud800"}}', "malformed_json"),
    ],
)
async def test_what_cannot_be_is_told_and_the_connection_goes_on(door: Door, port: int, text: str, code: str) -> None:
    async with talking(port) as client:
        client.say_text(text)
        error = (await client.next())["error"]
        assert error["code"] == code, error
        assert error["status"] < 500
        assert error["detail"].startswith(code)
        client.say({"subscribe": {}})
        assert (await client.next())["subscribed"] == 1


async def test_frames_that_end_it(port: int) -> None:
    async with talking(port) as client:
        client.say_bytes(b"\x00\x01")
        assert await client.ended() == 1003
    async with talking(port) as client:
        client.say_text("x" * (upgrades.MESSAGE_BYTES_MAX + 1))
        assert await client.ended() == 1009
    async with talking(port) as client:
        client.say_text('{"subscribe": {}}' + " " * (upgrades.MESSAGE_BYTES_MAX - 17))
        assert (await client.next())["subscribed"] == 1, "the control: the largest that may be"
    for raw, code in (
        (b"\x81\x01x", 1002),  # not masked
        (b"\xc1\x81\x00\x00\x00\x00x", 1002),  # compressed, which was not agreed
        (b"\x83\x80\x00\x00\x00\x00", 1002),  # of a kind that there is not
        (b"\x81\x81\x00\x00\x00\x00\xff", 1007),  # no UTF-8
        (b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + b"x" * 126, 1002),  # a ping that is too long
        (b"\x00\x81\x00\x00\x00\x00x", 1002),  # goes on with nothing
    ):
        async with talking(port) as client:
            client.say_raw(raw)
            assert await client.ended() == code, raw


async def test_one_who_only_makes_mistakes_is_let_go(port: int) -> None:
    async with talking(port) as client:
        for _ in range(websocket.MISTAKES_MAX):
            client.say_text("?")
            assert (await client.next())["error"]["code"] == "malformed_json"
        assert (await client.ended(), client.reason) == (1008, "malformed_json")


async def test_so_many_subscriptions_and_no_more(port: int) -> None:
    async with talking(port) as client:
        for number in range(1, websocket.SUBSCRIPTIONS_MAX + 1):
            client.say({"subscribe": {}})
            assert (await client.next())["subscribed"] == number
        client.say({"subscribe": {}})
        assert (await client.next())["error"]["code"] == "too_many_subscriptions"


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, 101),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Key": None}, 426),
        ({"Sec_WebSocket_Key": "short"}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "close"}, 426),
        ({"Content_Length": "3"}, 426),
    ],
)
async def test_a_handshake_that_is_none_is_answered_as_the_request_that_it_is(
    port: int, changed: dict[str, Any], status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(handshake_lines(**changed) + (b"abc" if "Content_Length" in changed else b""))
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    await writer.wait_closed()
    assert int(head.split()[1]) == status, head
    assert "content-security-policy" in head.lower() or status == 101


async def test_an_upgrade_elsewhere_is_answered_as_a_request(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(handshake_lines().replace(b"/v1/ws", b"/livez"))
    async with asyncio.timeout(5):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def test_an_upgrade_behind_another_request_does_not_take_its_connection(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n" + handshake_lines())
    async with asyncio.timeout(5):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"426 ")
    writer.close()
    await writer.wait_closed()


async def test_a_page_of_another_origin_may_not_connect(door: Door, port: int) -> None:
    """Its browser would let it, and nobody here asks for a password."""
    async with talking(port, {"Origin": "https://elsewhere.example"}) as client:
        assert (client.status, json.loads(client.body)["code"]) == (403, "forbidden")
        assert client.headers["content-type"] == "application/problem+json"
    for origin in ("http://sightline.test", "https://sightline.test"):
        async with talking(port, {"Origin": origin}) as client:
            assert client.status == 101
    settings = replace(door.services.settings, cors_origins=["https://app.example.org"])
    async with (
        served(replace(door.services, settings=settings)) as server,
        talking(port_of(server), {"Origin": "https://app.example.org"}) as client,
    ):
        assert client.status == 101


async def test_sockets_are_counted_with_the_streams(door: Door, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await _listeners(door, 0)
    monkeypatch.setattr(door.services.feed, "_streams_max", 1)
    async with talking(port) as first, talking(port) as second:
        assert (first.status, second.status) == (101, 503)
        assert json.loads(second.body)["code"] == "too_many_streams"
        assert len(connections.live) == 1
        assert second.headers["retry-after"] == "3"
    await _listeners(door, 0)
    assert not connections.live


async def test_whoever_does_not_answer_a_ping_is_let_go(
    door: Door, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _listeners(door, 0)
    monkeypatch.setattr(server.config, "ws_ping_interval", 0.05)
    monkeypatch.setattr(server.config, "ws_ping_timeout", 0.2)
    async with talking(port_of(server)) as silent, talking(port_of(server)) as answering:
        await _listeners(door, 2)
        async with asyncio.timeout(5):
            while len(door.services.feed) == 2:
                with_pings = asyncio.create_task(answering._more())
                await asyncio.wait({with_pings}, timeout=0.1)
                with_pings.cancel()
                await asyncio.wait({with_pings})
        assert answering.pings
        assert await silent.ended() == 1011
        assert answering.closed is None, "the control: who answers stays"


@pytest.mark.parametrize("stalled_s", [0.3, 30.0])
async def test_who_does_not_read_is_let_go(
    door: Door, port: int, monkeypatch: pytest.MonkeyPatch, stalled_s: float
) -> None:
    await _listeners(door, 0)
    monkeypatch.setattr(connections, "STALLED_S_MAX", stalled_s)
    async with talking(port, buffer_bytes=4096) as stalled, talking(port) as reading:
        for client in (stalled, reading):
            client.say({"subscribe": {}})
            await client.next()
        ids = await submitted(door.services, 1_500)
        assert [(await reading.next())["data"]["stream_id"] for _ in ids] == [str(one) for one in ids]
        if stalled_s < 1:
            await _listeners(door, 1)
        else:
            assert len(door.services.feed) == 2, "the control"
