"""Limits at the door: who is counted for what, what an answer says of it, and who cannot be locked out."""

import asyncio
import itertools
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from argon2 import PasswordHasher
from litestar import Litestar, get
from msgspec.structs import replace
from tests.conftest_log import LogDatabase
from tests.http.door import BASE_URL, Door, opened, settings_for
from tests.http.identity import PASSWORD, SECRET, registered, token_of
from tests.http.login_flood import flood

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.settings import Settings
from sightline.domain.access import Rights, Role
from sightline.http import limits
from sightline.http.app import create_app
from sightline.http.auth import ANYBODY, LOCAL, Admitted, Principal
from sightline.http.limits import ACCOUNT_FACTOR, POLICIES, LimitGuard, per_minute, require_policies
from sightline.http.services import Services

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELD = re.compile(r'"(?P<name>[a-z-]+)";r=(?P<remaining>\d+);t=(?P<reset>\d+)')  # of RateLimit, one policy
NOOP = {"kind": "noop"}
_hosts = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(
    door_database: LogDatabase, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    settings = settings_for(
        door_database,
        valkey_server.url,
        tmp_path_factory.mktemp("door"),
        auth_enabled=True,
        secret_key=SECRET,
        limit_jobs_per_minute=5,
        limit_login_per_minute=4,
        trusted_proxies=["10.0.0.1/32"],
    )
    async with opened(settings) as door:
        door.services.limiter._budget_s = 30.0  # these are not about the budget, and the machine may be busy
        await door.services.valkey.flushall()
        passwords = door.services.passwords  # Nor about what a hash costs.
        passwords._hasher = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
        passwords._dummy = passwords._hasher.hash("")
        yield door


_apps: dict[int, tuple[Services, Any]] = {}


def _app_of(services: Services) -> Any:
    """Making one takes longer than most tests."""
    if id(services) not in _apps:
        _apps[id(services)] = (services, create_app(services))
    return _apps[id(services)][1]


def client_from(services: Services, peer: str) -> httpx.AsyncClient:
    app: Any = _app_of(services)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(peer, 1)), base_url=BASE_URL, timeout=120)


def host() -> str:
    """An address that no other test has."""
    return f"203.0.113.{next(_hosts)}"


def without_auth(services: Services, **changed: Any) -> Services:
    settings: Settings = replace(services.settings, auth_enabled=False, **changed)
    return replace(services, settings=settings)


async def logged_in(door: Door, email: str, role: Role) -> dict[str, str]:
    await registered(door, email, role)
    door_from_here = Door(client_from(door.services, host()), door.services)
    async with door_from_here.client:
        return await token_of(door_from_here, email)


async def test_a_principal_is_counted_wherever_it_asks_from_and_told_what_is_left(door: Door) -> None:
    ada = await logged_in(door, "ada@example.org", Role.OPERATOR)
    answers = [await door.client.post("/v1/jobs", json=NOOP, headers=ada) for _ in range(3)]
    async with client_from(door.services, host()) as elsewhere:
        answers += [await elsewhere.post("/v1/jobs", json=NOOP, headers=ada) for _ in range(4)]
    assert [one.status_code for one in answers] == [201] * 5 + [429] * 2
    assert {one.headers["RateLimit-Policy"] for one in answers} == {'"jobs";q=5;w=60'}
    said = [FIELD.fullmatch(one.headers["RateLimit"]) for one in answers]
    assert [(one["name"], int(one["remaining"])) for one in said if one] == [("jobs", n) for n in (4, 3, 2, 1, 0, 0, 0)]
    assert all(0 < int(one["reset"]) <= 60 for one in said if one)
    refused = answers[-1]
    assert refused.json()["code"] == "rate_limited"
    assert refused.headers["Retry-After"] == FIELD.fullmatch(refused.headers["RateLimit"])["reset"]  # type: ignore[index]  # matched above
    bob = await logged_in(door, "bob@example.org", Role.OPERATOR)
    assert (await door.client.post("/v1/jobs", json=NOOP, headers=bob)).status_code == 201


