"""Sessions at the door."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.http.door import Door, client_of

from sightline.adapters.sealing_keys import KeyRing
from sightline.adapters.vault import Vault

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_session_begins_and_is_read_back(door: Door) -> None:
    made = await door.client.post("/v1/sessions", json={"user_id": "ada"})
    session = made.json()
    assert made.status_code == 201
    assert (session["status"], session["user_id"], session["owner"]) == ("active", "ada", "local")
    assert session["remaining_seconds"] == 45 * 60
    read = (await door.get(f"/v1/sessions/{session['id']}", made)).json()
    assert read | {"remaining_seconds": 0} == session | {"remaining_seconds": 0}


async def test_a_body_is_not_needed(door: Door) -> None:
    assert (await door.client.post("/v1/sessions")).json()["user_id"] is None


async def test_closing_twice_is_closing_once(door: Door) -> None:
    session_id = (await door.client.post("/v1/sessions")).json()["id"]
    answers = [await door.client.post(f"/v1/sessions/{session_id}/close") for _ in range(2)]
    assert [answer.json()["status"] for answer in answers] == ["closed", "closed"]
    assert {answer.headers["ETag"] for answer in answers} == {'"2"'}


async def test_only_clean_assets_are_attached(door: Door) -> None:
    session_id = (await door.client.post("/v1/sessions")).json()["id"]
    body = {"filename": "a.png", "content_type": "image/png", "size_bytes": 9}
    asset_id = (await door.client.post("/v1/assets", json=body)).json()["id"]
    answer = await door.client.post(f"/v1/sessions/{session_id}/assets", json={"asset_id": asset_id})
    assert (answer.status_code, answer.json()["code"]) == (409, "asset_not_clean")


async def test_an_attached_asset_is_traced(door: Door) -> None:
    session_id = (await door.client.post("/v1/sessions")).json()["id"]
    from tests.http.door import picture

    files = {"file": ("a.png", picture(), "image/png")}
    asset_id = (await door.client.post("/api/jobs/upload", files=files)).json()["file_id"]
    answer = await door.client.post(f"/v1/sessions/{session_id}/assets", json={"asset_id": asset_id})
    assert answer.json()["asset_ids"] == [asset_id]
    trace = (await door.get(f"/v1/trace/assets/{asset_id}", answer)).json()
    assert {node["kind"] for node in trace["nodes"]} == {"asset", "session"}


async def test_closed_sessions_take_nothing(door: Door) -> None:
    session_id = (await door.client.post("/v1/sessions")).json()["id"]
    await door.client.post(f"/v1/sessions/{session_id}/close")
    answer = await door.client.post("/v1/jobs", json={"kind": "noop", "session_id": session_id})
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")


async def test_a_session_as_it_was(door: Door) -> None:
    made = await door.client.post("/v1/sessions")
    session_id, then = made.json()["id"], made.headers["Event-Position"]
    await door.client.post(f"/v1/sessions/{session_id}/close")
    assert (await door.client.get(f"/v1/sessions/{session_id}?at={then}")).json()["status"] == "active"
    assert (await door.client.get(f"/v1/sessions/{session_id}?at={10**18}")).json()["status"] == "closed"
    moment = made.json()["created_at"].replace("Z", "+00:00")
    assert (await door.client.get(f"/v1/sessions/{session_id}?at={moment}")).status_code in {200, 404}
    assert (await door.client.get(f"/v1/sessions/{session_id}?at=2001-01-01T00:00:00Z")).status_code == 404
    history = (await door.client.get(f"/v1/sessions/{session_id}/history?at={then}")).json()
    assert [one["type"] for one in history["items"]] == ["session.created.2"]
    assert (history["version"], history["state"]["status"]) == (1, "active")


async def test_a_user_id_is_sealed_below_the_door(door: Door) -> None:
    made = await door.client.post("/v1/sessions", json={"user_id": "grace@example.com"})
    path = f"/v1/sessions/{made.json()['id']}"
    for asked in ("/v1/sessions?limit=200", path, f"{path}?at={10**18}"):
        assert "grace@example.com" in (await door.get(asked, made)).text
    for asked in (f"{path}/history", "/v1/events?type=session.created&limit=200"):
        answer = await door.get(asked, made)
        assert "grace@example.com" not in answer.text
        assert answer.json()["items"][-1]["data"]["user_id"].keys() == {"subject", "box"}


async def test_without_the_sealing_key_sessions_of_somebody_wait_and_others_go_on(door: Door, tmp_path: Path) -> None:
    named = await door.client.post("/v1/sessions", json={"user_id": "ada"})
    bare = await door.client.post("/v1/sessions")
    await door.caught_up()
    locked = replace(door.services, vault=Vault(door.services.store.pool, KeyRing(tmp_path)))
    async with client_of(locked) as client:
        refused = await client.get(f"/v1/sessions/{named.json()['id']}")
        assert (refused.status_code, refused.json()["code"]) == (503, "part_unavailable")
        assert "Retry-After" in refused.headers
        assert (await client.get(f"/v1/sessions/{bare.json()['id']}")).status_code == 200


async def test_sessions_are_listed(door: Door) -> None:
    made = await door.client.post("/v1/sessions")
    listed = await door.get("/v1/sessions?limit=200", made)
    assert made.json()["id"] in [one["id"] for one in listed.json()["items"]]
