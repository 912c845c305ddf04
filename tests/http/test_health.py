"""Alive and ready, and described."""

import json
import re

import pytest
from tests.http.door import Door

from sightline.adapters.valkey import open_valkey
from sightline.http import health

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_alive(door: Door) -> None:
    assert (await door.client.get("/livez")).json() == {"status": "ok"}


async def test_ready(door: Door) -> None:
    answer = await door.client.get("/readyz")
    assert answer.status_code == 200
    assert {one["status"] for one in answer.json()["checks"].values()} == {"ok"}


async def test_ready_right_after_a_burst(door: Door) -> None:
    for _ in range(20):
        await door.client.post("/v1/sessions")
    assert (await door.client.get("/readyz")).status_code == 200


async def test_metrics_tell_autoscalers_what_there_is_to_do(door: Door) -> None:
    async def told() -> dict[str, float]:
        await door.caught_up()
        text = (await door.client.get("/metrics")).text
        found = re.findall(r'^(sightline_(?:jobs|projection)_\w+)(?:{kind="noop"})? (\S+)$', text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    before = await told()
    now = await door.client.post("/v1/jobs", json={"kind": "noop"})
    await door.client.post("/v1/jobs", json={"kind": "noop", "delay_s": 600})  # waits for its time, not for a worker
    after = await told()
    assert after["sightline_jobs_waiting"] == before["sightline_jobs_waiting"] + 1
    assert after["sightline_jobs_running"] == before["sightline_jobs_running"]
    assert after["sightline_jobs_oldest_waiting_seconds"] > 0
    assert after["sightline_projection_lag_events"] == 0
    await door.client.post(f"/v1/jobs/{now.json()['id']}/cancel")
    assert (await told())["sightline_jobs_waiting"] == before["sightline_jobs_waiting"]


async def test_without_valkey_it_is_degraded_not_failed(door: Door) -> None:
    from msgspec.structs import replace

    async with open_valkey("redis://127.0.0.1:1") as gone:
        check = await health._valkey(replace(door.services, valkey=gone))
    assert check.status == "degraded"


async def test_an_object_store_that_cannot_be_written_fails(door: Door) -> None:
    from pathlib import Path

    from msgspec.structs import replace

    from sightline.adapters.objects.directory import DirectoryStore

    store = door.services.objects
    assert isinstance(store, DirectoryStore)
    broken = DirectoryStore(Path("/dev/null/objects"), store.signer)
    check = await health._check(health._object_store(replace(door.services, objects=broken)))
    assert check.status == "failed"


async def test_pages_and_schema(door: Door) -> None:
    for path in ("/docs", "/redoc"):
        assert (await door.client.get(path)).headers["Content-Type"].startswith("text/html")
    schema = (await door.client.get("/openapi.json")).json()
    assert schema["openapi"].startswith("3.")
    assert {"/v1/jobs", "/api/jobs", "/v1/events", "/readyz", "/health", "/"} <= schema["paths"].keys()
    for path, item in schema["paths"].items():
        for operation in item.values():
            refusals = [answer["$ref"] for answer in operation["responses"].values() if "$ref" in answer]
            facade = path.startswith(("/api/jobs", "/health", "/api/login", "/api/health"))
            said = "#/components/responses/" + (
                "Fault" if path.startswith("/v2") else "Detail" if facade else "Problem"
            )
            assert all(refusal.startswith(said) for refusal in refusals), (path, refusals)
    assert {"code", "detail", "errors"} <= schema["components"]["schemas"]["Problem"]["properties"].keys()
    known = {f"#/components/{kind}/{name}" for kind, named in schema["components"].items() for name in named}
    assert set(re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(schema))) <= known
