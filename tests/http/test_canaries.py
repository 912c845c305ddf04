"""Secrets sent through every input of every route, while things fail: none stands in the log or in a refusal.

What an answer tells back: names of fields, and the client's own words where they are short and look like no secret (a
kind, a task, a request id). What a log line holds of a request: its method, its route's template and its ids.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct, field
from tests.conftest_log import LogDatabase
from tests.http.door import Door, picture
from tests.http.process import CODE, Running, started
from tests.http.test_bounds import UNKNOWN, app_of, handlers

from sightline.adapters.embedded.valkey import ValkeyServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Every command fails after it was read, and says in its error all that it was given.
FAILING = """
from sightline.commands.transact import Commands
execute = Commands.execute
async def fail(self, handler, command, caller, **more):
    if caller.actor == "system":
        return await execute(self, handler, command, caller, **more)
    import logging
    logging.getLogger("library").debug("about %r", command, extra={"command": command, "asked": [more]})
    raise ValueError(f"{command!r} {vars(command) if hasattr(command, '__dict__') else ''}")
Commands.execute = fail
"""
UNREDACTED = """
from sightline.adapters.redaction import Redactor
Redactor.text = lambda self, text: text
Redactor.plain = lambda self, event: {name: repr(value) for name, value in event.items()}
"""


def _token() -> str:
    return secrets.token_hex(12)


Asked = tuple[str, str, set[str]]  # a route's method and path, and the parameters of its query


class Canaries(Struct, frozen=True):
    """Made anew for each run; each contains `mark`."""

    mark: str = field(default_factory=_token)

    @property
    def key(self) -> str:
        return f"sl_{self.mark}{self.mark}"

    @property
    def jwt(self) -> str:
        return f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.{self.mark}"

    @property
    def password(self) -> str:
        return f"Pw, '{self.mark}' & \"more\""

    @property
    def email(self) -> str:
        return f"{self.mark}@example.org"

    @property
    def value(self) -> str:
        """Without a secret's form: nobody could tell, so it must not get there at all."""
        return f"value{self.mark}"


class Heard(Struct):
    refusals: list[tuple[str, str]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


def _headers(canaries: Canaries) -> Iterator[dict[str, str]]:
    basic = base64.b64encode(f"ada:{canaries.password}".encode()).decode()
    yield {"Authorization": f"Bearer {canaries.jwt}"}
    yield {"Authorization": f"Basic {basic}{canaries.mark}"}
    yield {"Authorization": canaries.value, "Cookie": f"session={canaries.mark}; b={canaries.value}"}
    yield {"X-API-Key": canaries.key, "User-Agent": canaries.value, "Referer": f"https://x/?token={canaries.mark}"}
    yield {"X-Forwarded-For": canaries.value, "Forwarded": f"for={canaries.value}", "Accept": canaries.value}
    yield {"X-Request-ID": canaries.key, "X-Correlation-ID": canaries.jwt}
    yield {"Idempotency-Key": canaries.value, "If-Match": f'"{canaries.value}"', "Prefer": canaries.value}
    yield {"If-Match": canaries.value, "Min-Position": canaries.value, "Content-Type": f"application/{canaries.value}"}
    yield {"Idempotency-Key": f"a {canaries.value}", "Origin": f"https://{canaries.value}"}


def _queries(canaries: Canaries, names: set[str]) -> Iterator[dict[str, str]]:
    yield {"token": canaries.jwt, "email": canaries.email, "x": canaries.value}
    yield {"expires": "1", "signature": canaries.mark, "X-Amz-Signature": canaries.mark}
    for name in names:
        yield {name: canaries.value}


def _bodies(canaries: Canaries) -> Iterator[dict[str, Any]]:
    secret = {"email": canaries.email, "password": canaries.password, "full_name": canaries.value}
    yield secret
    yield secret | {"role": "VIEWER"}
    yield {"token": canaries.jwt, "api_key": canaries.key, "zzz": canaries.value}
    yield {"kind": "noop", "params": {"password": canaries.password, "email": canaries.email, "a": [canaries.value]}}
    yield {"user_id": canaries.email}
    yield {"filename": f"{canaries.value}.png", "content_type": "image/png", "size_bytes": 10}
    yield {
        "filename": canaries.key,
        "content_type": canaries.value,
        "size_bytes": canaries.value,
        "purpose": canaries.value,
    }
    yield {
        "name": canaries.value,
        "framework": "onnx",
        "hf_repo": canaries.value,
        "uri": f"https://a:{canaries.mark}@x/",
    }
    yield {"asset_id": canaries.value, "sha256": canaries.value, "name": canaries.email, "role": canaries.value}


def _raw_bodies(canaries: Canaries) -> Iterator[tuple[str, bytes]]:
    yield "application/json", f'{{"password": "{canaries.mark}", "x": '.encode()
    yield "application/json", f'{{"password": "{canaries.mark}\\ud800", "email": "\xff"}}'.encode("latin-1")
    yield "text/plain", canaries.value.encode()
    yield "application/x-www-form-urlencoded", f"password={canaries.mark}&filename={canaries.value}&mode=x".encode()
    name = f'form-data; name="{canaries.key}"; filename="{canaries.value}.png"'
    part = f"Content-Disposition: {name}\r\nContent-Type: {canaries.value}/x\r\n\r\n".encode()
    yield "multipart/form-data; boundary=b", b"--b\r\n" + part + picture() + b"\r\n--b--\r\n"
    file = f'Content-Disposition: form-data; name="file"; filename="{canaries.value}"\r\n\r\n'.encode()
    yield "multipart/form-data; boundary=b", b"--b\r\n" + file + canaries.value.encode() + b"\r\n--b--\r\n"
    yield f"multipart/form-data; boundary={canaries.value}", b"x"


async def _send(running: Running, canaries: Canaries, routes: list[Asked]) -> Heard:
    """Every canary, through every input of every route."""
    heard, gate = Heard(), asyncio.Semaphore(16)

    async def ask(client: httpx.AsyncClient, method: str, path: str, **sent: Any) -> None:
        async with gate, client.stream(method, path, **sent) as answer:
            if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):  # which goes on for ever
                await answer.aread()
        heard.statuses.append(answer.status_code)
        if answer.status_code >= 400:
            asked = f"{method} {path} {sent}"
            heard.refusals.append((asked, f"{answer.status_code} {dict(answer.headers)} {answer.text}"))

    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client, asyncio.TaskGroup() as group:
        for method, path, names in routes:
            spoiled = path.replace("/x", f"/{canaries.value}").replace(UNKNOWN, canaries.value)
            paths = {path, spoiled, spoiled.replace(canaries.value, canaries.key)}
            sent: list[dict[str, Any]] = [{}, *({"params": one} for one in _queries(canaries, names))]
            sent += [{"headers": one} for one in _headers(canaries)]
            if method in {"POST", "PUT", "PATCH"}:
                sent += [{"json": one} for one in _bodies(canaries)]
                sent += [{"content": one, "headers": {"Content-Type": kind}} for kind, one in _raw_bodies(canaries)]
            for one in sent:
                group.create_task(ask(client, method, path, **one))
            for one_path in paths:
                group.create_task(ask(client, method, one_path))
        for path in (f"/{canaries.value}", f"/{canaries.key}?token={canaries.jwt}", f"/v1/{canaries.email}"):
            group.create_task(ask(client, "GET", path))
    return heard


