"""Quotas at the door: who sets them, who sees them, and what an answer says when one is used up."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from tests.conftest_log import LogDatabase
from tests.http.door import Door, opened, settings_for
from tests.http.identity import SECRET, registered, token_of

from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.domain.access import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY_S = 24 * 3600


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
        rate_limits_enabled=False,
    )
    async with opened(settings) as door:
        yield door


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def root(door: Door) -> dict[str, str]:
    await registered(door, "root@example.org", Role.ADMIN)
    return await token_of(door, "root@example.org")


async def test_a_quota_is_set_used_shown_and_used_up(door: Door, root: dict[str, str]) -> None:
    principal = f"user:{await registered(door, 'ada@example.org', Role.OPERATOR)}"
    ada = await token_of(door, "ada@example.org")
    nothing = await door.client.get("/v1/quotas", headers=ada)
    [own] = nothing.json()["items"]
    assert (own["principal"], own["jobs_per_day"], own["jobs"], own["version"]) == (principal, None, 0, 0)

    said = await door.client.put(f"/v1/quotas/{principal}", json={"jobs_per_day": 2}, headers=root)
    assert (said.status_code, said.json()["jobs_per_day"], said.headers["ETag"]) == (200, 2, '"1"')

    answers = [await door.client.post("/v1/jobs", json={"kind": "noop"}, headers=ada) for _ in range(3)]
    assert [one.status_code for one in answers] == [201, 201, 429]
    assert answers[2].json()["code"] == "quota_exceeded"
    now = datetime.now(UTC)
    left_s = DAY_S - (now - now.replace(hour=0, minute=0, second=0)).total_seconds()
    off_s = abs(int(answers[2].headers["Retry-After"]) % DAY_S - left_s % DAY_S)
    assert min(off_s, DAY_S - off_s) < 300

    seen = await door.get(f"/v1/quotas/{principal}", answers[1])
    assert seen.status_code == 401
    await door.caught_up()
    seen = await door.client.get(f"/v1/quotas/{principal}", headers=ada)
    assert {name: seen.json()[name] for name in ("jobs", "bytes", "compute_s")} == {
        "jobs": 2,
        "bytes": 0,
        "compute_s": 0.002,
    }
    assert seen.json()["resets_at"].endswith("T00:00:00Z")
    history = await door.client.get(f"/v1/quotas/{principal}/history", headers=ada)
    assert [one["type"] for one in history.json()["items"]] == ["quota.limit_set"]


async def test_others_quotas_are_for_those_who_may(door: Door, root: dict[str, str]) -> None:
    other = f"user:{await registered(door, 'bob@example.org', Role.OPERATOR)}"
    await registered(door, "eve@example.org", Role.MANAGER)
    eve = await token_of(door, "eve@example.org")
    for path in (f"/v1/quotas/{other}", f"/v1/quotas/{other}/history"):
        assert (await door.client.get(path, headers=eve)).status_code == 403
    refused = await door.client.put(f"/v1/quotas/{other}", json={}, headers=eve)
    assert (refused.status_code, refused.headers["X-Required-Roles"]) == (403, "ADMIN")
    await registered(door, "audra@example.org", Role.AUDITOR)
    audra = await token_of(door, "audra@example.org")
    assert (await door.client.get(f"/v1/quotas/{other}", headers=audra)).status_code == 200


async def test_those_with_limits_are_listed_page_by_page(door: Door, root: dict[str, str]) -> None:
    for name in ("x1", "x2", "x3"):
        said = await door.client.put(f"/v1/quotas/{name}", json={"bytes_per_day": 5}, headers=root)
        assert said.status_code == 200
    await door.caught_up()
    page = await door.client.get("/v1/quotas", params={"limit": 2, "after": "x0"}, headers=root)
    assert [one["principal"] for one in page.json()["items"]] == ["x1", "x2"]
    assert 'rel="next"' in page.headers["Link"]
    rest = await door.client.get("/v1/quotas", params={"limit": 2, "after": page.json()["next"]}, headers=root)
    assert [one["principal"] for one in rest.json()["items"]] == ["x3"]


@pytest.mark.parametrize(
    ("body", "status"), [({"jobs_per_day": -1}, 422), ({"jobs_per_day": 2**62}, 422), ({"jobs": 1}, 422), ({}, 200)]
)
async def test_limits_are_whole_numbers_or_none(
    door: Door, root: dict[str, str], body: dict[str, int], status: int
) -> None:
    assert (await door.client.put("/v1/quotas/carl", json=body, headers=root)).status_code == status


async def test_a_stale_version_is_refused(door: Door, root: dict[str, str]) -> None:
    path = "/v1/quotas/dora"
    await door.client.put(path, json={"jobs_per_day": 1}, headers=root)
    stale = await door.client.put(path, json={"jobs_per_day": 2}, headers=root | {"If-Match": '"7"'})
    assert stale.status_code == 412
