"""A part dies under a running API: every route still answers, in time and never with a 500; and it mends by itself."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from msgspec import Struct
from tests.conftest_log import LogDatabase, database
from tests.conftest_parts import wait_for
from tests.conftest_service import until
from tests.http.door import client_of, picture, settings_for
from tests.http.test_bounds import handlers

from sightline.adapters import postgres
from sightline.adapters.embedded.part import Part
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.event_store import writer
from sightline.http import health, manners
from sightline.http.services import Services, open_services
from sightline.projections.bundle.export import prepared

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER_S_MAX = 60.0  # where nothing bounds it, a route waits for ever
UNKNOWN = str(UUID(int=7))
AT_ONCE = 8
ALL_AT_ONCE = 1_000  # where a part is down, so that its patience is waited for once
NOT_SIGNED = {"GET /v1/audit/export", "GET /v1/audit/proof/1"}  # no notary runs beside these tests
BODIES: dict[str, Any] = {
    "/v1/assets": {"filename": "a.png", "content_type": "image/png", "size_bytes": 10},
    "/v1/sessions": {"user_id": "ada"},
    "/v1/jobs": {"kind": "noop"},
    "/v1/models": {"name": "m", "framework": "onnx", "hf_repo": "local/demo"},
    "/v1/auth/login": {"email": "ada@example.org", "password": "not-the-password"},
    "/api/login": {"email": "ada@example.org", "password": "not-the-password"},
    "/v1/users": {"email": "ada@example.org", "full_name": "Ada", "role": "VIEWER", "password": "a-long-password"},
}


class Answered(Struct, frozen=True):
    status: int
    seconds: float
    answer: httpx.Response


class Site(Struct, frozen=True):
    """An API on parts of its own, that may be killed."""

    services: Services
    client: httpx.AsyncClient
    postgres: PostgresServer
    valkey: ValkeyServer
    before: dict[str, Answered]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory: Path = tmp_path_factory.mktemp("parts")
    with ExitStack() as stack:
        patch = stack.enter_context(
            pytest.MonkeyPatch.context()
        )  # nobody projects or signs, so nobody need wait for it
        patch.setattr(manners, "FRESH_WAIT_S", 0.05)
        patch.setattr(health, "CATCH_UP_S", 0.05)
        patch.setattr("sightline.http.audit_export.prepared", partial(prepared, wait_s=0.05))
        postgres_server = stack.enter_context(PostgresServer(directory / "pg"))
        valkey = stack.enter_context(ValkeyServer(directory / "vk"))
        made: LogDatabase = stack.enter_context(database(postgres_server, "parts", "template1"))
        postgres.migrate(made.dsn)
        settings = settings_for(made, valkey.url, directory / "data")
        async with open_services(settings) as services, client_of(services) as client:
            await _walk(client)  # what is asked for first is made, and there from then on
            yield Site(services, client, postgres_server, valkey, await _walk(client))


async def _walk(client: httpx.AsyncClient, at_once: int = AT_ONCE) -> dict[str, Answered]:
    """Every route of the application, asked once."""
    transport: Any = client._transport
    gate = asyncio.Semaphore(at_once)

    async def ask(method: str, path: str) -> Answered:
        files = {"file": ("a.png", picture(), "image/png")} if path == "/api/jobs/upload" else None
        wanted = BODIES.get(path, {})
        if path == "/v1/users":
            wanted = wanted | {"email": f"{uuid4()}@example.org"}
        body = wanted if method in {"POST", "PUT", "PATCH"} and files is None else None
        async with gate:
            started = time.monotonic()
            answer = await client.request(method, path, json=body, files=files)
            return Answered(answer.status_code, time.monotonic() - started, answer)

    # An answer that goes on for ever is test_live's.
    routes = [(method, path) for method, path, _, _ in handlers(transport.app) if path != "/v1/stream"]
    answers = await asyncio.gather(*(ask(method, path) for method, path in routes))
    return {f"{method} {path}": answered for (method, path), answered in zip(routes, answers, strict=True)}


def _hold(answers: dict[str, Answered]) -> set[str]:
    """Each in time, with a code; those that say 503."""
    down = set()
    for route, one in answers.items():
        assert one.status < 500 or one.status == 503, (route, one.answer.text)
        assert one.seconds < ANSWER_S_MAX, (route, one.seconds)
        if one.status == 503 and route != "GET /readyz":
            assert int(one.answer.headers["Retry-After"]) >= 1, route
            assert route.startswith("HEAD") or one.answer.json().keys() & {"detail", "error"}
            down.add(route)
    return down


async def _as_before(site: Site) -> None:
    """Within a while, with nothing started again but the part."""

    async def found() -> bool | None:
        now = await _walk(site.client)
        return _statuses(now) == _statuses(site.before) or None

    await until(found, timeout_s=120)


def _statuses(answers: dict[str, Answered]) -> dict[str, int]:
    """/readyz aside: nobody projects here, and the log grows."""
    return {route: one.status for route, one in answers.items() if route != "GET /readyz"}


@contextmanager
def _killed(part: Part) -> Iterator[None]:
    """Ended with no chance to say so; another one takes over its place afterwards."""
    pid = part.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: part.poll() is not None)
    try:
        yield
    finally:
        part.stop()
        part.start()


async def test_postgres(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command waits for the database to come back, a minute at most; here it waits for less."""
    monkeypatch.setattr(writer, "RESEND_MAX_S", 2.0)
    assert _hold(site.before) == NOT_SIGNED
    with _killed(site.postgres):
        down = _hold(await _walk(site.client, ALL_AT_ONCE))
    assert {"POST /v1/jobs", "GET /v1/jobs", "POST /v1/sessions", "GET /v1/events", "POST /api/jobs/upload"} <= down
    assert down.isdisjoint({"GET /livez", "GET /metrics", "GET /openapi.json", "GET /docs"})
    await _as_before(site)


async def test_valkey(site: Site) -> None:
    """A hint: nothing that a client asks depends on it, but for logins while limits are in force."""
    with _killed(site.valkey):
        assert _hold(await _walk(site.client)) == NOT_SIGNED
        assert (await site.client.post("/v1/jobs", json={"kind": "noop"})).status_code == 201
    await _as_before(site)


async def test_the_object_store(site: Site) -> None:
    directory = site.services.settings.data_dir / "objects"
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.write_bytes(b"")  # so that nobody makes it again
    try:
        assert "POST /api/jobs/upload" in _hold(await _walk(site.client))
        ready = (await site.client.get("/readyz")).json()["checks"]
        assert ready["object_store"]["status"] == "failed"
    finally:
        directory.unlink()
        aside.rename(directory)
    await _as_before(site)


async def test_a_walk_sees_what_is_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: an error that nobody maps is a 500, and the walk says so."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(site.services.store.reader, "head", broken)
    with pytest.raises(AssertionError, match="internal_error"):
        _hold(await _walk(site.client))
