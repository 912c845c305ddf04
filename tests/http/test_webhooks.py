"""Webhooks at the door: a secret is said once, URLs are judged, deliveries are listed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.http.door import Door

from sightline.adapters.standard_webhooks import CallbackSigner, secret_bytes

pytestmark = pytest.mark.asyncio(loop_scope="module")

URL = "https://hooks.example.com/sightline"
ASKED = {"url": URL, "types": ["job.completed", "job.failed"]}


@asynccontextmanager
async def registered(door: Door, **changed: Any) -> AsyncIterator[dict[str, Any]]:
    """A webhook for as long as it is wanted: one may have few."""
    answer = await door.client.post("/v1/webhooks", json=ASKED | changed)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/v1/webhooks/{made['id']}"
    yield made
    await door.client.delete(f"/v1/webhooks/{made['id']}")


async def test_nobody_waits_for_the_files_of_a_key_but_whoever_asks_for_it(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, reading, answered = CallbackSigner.load, threading.Event(), threading.Event()

    def slow(keys_dir: Path) -> CallbackSigner:
        """A disk that takes its time. On the loop it would keep the answer below from ever coming."""
        reading.set()
        assert answered.wait(5)
        return load(keys_dir)

    monkeypatch.setattr(CallbackSigner, "load", slow)
    asking = asyncio.create_task(door.client.get("/v1/webhooks/key"))
    assert await asyncio.to_thread(reading.wait, 5)
    assert (await door.client.get("/livez")).status_code == 200
    answered.set()
    assert [key[:5] for key in (await asking).json()["keys"]] == ["whpk_"]


async def test_a_secret_is_said_once(door: Door) -> None:
    async with registered(door) as made:
        assert len(secret_bytes(made["secret"])) == 32
        path = f"/v1/webhooks/{made['id']}"
        one = await door.client.get(path, headers={"Min-Position": str(await door.position()), "Prefer": "wait=10"})
        assert one.json() == {name: value for name, value in made.items() if name != "secret"}
        rotated = await door.client.post(f"{path}/rotate-secret")
        assert rotated.status_code == 200
        assert rotated.json()["secret"] != made["secret"]
        until_at = datetime.fromisoformat(rotated.json()["previous_until"])
        assert timedelta(hours=23) < until_at - datetime.now(UTC) <= timedelta(hours=24)
        history = await door.client.get(f"{path}/history")
        for secret in (made["secret"], rotated.json()["secret"]):
            assert secret.removeprefix("whsec_")[:20] not in one.text + history.text
        for asking in ("", f"/{made['id']}/rotate-secret"):
            keyed = await door.client.post(f"/v1/webhooks{asking}", json=ASKED, headers={"Idempotency-Key": "k"})
            assert (keyed.status_code, keyed.json()["code"]) == (400, "malformed_request")


async def test_it_is_changed_disabled_enabled_and_deleted(door: Door) -> None:
    async with registered(door) as made:
        path = f"/v1/webhooks/{made['id']}"
        wanted = {"url": f"{URL}/2", "types": ["batch.completed"], "kinds": ["noop"]}
        stale = await door.client.put(path, json=wanted, headers={"If-Match": '"9"'})
        assert stale.status_code == 412
        changed = await door.client.put(path, json=wanted, headers={"If-Match": '"1"'})
        assert {name: changed.json()[name] for name in wanted} == wanted
        assert (await door.client.post(f"{path}/disable")).json()["disabled_reason"] == "asked"
        assert (await door.client.post(f"{path}/test")).json()["code"] == "invalid_state"
        enabled = await door.client.post(f"{path}/enable")
        assert (enabled.json()["status"], enabled.headers["ETag"]) == ("active", '"4"')
        listed = await door.get("/v1/webhooks", enabled)
        assert made["id"] in {one["id"] for one in listed.json()["items"]}
        gone = await door.client.delete(path)
        assert gone.status_code == 204
        assert (await door.get(path, gone)).status_code == 404
        for method, tail in (("PUT", ""), ("POST", "/enable"), ("POST", "/test"), ("GET", "/deliveries")):
            answer = await door.client.request(method, path + tail, json=wanted if method == "PUT" else None)
            assert answer.status_code == 404, (method, tail)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://hooks.example.com/", "scheme"),
        ("https://127.0.0.1/", "address"),
        ("https://[::ffff:10.0.0.1]/", "address"),
        ("https://localhost/", "host"),
        ("https://user:swordfish@hooks.example.com/", "userinfo"),
        ("https://hooks.example.com:25/", "port"),
        ("https://hooks.example.com/#there", "malformed"),
    ],
)
async def test_a_url_that_may_not_be_asked_is_refused(door: Door, url: str, reason: str) -> None:
    async with registered(door) as made:
        answers = [
            await door.client.post("/v1/webhooks", json=ASKED | {"url": url}),
            await door.client.put(f"/v1/webhooks/{made['id']}", json=ASKED | {"url": url}),
            await door.client.post("/v1/jobs", json={"kind": "noop", "callback_url": url}),
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (422, "url_refused")
            assert answer.json()["detail"].startswith(f"url_refused: {reason}: ")
            assert "swordfish" not in answer.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"types": []},
        {"types": ["job.painted"]},
        {"types": ["job.failed"] * 2},
        {"kinds": []},
        {"kinds": ["x" * 65]},
        {"url": "https://" + "x" * 2000},
        {"url": 1},
        {"secret": "whsec_mine"},
    ],
    ids=str,
)
async def test_a_wish_that_cannot_be_is_422(door: Door, wrong: dict[str, Any]) -> None:
    answer = await door.client.post("/v1/webhooks", json=ASKED | wrong)
    assert (answer.status_code, answer.json()["status"]) == (422, 422)
