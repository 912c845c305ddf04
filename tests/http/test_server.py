"""The API as a process: over a real socket, with liars and hurried clients, until SIGTERM."""

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest_log import LogDatabase
from tests.conftest_parts import wait_for
from tests.http.door import picture
from tests.http.process import Running, started

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.settings import SettingsError, require_loopback


@pytest.fixture(scope="module")
def running(
    door_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("server")
    with started(directory, database_url=door_database.dsn, redis_url=valkey_server.url) as running:
        yield running


def _raw(running: Running, request: bytes, *, then_close: bool = True) -> bytes:
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(request)
        if then_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def _head(length: int | str) -> bytes:
    return (
        b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        + f"Content-Length: {length}\r\n\r\n".encode()
    )


def test_it_says_that_authentication_is_off(running: Running) -> None:
    said = next(line for line in running.lines() if line["event"] == "authentication_off")
    assert (said["actor"], said["level"]) == ("local", "warning")


def test_liars_about_length_change_nothing(running: Running) -> None:
    before = httpx.get(f"{running.url}/v1/events?limit=1").headers["Event-Position"]
    for request in (
        _head(100) + b"{}",  # less than it says: cut
        _head("x") + b"{}",
        _head(-1) + b"{}",
        _head(2).replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n") + b"{}",
        b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"nonsense\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
    ):
        answer = _raw(running, request)
        assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 5")), answer
    assert httpx.get(f"{running.url}/v1/events?limit=1").headers["Event-Position"] == before


def test_a_body_announced_as_too_large_is_not_waited_for(running: Running) -> None:
    answer = _raw(running, _head(10**12), then_close=False)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in answer


def test_a_client_that_leaves_is_no_error_of_ours(running: Running) -> None:
    _raw(running, _head(100) + b"{")
    assert [line for line in running.lines() if line["level"] in {"error", "critical"}] == []


def test_the_documented_workflow_with_curl(running: Running, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(picture(kind="JPEG"))

    def curl(*arguments: str) -> Any:
        done = subprocess.run(["curl", "-sS", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=120)
        return json.loads(done.stdout) if done.stdout else None

    uploaded = curl("-X", "POST", f"{running.url}/api/jobs/upload", "-F", "file=@image.jpg")
    form = ("-F", f"filename={uploaded['filename']}", "-F", "mode=photo-realistic", "-F", "num_layers=4")
    job = curl("-X", "POST", f"{running.url}/api/jobs", *form)
    assert (job["status"], job["num_layers"]) == ("pending", 4)


def test_each_request_is_one_line(running: Running) -> None:
    hostile = 'x\n{"event": "forged"}\u2028\x7f'
    httpx.get(f"{running.url}/v1/jobs", params={"kind": hostile}, headers={"X-Request-ID": "line-1"})
    httpx.get(f"{running.url}/nothing/{'%0a' * 5}", headers={"X-Request-ID": "line-2"})
    found = running.requests("line-1", "line-2")
    assert found["line-1"].items() >= {"method": "GET", "route": "/v1/jobs", "status": 200, "actor": "local"}.items()
    assert isinstance(found["line-1"]["duration_ms"], float)
    assert (found["line-2"]["route"], found["line-2"]["status"], found["line-2"]["code"]) == (
        "unmatched",
        404,
        "not_found",
    )
    assert all(line["event"] != "forged" for line in running.lines())


def test_metrics_are_by_route(running: Running) -> None:
    httpx.get(f"{running.url}/v1/jobs/00000000-0000-0000-0000-000000000007")
    text = httpx.get(f"{running.url}/metrics").text
    assert 'route="/v1/jobs/{job_id}",status="404"' in text
    assert "00000000-0000" not in text


def test_readiness_names_the_part_that_fails(running: Running) -> None:
    """Nobody projects here: the log is ahead of the read models, and stays so."""

    def only_the_projector() -> bool:
        """On a machine that is busy a part may be slow to answer; none stays so."""
        answer = httpx.get(f"{running.url}/readyz", timeout=60)
        assert answer.status_code == 503
        checks = answer.json()["checks"]
        assert checks["projector"]["status"] == "failed"
        return {checks[name]["status"] for name in ("event_store", "object_store", "valkey")} == {"ok"}

    wait_for(only_the_projector)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
def test_without_authentication_it_stays_on_this_machine(host: str) -> None:
    with pytest.raises(SettingsError, match="authentication is off"):
        require_loopback(host)
    require_loopback("127.0.0.1")
    require_loopback("localhost")


def test_sigterm_ends_it_cleanly(running: Running) -> None:
    """The last of this file: the process is gone after it."""

    async def during() -> int:
        """A request that is under way is answered."""
        sent = asyncio.Event()

        async def trace(name: str, _: Any) -> None:
            if name == "http11.send_request_body.complete":
                sent.set()

        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            head = await client.get("/v1/events?limit=1")
            beyond = {"Min-Position": head.headers["Event-Position"], "Prefer": "wait=1"}
            waiting = asyncio.create_task(client.get("/v1/jobs", headers=beyond, extensions={"trace": trace}))
            await sent.wait()
            running.process.send_signal(signal.SIGTERM)
            return (await waiting).status_code

    assert asyncio.run(during()) == 425
    assert running.process.wait(60) == 0
    assert running.lines()[-1]["event"] == "stopped"