@pytest.fixture
def routes(door: Door) -> list[Asked]:
    return [
        (method, path, {parameter.field_alias for parameter in model.expected_query_params})
        for method, path, _, model in handlers(app_of(door))
    ]


def _environ(database: LogDatabase, valkey: ValkeyServer, canaries: Canaries) -> dict[str, str]:
    """A process that has secrets of its own, and tells all that it has to tell."""
    sealing_key = base64.b64encode(canaries.mark.encode()[:24].ljust(32, b"x")).decode()
    return {
        "database_url": database.dsn,
        "redis_url": valkey.url,
        "log_level": "debug",
        "log_format": "json",
        "secret_key": f"{canaries.mark}-{'x' * 32}",
        "sealing_key": sealing_key,
        "cors_origins": "https://app.example.org",
    }


def _hits(canaries: Canaries, texts: list[str]) -> list[str]:
    return [text[:1_000] for text in texts if canaries.mark in text]


async def test_no_canary_is_heard(
    door: Door, log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path, routes: list[Asked]
) -> None:
    canaries = Canaries()
    with started(tmp_path / "data", **_environ(log_database, valkey_server, canaries)) as running:
        heard = await _send(running, canaries, routes)
        log = running.log.read_text()
    assert len(heard.statuses) > 1_000
    assert {200, 400, 404, 422} <= set(heard.statuses)
    assert max(heard.statuses) < 500 or set(heard.statuses) & set(range(500, 600)) == {503}
    assert _hits(canaries, log.splitlines()) == []
    assert [one for one in heard.refusals if canaries.mark in one[1]] == []
    assert all(isinstance(json.loads(line), dict) for line in log.split("\n")[:-1])


async def test_none_is_heard_while_everything_fails(
    door: Door, log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path, routes: list[Asked]
) -> None:
    """What an error quotes is masked by its form and by the names that stand beside it."""
    canaries = Canaries()
    given = _environ(log_database, valkey_server, canaries)
    with started(tmp_path / "data", code=_with(FAILING), **given) as running:
        heard = await _send(running, canaries, [one for one in routes if one[0] != "GET"])
        log = running.log.read_text()
    assert 500 in heard.statuses
    lines = [line.replace(canaries.value, "") for line in log.split("\n")[:-1]]  # which has no form to be known by
    assert "request_failed" in log
    assert _hits(canaries, lines) == []
    assert [one for one in heard.refusals if canaries.mark in one[1]] == []


async def test_without_the_redactor_they_are_all_over_the_place(
    door: Door, log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path, routes: list[Asked]
) -> None:
    """The control: the canaries do come as far as the log, and this is how they are found there."""
    canaries = Canaries()
    given = _environ(log_database, valkey_server, canaries)
    with started(tmp_path / "data", code=_with(UNREDACTED + FAILING), **given) as running:
        heard = await _send(running, canaries, [one for one in routes if one[1].startswith(("/v1/auth", "/v1/users"))])
        lines = running.log.read_text().splitlines()
    lines = [line.replace(canaries.value, "") for line in lines]
    assert len(_hits(canaries, lines)) > 10
    assert any(canaries.key in line for line in lines)
    assert heard.statuses


def _with(patches: str) -> str:
    """Compounds need lines of their own."""
    return f"{patches}\n{CODE}"
