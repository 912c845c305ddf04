"""SIGTERM under work: readiness fails first, whatever is under way is answered, and nothing acknowledged is lost."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from msgspec import Struct, field
from tests.conftest_log import LogDatabase
from tests.http.door import picture
from tests.http.process import CODE, Running, started

from sightline.adapters.embedded.valkey import ValkeyServer

SUBMITS = 120
NOTICE_S = 2.0  # long enough for a busy machine to look in between
GRACE_S = 5.0
SLOW_S = 2.5  # longer than the notice, well within the grace
EXIT_S_MAX = 60
LONGER = f"from sightline.http import server; server.NOTICE_S, server.GRACE_S = {NOTICE_S}, {GRACE_S}; {CODE}"
PATIENT = f"from sightline.http import server; server.GRACE_S = 60; {CODE}"


class Seen(Struct):
    """What clients saw of a process that ended under them.

    Attributes:
        unanswered: of the submits that were sent whole; one that was not found a closed door.
    """

    jobs: list[str] = field(default_factory=list)
    unanswered: int = 0
    readiness: int = 0
    upload: int = 0
    short_wait: int = 0
    long_wait: httpx.Response | None = None


async def _during(running: Running, number: signal.Signals) -> Seen:
    seen = Seen()
    limits = httpx.Limits(max_connections=SUBMITS + 10, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=running.url, timeout=120, limits=limits) as client:
        position = (await client.get("/v1/events?limit=1")).headers["Event-Position"]
        some_answered = asyncio.Event()

        async def submit() -> None:
            sent: list[str] = []

            async def trace(name: str, _: Any) -> None:
                sent.append(name)

            try:
                answer = await client.post(
                    "/v1/jobs",
                    json={"kind": "noop"},
                    headers={"Idempotency-Key": str(uuid4())},
                    extensions={"trace": trace},
                )
            except httpx.TransportError:
                seen.unanswered += "http11.send_request_body.complete" in sent
                return
            assert answer.status_code == 201, answer.text
            seen.jobs.append(answer.json()["id"])
            if len(seen.jobs) == SUBMITS // 10:
                some_answered.set()

        async def wait(seconds: int, sent: asyncio.Event) -> httpx.Response:
            headers = {"Min-Position": position, "Prefer": f"wait={seconds}"}
            return await client.get("/v1/jobs", headers=headers, extensions={"trace": _setting(sent)})

        submits = [asyncio.create_task(submit()) for _ in range(SUBMITS)]
        await some_answered.wait()
        upload_began, *waits_began = [asyncio.Event() for _ in range(3)]
        upload = asyncio.create_task(_upload(client, upload_began))
        await upload_began.wait()
        waits = [asyncio.create_task(wait(*one)) for one in zip((2, 10), waits_began, strict=True)]
        for began in waits_began:
            await began.wait()
        running.process.send_signal(number)
        with suppress(httpx.TransportError, TimeoutError):
            async with asyncio.timeout(NOTICE_S):
                while seen.readiness != 503:
                    async with httpx.AsyncClient() as balancer:
                        seen.readiness = (await balancer.get(f"{running.url}/readyz")).status_code
        await asyncio.gather(*submits)
        with suppress(httpx.TransportError):
            seen.upload = (await upload).status_code
        with suppress(httpx.TransportError):
            seen.short_wait = (await waits[0]).status_code
        with suppress(httpx.TransportError):
            seen.long_wait = await waits[1]
        await asyncio.wait({upload, *waits})
    return seen


def _setting(sent: asyncio.Event) -> Callable[[str, Any], Awaitable[None]]:
    """What tells when a request was sent as a whole: from then on it is under way."""

    async def trace(name: str, _: Any) -> None:
        if name == "http11.send_request_body.complete":
            sent.set()

    return trace


async def _upload(client: httpx.AsyncClient, began: asyncio.Event) -> httpx.Response:
    """In pieces, over a while."""
    data = picture()
    announced = {"filename": "a.png", "content_type": "image/png", "size_bytes": len(data)}
    grant = (await client.post("/v1/assets", json=announced)).json()["upload"]

    async def pieces() -> AsyncIterator[bytes]:
        step = len(data) // 10 + 1
        for start in range(0, len(data), step):
            yield data[start : start + step]
            began.set()
            await asyncio.sleep(SLOW_S / 10)

    return await client.request(grant["method"], grant["url"], headers=grant["headers"], content=pieces())


def _listens(running: Running) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", running.port)) == 0


def _in_the_log(database: LogDatabase) -> set[str]:
    with database.connect() as connection:
        found = connection.execute("SELECT stream_id::text FROM events WHERE topic = 'job.submitted'").fetchall()
    return {stream_id for (stream_id,) in found}


async def test_whatever_is_under_way_is_answered(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"database_url": log_database.dsn, "redis_url": valkey_server.url}
    with started(tmp_path / "data", code=LONGER, **given) as running:
        seen = await _during(running, signal.SIGTERM)
        assert not _listens(running)
        assert running.process.wait(EXIT_S_MAX) == 0
        lines = running.lines()
    assert seen.readiness == 503
    assert seen.unanswered == 0
    assert len(seen.jobs) > SUBMITS // 2
    assert set(seen.jobs) == _in_the_log(log_database)
    assert seen.upload == 201
    assert seen.short_wait == 425
    assert seen.long_wait is not None
    assert (seen.long_wait.status_code, seen.long_wait.json()["code"]) == (503, "stopping")
    assert seen.long_wait.headers["Retry-After"] == "1"
    assert [line["event"] for line in lines if line["event"] in {"stopping", "stopped"}] == ["stopping", "stopped"]
    assert [line for line in lines if line["level"] in {"error", "critical"} and "Cancel" not in line["event"]] == []


async def test_a_process_that_is_killed_answers_nobody(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    """The control: what was surely under way has no answer. What was acknowledged is in the log all the same."""
    given: dict[str, Any] = {"database_url": log_database.dsn, "redis_url": valkey_server.url}
    with started(tmp_path / "data", **given) as running:
        seen = await _during(running, signal.SIGKILL)
    assert (seen.upload, seen.short_wait, seen.long_wait) == (0, 0, None)
    assert set(seen.jobs) <= _in_the_log(log_database)


async def test_the_second_signal_ends_it_now(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"database_url": log_database.dsn, "redis_url": valkey_server.url}
    with started(tmp_path / "data", code=PATIENT, **given) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            sent = asyncio.Event()
            position = (await client.get("/v1/events?limit=1")).headers["Event-Position"]
            headers = {"Min-Position": position, "Prefer": "wait=10"}
            trace = {"trace": _setting(sent)}
            waiting = asyncio.create_task(client.get("/v1/jobs", headers=headers, extensions=trace))
            await sent.wait()
            for _ in range(2):
                running.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.1)
            running.process.wait(8)  # one signal would wait for the request, which has ten seconds
            await asyncio.wait({waiting})
            waiting.exception()
