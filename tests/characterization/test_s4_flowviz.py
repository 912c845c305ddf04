"""The food-lots service's login and health, as its clients expect them: paths, shapes, statuses, words.

Deliberate deviations: a login that is tried too often is 429, and a request that is not JSON at all 422 without a
place in it, since there is none.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import msgspec
import pytest
from tests.http.door import Door
from tests.http.identity import PASSWORD, registered

from sightline.domain.access import Role

pytestmark = pytest.mark.asyncio(loop_scope="module")

EMAIL = "qc.manager@flowviz.example"


async def test_login_answers_the_user_and_a_token(door: Door) -> None:
    user_id = await registered(door, EMAIL, Role.MANAGER)
    answer = await door.client.post("/api/login", json={"email": EMAIL, "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"user", "token"}
    assert list(body["user"]) == ["id", "email", "full_name", "role", "created_at", "last_login"]
    assert (body["user"]["id"], body["user"]["email"]) == (str(user_id), EMAIL)
    assert (body["user"]["full_name"], body["user"]["role"]) == ("Qc.Manager", "MANAGER")
    for name in ("created_at", "last_login"):
        moment = msgspec.convert(body["user"][name], datetime)
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    claims = jwt.decode(body["token"], options={"verify_signature": False})
    assert (claims["sub"], claims["exp"] - claims["iat"]) == (str(user_id), 30 * 60)
    assert jwt.get_unverified_header(body["token"])["alg"] == "HS256"


async def test_what_else_a_client_sends_is_not_looked_at(door: Door) -> None:
    await registered(door, f"more.{EMAIL}")
    more = {"email": f"More.{EMAIL}", "password": PASSWORD, "remember": True}
    assert (await door.client.post("/api/login", json=more)).status_code == 200


@pytest.mark.parametrize(
    ("email", "password"), [(EMAIL, "wrong password"), ("nobody@flowviz.example", PASSWORD), ("nobody", "x"), ("", "")]
)
async def test_wrong_credentials_are_401_in_the_same_words(door: Door, email: str, password: str) -> None:
    answer = await door.client.post("/api/login", json={"email": email, "password": password})
    assert answer.status_code == 401
    assert answer.json() == {"detail": "no user has this email and this password"}


@pytest.mark.parametrize(
    ("body", "loc", "kind"),
    [
        ({}, ["body", "email"], "missing"),
        ({"email": EMAIL}, ["body", "password"], "missing"),
        ({"email": 1, "password": "x"}, ["body", "email"], "value_error"),
        ({"email": EMAIL, "password": None}, ["body", "password"], "value_error"),
        ({"email": EMAIL, "password": "x" * 1025}, ["body", "password"], "value_error"),
        ([], ["body"], "value_error"),
    ],
)
async def test_what_is_no_login_is_422_with_its_place(door: Door, body: Any, loc: list[str], kind: str) -> None:
    answer = await door.client.post("/api/login", json=body)
    assert answer.status_code == 422
    [item] = answer.json()["detail"]
    assert item.keys() == {"loc", "msg", "type"}
    assert (item["loc"], item["type"]) == (loc, kind)
    assert item["msg"]


@pytest.mark.parametrize("content", [b"", b"{", b"email=a&password=b", b"\xff\xfe"])
async def test_what_is_not_json_is_refused(door: Door, content: bytes) -> None:
    answer = await door.client.post("/api/login", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    [item] = answer.json()["detail"]
    assert item["loc"] == ["body"]


async def test_other_methods_and_paths(door: Door) -> None:
    assert (await door.client.get("/api/login")).status_code == 405
    keyed = await door.client.post(
        "/api/login", json={"email": EMAIL, "password": PASSWORD}, headers={"Idempotency-Key": "k"}
    )
    assert keyed.status_code == 400
    assert isinstance(keyed.json()["detail"], str)


async def test_health(door: Door) -> None:
    answer = await door.client.get("/api/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"status", "timestamp"}
    assert body["status"] == "ok"
    assert abs(datetime.now(UTC) - msgspec.convert(body["timestamp"], datetime)) < timedelta(minutes=1)
