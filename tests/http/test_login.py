"""Logging in and out at the door, with authentication on."""

from typing import Any

import bcrypt
import httpx
import pytest
from argon2 import PasswordHasher
from tests.conftest_service import by
from tests.http.door import Door
from tests.http.identity import PASSWORD, registered, token_of

from sightline.adapters.ids import uuid7
from sightline.commands import users as commands
from sightline.domain import users
from sightline.domain.access import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def log_in(door: Door, email: str, password: str = PASSWORD, **more: Any) -> httpx.Response:
    return await door.client.post("/v1/auth/login", json={"email": email, "password": password}, **more)


async def test_a_user_logs_in_is_known_and_logs_out(secured_door: Door) -> None:
    door = secured_door
    user_id = await registered(door, "ada@example.org", Role.OPERATOR)
    answer = await log_in(door, " ADA@Example.org ")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["user"]["id"], body["user"]["email"], body["token_type"]) == (
        str(user_id),
        "ada@example.org",
        "Bearer",
    )
    assert body["user"]["last_login_at"] is not None
    headers = {"Authorization": f"Bearer {body['token']}"}
    me = (await door.client.get("/v1/auth/me", headers=headers)).json()
    assert (me["actor"], me["role"], me["scopes"]) == (f"user:{user_id}", "OPERATOR", None)
    assert me["user"]["full_name"] == "Ada"
    second = await token_of(door, "ada@example.org")
    assert (await door.client.post("/v1/auth/logout", headers=headers)).status_code == 204
    for ended in (headers, second):  # everywhere
        assert (await door.client.get("/v1/auth/me", headers=ended)).status_code == 401
        assert (await door.client.post("/v1/auth/logout", headers=ended)).status_code == 401
    assert (await door.client.get("/v1/auth/me", headers=await token_of(door, "ada@example.org"))).status_code == 200


async def test_every_wrong_login_is_answered_in_the_same_words(secured_door: Door) -> None:
    door = secured_door
    await registered(door, "bob@example.org")
    gone = await registered(door, "gone@example.org")
    await door.services.commands.execute(commands.deactivate_user, commands.DeactivateUser(user_id=gone), by())
    said = set()
    for email, password in (
        ("bob@example.org", "not the password"),
        ("nobody@example.org", PASSWORD),
        ("gone@example.org", PASSWORD),
        ("no email", PASSWORD),
        ("a\u200b@example.org", PASSWORD),
        ("", ""),
    ):
        answer = await log_in(door, email, password)
        assert answer.status_code == 401
        problem = answer.json()
        assert problem["code"] == "bad_credentials"
        assert answer.headers["WWW-Authenticate"]
        said.add((problem["title"], problem["detail"], frozenset(answer.headers) - {"content-length"}))
        for secret in (email, password):
            assert not secret or secret not in answer.text
    assert len(said) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "a@b"},
        {"email": "a@b", "password": 1},
        {"email": ["a@b"], "password": "x"},
        {"email": "a@b", "password": "x" * 1025},
        {"email": "a@b", "password": "x", "role": "ADMIN"},
        [],
    ],
)
async def test_what_is_no_login_is_told_so(secured_door: Door, body: Any) -> None:
    answer = await secured_door.client.post("/v1/auth/login", json=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "validation_failed"


async def test_secrets_are_handed_out_without_an_idempotency_key(secured_door: Door) -> None:
    await registered(secured_door, "carol@example.org")
    answer = await log_in(secured_door, "carol@example.org", headers={"Idempotency-Key": "once"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("scheme", ["bcrypt", "argon2id with other parameters"])
async def test_a_hash_from_elsewhere_is_made_anew_at_the_first_login(secured_door: Door, scheme: str) -> None:
    door, email = secured_door, f"{scheme.split(maxsplit=1)[0]}@example.org"
    if scheme == "bcrypt":
        old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    else:
        old = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    command = commands.RegisterUser(user_id=uuid7(), email=email, full_name="Old", role=Role.VIEWER, password_hash=old)
    user = await door.services.commands.execute(commands.register_user, command, by())
    first = await token_of(door, email)
    assert (await door.client.get("/v1/auth/me", headers=first)).status_code == 200
    state, _, _ = await door.services.commands.state(users.AGGREGATE, user.stream_id, read_tail=True)
    known = await door.services.vault.open_one(commands.PASSWORD, state.password)
    assert known is not None
    assert known.startswith("$argon2id$")
    assert "m=65536,t=3,p=4" in known
    await token_of(door, email)
    again, _, _ = await door.services.commands.state(users.AGGREGATE, user.stream_id, read_tail=True)
    assert again.password == state.password


async def test_one_changes_ones_own_password_with_the_one_until_now(secured_door: Door) -> None:
    door = secured_door
    await registered(door, "dora@example.org")
    headers = await token_of(door, "dora@example.org")
    asked = {"current_password": "not the password", "password": "another long password"}
    wrong = await door.client.post("/v1/auth/password", json=asked, headers=headers)
    assert (wrong.status_code, wrong.json()["code"]) == (401, "bad_credentials")
    short = asked | {"current_password": PASSWORD, "password": "short"}
    assert (await door.client.post("/v1/auth/password", json=short, headers=headers)).status_code == 422
    own = asked | {"current_password": PASSWORD, "password": "dora@example.org"}
    assert (await door.client.post("/v1/auth/password", json=own, headers=headers)).status_code == 422
    asked |= {"current_password": PASSWORD}
    assert (await door.client.post("/v1/auth/password", json=asked, headers=headers)).status_code == 200
    assert (await door.client.get("/v1/auth/me", headers=headers)).status_code == 401
    assert (await log_in(door, "dora@example.org")).status_code == 401
    assert (await log_in(door, "dora@example.org", "another long password")).status_code == 200


async def test_no_secret_is_in_the_log(secured_door: Door) -> None:
    """The events, whoever reads them: neither password nor hash, email nor name."""
    door = secured_door
    await registered(door, "erin@example.org")
    headers = await token_of(door, "erin@example.org")
    async with door.services.store.pool.connection() as connection:
        found = await (
            await connection.execute("SELECT string_agg(data::text || metadata::text, '') FROM events")
        ).fetchone()
    assert found is not None
    text = found[0]
    assert "user.registered" in text
    for secret in (PASSWORD, "$argon2", "erin@example.org", "Erin", headers["Authorization"].split()[1]):
        assert secret not in text