async def test_a_request_counts_whatever_its_body_is_worth(door: Door) -> None:
    eve = await logged_in(door, "eve@example.org", Role.OPERATOR)
    bad = [
        await door.client.post("/v1/jobs", json={"kind": 1}, headers=eve),
        await door.client.post("/v1/jobs", content=b"{", headers=eve | {"Content-Type": "application/json"}),
        await door.client.post("/v1/jobs", content=b"x" * (2 << 20), headers=eve),
        await door.client.post("/v1/jobs", json={"kind": "nothing"}, headers=eve),
    ]
    assert [one.status_code for one in bad] == [422, 400, 413, 422]
    left = [FIELD.fullmatch(one.headers["RateLimit"]) for one in bad]
    assert [one["remaining"] for one in left if one] == ["4", "3", "2", "1"]


async def test_who_may_not_is_told_so_before_anything_is_counted(door: Door) -> None:
    viewer = await logged_in(door, "vera@example.org", Role.VIEWER)
    answer = await door.client.post("/v1/jobs", json=NOOP, headers=viewer)
    assert (answer.status_code, "RateLimit" in answer.headers) == (403, False)
    nobody = await door.client.post("/v1/jobs", json=NOOP)
    assert (nobody.status_code, "RateLimit" in nobody.headers) == (401, False)


async def test_other_routes_are_not_counted(door: Door) -> None:
    assert "RateLimit" not in (await door.client.get("/livez")).headers


async def test_without_authentication_addresses_are_counted_if_that_is_wanted(door: Door) -> None:
    async with client_from(without_auth(door.services), host()) as client:
        assert "RateLimit" not in (await client.post("/v1/jobs", json=NOOP)).headers
    services = without_auth(door.services, rate_limits_enabled=True)
    async with client_from(services, host()) as here, client_from(services, host()) as there:
        statuses = [(await here.post("/v1/jobs", json=NOOP)).status_code for _ in range(7)]
        assert statuses == [201] * 5 + [429] * 2
        assert (await there.post("/v1/jobs", json=NOOP)).status_code == 201


async def test_together_they_get_no_more_than_the_limit(door: Door) -> None:
    async with client_from(without_auth(door.services, rate_limits_enabled=True), host()) as client:
        answers = await asyncio.gather(*(client.post("/v1/jobs", json=NOOP) for _ in range(40)))
    assert sorted(one.status_code for one in answers) == [201] * 5 + [429] * 35


async def test_a_key_whose_scopes_say_so_is_not_counted(door: Door) -> None:
    guard, handler = LimitGuard(door.services), SimpleNamespace(opt={"limit": "jobs"})

    async def counted(principal: Principal) -> bool:
        state = {"admitted": Admitted(principal, None)}
        connection: Any = SimpleNamespace(scope={"state": state, "client": (host(), 1), "headers": []})
        await guard(connection, handler)  # type: ignore[arg-type]  # as much of a handler as it looks at
        return "added_headers" in state

    key = replace(LOCAL, rights=Rights(Role.OPERATOR, frozenset({"jobs:write"})))
    trusted = replace(LOCAL, rights=Rights(Role.ADMIN, frozenset({"jobs:write", limits.LIFTS})))
    assert [await counted(one) for one in (LOCAL, ANYBODY, key, trusted)] == [True, True, True, False]


async def test_every_policy_is_a_setting_and_every_route_names_one_that_there_is() -> None:
    documented = [20, 60, 30, 60, 10, 100, 200, 50]
    assert [per_minute(Settings(), one) for one in POLICIES] == documented

    @get("/", limit="tea", sync_to_thread=False)
    def tea() -> None: ...

    with pytest.raises(LookupError, match="tea"):
        require_policies(Litestar([tea]))


# Logins


async def try_login(
    client: httpx.AsyncClient, email: str, forwarded: str = "", password: str = "wrong"
) -> httpx.Response:
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    return await client.post("/v1/auth/login", json={"email": email, "password": password}, headers=headers)


