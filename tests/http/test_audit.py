"""The log, page by page and line by line."""

import json

import pytest
from tests.http.door import Door

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS = {
    "position",
    "stream_id",
    "version",
    "type",
    "recorded_at",
    "actor",
    "correlation_id",
    "causation_id",
    "request_id",
    "data",
}


async def test_the_whole_log_is_paged_with_contiguous_positions(door: Door) -> None:
    for _ in range(20):
        await door.client.post("/v1/sessions")
    positions: list[int] = []
    url: str | None = "/v1/events?after=0&limit=7"
    while url:
        answer = await door.client.get(url)
        assert all(one.keys() == FIELDS for one in answer.json()["items"])
        positions += [one["position"] for one in answer.json()["items"]]
        url = answer.links["next"]["url"] if "next" in answer.links else None
    assert positions == list(range(1, await door.position() + 1))


async def test_the_log_as_lines(door: Door) -> None:
    answer = await door.client.get("/v1/events", headers={"Accept": "application/x-ndjson"})
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["position"] for line in lines] == list(range(1, int(answer.headers["Event-Position"]) + 1))


async def test_filters(door: Door) -> None:
    made = await door.client.post("/v1/sessions", headers={"X-Correlation-ID": "audit-1"})
    await door.client.post(f"/v1/sessions/{made.json()['id']}/close", headers={"X-Correlation-ID": "audit-2"})

    async def types(**query: str) -> list[str]:
        return [one["type"] for one in (await door.client.get("/v1/events", params=query)).json()["items"]]

    assert await types(correlation="audit-1") == ["session.created.2"]
    assert await types(stream=made.json()["id"]) == ["session.created.2", "session.closed"]
    assert await types(stream=made.json()["id"], type="session.closed") == ["session.closed"]
    assert await types(stream=made.json()["id"], type="session.created") == ["session.created.2"]
    assert set(await types(type="model.")) == {"model.registered", "model.sync_started", "model.synced"}
    assert await types(actor="nobody") == []
    assert await types(until="2001-01-01T00:00:00Z") == []
    assert await types(stream=made.json()["id"], since=made.json()["created_at"]) == await types(
        stream=made.json()["id"]
    )


async def test_something_alone_has_a_graph_of_one(door: Door) -> None:
    made = await door.client.post("/v1/sessions")
    trace = (await door.get(f"/v1/trace/session/{made.json()['id']}", made)).json()
    assert (trace["nodes"], trace["edges"]) == ([{"id": made.json()["id"], "kind": "session"}], [])
    assert (await door.client.get(f"/v1/trace/jobs/{made.json()['id']}")).status_code == 404
