"""API keys at the door: shown once, one's own, and never more than their owner."""

from datetime import timedelta
from typing import Any

import pytest
from tests.conftest_service import by
from tests.http.door import Door
from tests.http.identity import headers_of, registered

from sightline.adapters.ids import uuid7
from sightline.domain.access import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")
Headers = dict[str, str]


async def somebody(door: Door, role: Role) -> tuple[str, Headers]:
    email = f"{uuid7()}@example.org"
    user_id = await registered(door, email, role)
    return str(user_id), await headers_of(door, user_id)


async def issued(door: Door, headers: Headers, **changed: Any) -> dict[str, Any]:
    answer = await door.client.post("/v1/api-keys", json={"name": "line 3"} | changed, headers=headers)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def shown(key: dict[str, Any]) -> Headers:
    return {"X-API-Key": key["key"]}


async def test_a_key_is_shown_once_used_both_ways_and_revoked(secured_door: Door) -> None:
    door = secured_door
    user_id, headers = await somebody(door, Role.OPERATOR)
    key = await issued(door, headers, scopes=["self:read", "jobs:read"])
    assert key["key"].startswith(f"sl_{key['prefix']}_")
    for way in (shown(key), {"Authorization": f"Bearer {key['key']}"}):
        me = (await door.client.get("/v1/auth/me", headers=way)).json()
        assert (me["actor"], me["role"], me["scopes"]) == (f"user:{user_id}", "OPERATOR", ["jobs:read", "self:read"])
    assert (await door.client.get("/v1/sessions", headers=shown(key))).status_code == 403
    await door.caught_up()
    for path in (f"/v1/api-keys/{key['id']}", "/v1/api-keys", f"/v1/api-keys/{key['id']}/history"):
        read = await door.client.get(path, headers=headers)
        assert read.status_code == 200
        assert key["prefix"] in read.text
        assert key["key"].rsplit("_", 1)[1] not in read.text
    assert (await door.client.delete(f"/v1/api-keys/{key['id']}", headers=headers)).status_code == 204
    assert (await door.client.get("/v1/auth/me", headers=shown(key))).status_code == 401


async def test_keys_are_ones_own(secured_door: Door) -> None:
    door = secured_door
    _, ada = await somebody(door, Role.OPERATOR)
    bob_id, bob = await somebody(door, Role.OPERATOR)
    _, root = await somebody(door, Role.ADMIN)
    key = await issued(door, ada)
    await door.caught_up()
    assert (await door.client.get(f"/v1/api-keys/{key['id']}", headers=bob)).status_code == 403
    assert (await door.client.get("/v1/api-keys", headers=bob)).json()["items"] == []
    assert (await door.client.delete(f"/v1/api-keys/{key['id']}", headers=bob)).status_code == 403
    for_bob = {"name": "for bob", "owner_id": bob_id}
    assert (await door.client.post("/v1/api-keys", json=for_bob, headers=ada)).status_code == 403
    for_bob |= {"role": "OPERATOR"}
    assert (await door.client.post("/v1/api-keys", json=for_bob, headers=root)).status_code == 201
    above = for_bob | {"role": "ADMIN"}
    assert (await door.client.post("/v1/api-keys", json=above, headers=root)).status_code == 403
    assert key["id"] in (await door.client.get("/v1/api-keys", headers=root)).text
    assert (await door.client.delete(f"/v1/api-keys/{key['id']}", headers=root)).status_code == 204


async def test_a_key_never_reaches_further_than_its_owner_today(secured_door: Door) -> None:
    door = secured_door
    user_id, headers = await somebody(door, Role.MANAGER)
    _, root = await somebody(door, Role.ADMIN)
    key = await issued(door, headers)
    narrow = await issued(door, headers, role="VIEWER")
    assert (await door.client.post("/v1/auth/logout", headers=headers)).status_code == 204
    assert (await door.client.get("/v1/auth/me", headers=shown(key))).status_code == 200  # logging out ends tokens
    demoted = await door.client.post(f"/v1/users/{user_id}/role", json={"role": "VIEWER"}, headers=root)
    assert demoted.status_code == 200
    assert (await door.client.get("/v1/auth/me", headers=shown(key))).status_code == 401
    assert (await door.client.get("/v1/auth/me", headers=shown(narrow))).status_code == 200
    assert (await door.client.post(f"/v1/users/{user_id}/deactivate", headers=root)).status_code == 200
    assert (await door.client.get("/v1/auth/me", headers=shown(narrow))).status_code == 401


async def test_a_key_for_keys_is_not_a_key_for_everything(secured_door: Door) -> None:
    door = secured_door
    _, headers = await somebody(door, Role.ADMIN)
    key = shown(await issued(door, headers, scopes=["keys:write", "jobs:read"]))
    for more, status in (({}, 403), ({"scopes": ["users:write"]}, 422), ({"scopes": ["jobs:read", "jobs:write"]}, 403)):
        answer = await door.client.post("/v1/api-keys", json={"name": "more"} | more, headers=key)
        assert answer.status_code == status
    assert (
        await door.client.post("/v1/api-keys", json={"name": "less", "scopes": ["jobs:read"]}, headers=key)
    ).is_success
    changed = {"current_password": "x", "password": "another long password"}
    writes = shown(await issued(door, headers, scopes=["self:write"]))
    assert (await door.client.post("/v1/auth/password", json=changed, headers=writes)).status_code == 403


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"scopes": ["jobs:burn"]}, 422),
        ({"scopes": ["x"] * 101}, 422),
        ({"name": ""}, 422),
        ({"name": "a\u2028b"}, 422),
        ({"role": "ROOT"}, 422),
        ({"role": "ADMIN"}, 403),
        ({"expires_at": "2020-01-01T00:00:00Z"}, 422),
        ({"expires_at": "2030-01-01T00:00:00"}, 422),
        ({"expires_at": (by().now + timedelta(days=400)).isoformat()}, 422),
        ({"hash": "a" * 64}, 422),
    ],
    ids=str,
)
async def test_what_is_no_key_is_refused(secured_door: Door, changed: dict[str, Any], status: int) -> None:
    _, headers = await somebody(secured_door, Role.OPERATOR)
    before = await secured_door.position()
    answer = await secured_door.client.post("/v1/api-keys", json={"name": "line 3"} | changed, headers=headers)
    assert answer.status_code == status
    assert await secured_door.position() == before


async def test_a_key_is_handed_out_without_an_idempotency_key(secured_door: Door) -> None:
    _, headers = await somebody(secured_door, Role.OPERATOR)
    headers["Idempotency-Key"] = "once"
    answer = await secured_door.client.post("/v1/api-keys", json={"name": "line 3"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


async def test_what_is_no_key_lets_nobody_in(secured_door: Door) -> None:
    _, headers = await somebody(secured_door, Role.OPERATOR)
    key = (await issued(secured_door, headers))["key"]
    odd = [key[:-1], key + "A", key.replace("sl_", "sl_0"), f"sl_{'0' * 16}_{'A' * 43}", "sl_", key[:-2] + "AA"]
    for one in odd:
        assert (await secured_door.client.get("/v1/auth/me", headers={"X-API-Key": one})).status_code == 401
    assert (await secured_door.client.get("/v1/auth/me", headers={"X-API-Key": key})).status_code == 200