async def test_one_address_tries_so_often_whatever_it_is_called(door: Door) -> None:
    async with client_from(door.services, host()) as client:
        found = [await try_login(client, f"{n}@example.org", f"198.51.100.{n}") for n in range(7)]
    assert [one.status_code for one in found] == [401] * 4 + [429] * 3
    assert [one.headers["RateLimit-Policy"] for one in found] == ['"login";q=4;w=60'] * 7
    assert 0 < int(found[-1].headers["Retry-After"]) <= 60


async def test_both_ways_to_log_in_are_one(door: Door) -> None:
    async with client_from(door.services, host()) as client:
        body = {"email": "x@example.org", "password": "wrong"}
        paths = ["/v1/auth/login", "/api/login"] * 3
        statuses = [(await client.post(path, json=body)).status_code for path in paths]
    assert statuses == [401] * 4 + [429] * 2


async def test_many_addresses_together_try_one_account_so_often_and_its_owner_still_comes_in(door: Door) -> None:
    await registered(door, "olga@example.org", Role.OPERATOR)
    async with client_from(door.services, "10.0.0.1") as proxied:
        assert (await try_login(proxied, "olga@example.org", "192.0.2.1", PASSWORD)).status_code == 200
        found = [(await try_login(proxied, "olga@example.org", f"198.51.101.{n}")).status_code for n in range(20)]
        # One of the account's was its owner's own, before the address was known to be hers.
        assert found == [401] * (4 * ACCOUNT_FACTOR - 1) + [429] * (21 - 4 * ACCOUNT_FACTOR)
        assert (await try_login(proxied, "olga@example.org", "192.0.2.1", PASSWORD)).status_code == 200
        assert (await try_login(proxied, "olga@example.org", "192.0.2.2", PASSWORD)).status_code == 429
        assert (await try_login(proxied, "pia@example.org", "192.0.2.2")).status_code == 401


async def test_no_email_lies_in_valkey(door: Door) -> None:
    async with client_from(door.services, host()) as client:
        await try_login(client, "secretive@example.org")
    keys = str(await door.services.valkey.keys("*"))
    assert "sightline:limit:login:account:" in keys
    assert "secretive" not in keys
    assert "example" not in keys


async def test_logins_that_claim_to_come_from_everywhere_get_no_more_than_the_documented(door: Door) -> None:
    made_up = await flood(door.services, 300, per_window=4, peer=host())
    assert made_up.through <= made_up.limit
    assert made_up.through > 0


async def test_believing_every_forwarded_address_would_let_more_through(door: Door) -> None:
    """The control: networks that are everybody, as `*` would be."""
    trusting = replace(door.services.settings, trusted_proxies=["0.0.0.0/1", "128.0.0.0/1"])
    believed = await flood(replace(door.services, settings=trusting), 30, per_window=4, peer=host())
    assert believed.through > believed.limit


# Valkey away


async def test_without_valkey_logins_wait_and_the_rest_is_counted_here(door: Door, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path) as server:
        settings = replace(door.services.settings, redis_url=server.url, auth_enabled=False, rate_limits_enabled=True)
        async with opened(settings) as other, client_from(other.services, host()) as client:
            limiter = other.services.limiter
            budget_s, limiter._budget_s = limiter._budget_s, 30.0
            assert (await try_login(client, "x@example.org")).status_code == 401
            assert server._process is not None
            limiter._budget_s = budget_s
            os.kill(server._process.pid, signal.SIGSTOP)
            try:
                refused = await try_login(client, "x@example.org")
                statuses = [(await client.post("/v1/jobs", json=NOOP)).status_code for _ in range(7)]
            finally:
                os.kill(server._process.pid, signal.SIGCONT)
    assert (refused.status_code, refused.json()["code"]) == (503, "limits_unavailable")
    assert refused.headers["Retry-After"] == "1"
    assert statuses == [201] * 5 + [429] * 2
