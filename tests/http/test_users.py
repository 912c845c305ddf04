"""Users at the door: what an administrator may do with them, and what nobody may."""

from typing import Any

import pytest
import pytest_asyncio
from tests.conftest_service import by
from tests.http.door import Door
from tests.http.identity import PASSWORD, headers_of, registered, token_of

from sightline.adapters.erasures import Erasures
from sightline.adapters.ids import uuid7
from sightline.commands.people import erase_person
from sightline.domain.access import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")
Headers = dict[str, str]


@pytest_asyncio.fixture(loop_scope="module")
async def root(secured_door: Door) -> Headers:
    """An administrator of the test's own."""
    email = f"root-{uuid7()}@example.org"
    return await headers_of(secured_door, await registered(secured_door, email, Role.ADMIN))


def asked(**changed: Any) -> dict[str, Any]:
    given = {"email": f"{uuid7()}@example.org", "full_name": "Ada Lovelace", "role": "OPERATOR", "password": PASSWORD}
    return given | changed


async def test_a_user_is_registered_read_and_listed(secured_door: Door, root: Headers) -> None:
    door, body = secured_door, asked()
    made = await door.client.post("/v1/users", json=body, headers=root)
    assert made.status_code == 201
    user = made.json()
    assert (user["email"], user["full_name"], user["role"], user["status"]) == (
        body["email"],
        "Ada Lovelace",
        "OPERATOR",
        "active",
    )
    assert "password" not in made.text
    waits = {**root, "Min-Position": made.headers["Event-Position"], "Prefer": "wait=10"}
    read = await door.client.get(f"/v1/users/{user['id']}", headers=waits)
    assert read.json() == user
    then = await door.client.get(f"/v1/users/{user['id']}", params={"at": made.headers["Event-Position"]}, headers=root)
    assert then.json() == user
    page = await door.client.get("/v1/users", params={"limit": 200}, headers=waits)
    assert user in page.json()["items"]
    history = await door.client.get(f"/v1/users/{user['id']}/history", headers=root)
    assert [one["type"] for one in history.json()["items"]] == ["user.registered"]
    assert body["email"] not in history.text
    assert (await token_of(door, body["email"]))["Authorization"]


async def test_an_email_is_registered_once(secured_door: Door, root: Headers) -> None:
    body = asked()
    headers = {**root, "Idempotency-Key": str(uuid7())}
    first = await secured_door.client.post("/v1/users", json=body, headers=headers)
    replayed = await secured_door.client.post("/v1/users", json=body, headers=headers)
    assert (replayed.status_code, replayed.json()) == (201, first.json())
    taken = await secured_door.client.post("/v1/users", json=body | {"email": body["email"].upper()}, headers=root)
    assert (taken.status_code, taken.json()["code"]) == (409, "email_taken")


@pytest.mark.parametrize(
    "changed",
    [
        {"email": "nobody"},
        {"email": "a@b@c"},
        {"email": "a b@c.org"},
        {"email": "x" * 255},
        {"full_name": ""},
        {"full_name": "a\nb"},
        {"role": "ROOT"},
        {"password": "short"},
        {"password": "x" * 1025},
        {"email": "ada.lovelace@example.org", "password": "Ada.Lovelace@example.org"},
        {"status": "active"},
    ],
    ids=str,
)
async def test_what_is_no_user_is_refused(secured_door: Door, root: Headers, changed: dict[str, Any]) -> None:
    before = await secured_door.position()
    answer = await secured_door.client.post("/v1/users", json=asked(**changed), headers=root)
    assert answer.status_code == 422
    assert changed.get("password", PASSWORD) not in answer.text
    assert await secured_door.position() == before


async def test_another_role_another_password_and_the_end_take_effect_at_once(secured_door: Door, root: Headers) -> None:
    door, body = secured_door, asked()
    user_id = (await door.client.post("/v1/users", json=body, headers=root)).json()["id"]
    steps: list[tuple[str, dict[str, Any] | None]] = [
        ("role", {"role": "AUDITOR"}),
        ("password", {"password": "another long password"}),
        ("deactivate", None),
    ]
    password = PASSWORD
    for step, content in steps:
        headers = await token_of(door, body["email"], password)
        assert (await door.client.get("/v1/auth/me", headers=headers)).status_code == 200
        answer = await door.client.post(f"/v1/users/{user_id}/{step}", json=content, headers=root)
        assert answer.status_code == 200
        assert (await door.client.get("/v1/auth/me", headers=headers)).status_code == 401
        password = (content or {}).get("password", password)
    assert answer.json()["status"] == "deactivated"
    late = await door.client.post(f"/v1/users/{user_id}/role", json={"role": "ADMIN"}, headers=root)
    assert (late.status_code, late.json()["code"]) == (409, "invalid_state")


async def test_a_stale_version_and_an_unknown_user(secured_door: Door, root: Headers) -> None:
    user_id = await registered(secured_door, f"{uuid7()}@example.org")
    stale = {**root, "If-Match": '"9"'}
    path = f"/v1/users/{user_id}"
    assert (await secured_door.client.post(f"{path}/deactivate", headers=stale)).status_code == 412
    for method, tail, content in (
        ("GET", "", None),
        ("POST", "/role", {"role": "ADMIN"}),
        ("POST", "/deactivate", None),
    ):
        answer = await secured_door.client.request(method, f"/v1/users/{uuid7()}{tail}", json=content, headers=root)
        assert answer.status_code == 404
    other = await secured_door.client.post(f"/v1/users/{uuid7()}/password", json={"password": PASSWORD}, headers=root)
    assert other.status_code == 404


async def test_an_erased_user_has_no_name(secured_door: Door, root: Headers, tmp_path: Any) -> None:
    door, email = secured_door, f"{uuid7()}@example.org"
    user_id = await registered(door, email)
    headers = await headers_of(door, user_id)
    services = door.services
    erasures = Erasures(tmp_path / "erasures")
    await erase_person(services.commands, services.vault, erasures, email, now=by().now)
    await door.caught_up()
    user = (await door.client.get(f"/v1/users/{user_id}", headers=root)).json()
    assert (user["email"], user["full_name"], user["status"]) == (None, None, "deactivated")
    assert (await door.client.get("/v1/auth/me", headers=headers)).status_code == 401
    again = await door.client.post("/v1/users", json=asked(email=email), headers=root)
    assert again.status_code == 201
    assert again.json()["id"] != str(user_id)
