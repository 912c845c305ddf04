"""Model versions and slots at the door."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.http.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _register(door: Door, **changed: Any) -> httpx.Response:
    body = {"name": "m", "framework": "onnx", "hf_repo": "local/demo", "hf_revision": "main", "task": "depth"}
    return await door.client.post("/v1/models", json=body | changed)


async def test_a_model_is_registered_synced_activated_and_rolled_back(door: Door) -> None:
    await door.caught_up()
    before = (await door.client.get("/v1/models/active?task=depth")).json()["id"]
    made = await _register(door)
    model = made.json()
    assert (made.status_code, model["status"], model["is_active"]) == (201, "registered", False)

    refused = await door.client.post(f"/v1/models/{model['id']}/activate")
    assert (refused.status_code, refused.json()["code"]) == (409, "model_not_synced")
    synced = (await door.client.post(f"/v1/models/{model['id']}/sync")).json()
    assert synced["status"] == "synced"
    assert synced["artifact_path"] == f"sha256/{synced['sha256']}.onnx"
    assert synced["downloaded_at"]

    activated = await door.client.post(f"/v1/models/{model['id']}/activate")
    assert activated.json()["is_active"]
    assert (await door.get("/v1/models/active?task=depth", activated)).json()["id"] == model["id"]
    assert (await door.get(f"/v1/models/{before}", activated)).json()["is_active"] is False
    assert (await door.get("/v1/model-slots/depth", activated)).json()["previous"][-1] == before

    back = await door.client.post("/v1/model-slots/depth/rollback", json={"model_id": model["id"]})
    again = await door.client.post("/v1/model-slots/depth/rollback", json={"model_id": model["id"]})
    assert back.json()["active"] == again.json()["active"] == before
    at = activated.headers["Event-Position"]
    assert (await door.client.get(f"/v1/model-slots/depth?at={at}")).json()["active"] == model["id"]
    assert (await door.client.get(f"/v1/models/{model['id']}?at={at}")).json()["is_active"]
    history = (await door.client.get("/v1/model-slots/depth/history")).json()
    assert [one["type"] for one in history["items"]][-1] == "model_slot.rolled_back"


async def test_activate_at_once(door: Door) -> None:
    made = await _register(door, activate=True, task="segment")
    assert (made.status_code, made.json()["status"], made.json()["is_active"]) == (201, "synced", True)
    assert (await door.get("/v1/models/active?task=segment", made)).json() == made.json()


async def test_the_same_key_registers_and_activates_once(door: Door) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    body = {"name": "m", "framework": "onnx", "hf_repo": "local/demo", "task": "once", "activate": True}
    made = [await door.client.post("/v1/models", json=body, headers=key) for _ in range(2)]
    assert made[0].json() == made[1].json()
    await door.caught_up()
    assert len((await door.client.get("/v1/models?task=once")).json()) == 1


async def test_a_sync_that_fails_is_502_and_told(door: Door) -> None:
    made = await _register(door, hf_repo="local/nothing", activate=True)
    assert (made.status_code, made.json()["code"]) == (502, "model_sync_failed")
    await door.caught_up()
    failed = [one for one in (await door.client.get("/v1/models")).json() if one["hf_repo"] == "local/nothing"]
    assert [one["status"] for one in failed] == ["failed"]
    assert failed[0]["last_sync_error"]


@pytest.mark.parametrize(
    "changed",
    [
        {"hf_repo": "http://example.org/x"},
        {"hf_repo": "../../etc/passwd"},
        {"framework": "nonsense"},
        {"hf_repo": None},
        {"uri": "builtin:depth-heuristic"},
        {"task": "Depth!"},
    ],
)
async def test_registrations_that_are_refused(door: Door, changed: dict[str, Any]) -> None:
    answer = await _register(door, **changed)
    assert (answer.status_code, answer.json()["code"]) == (422, "rule_violated")


async def test_models_are_a_plain_array(door: Door) -> None:
    assert isinstance((await door.client.get("/v1/models")).json(), list)


async def test_what_is_not_there(door: Door) -> None:
    for path in ("/v1/models/active?task=none", "/v1/model-slots/none", "/v1/model-slots/none/history"):
        assert (await door.client.get(path)).status_code == 404
    for path in (f"/v1/models/{uuid4()}/sync", f"/v1/models/{uuid4()}/activate", "/v1/model-slots/none/rollback"):
        assert (await door.client.post(path)).status_code == 404
    assert (await door.client.get("/v1/model-slots")).json()[0]["task"] == "depth"
