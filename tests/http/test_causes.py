"""The chain of cause, both ways, and events as CloudEvents."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import StoredEvent
from tests.conftest_log import EVENT_DATA
from tests.http.door import Door, complete

from sightline.adapters.event_store.wire import Append, Expectation
from sightline.adapters.event_store.writer import Appended
from sightline.http import causes

pytestmark = pytest.mark.asyncio(loop_scope="module")

BATCH = "application/cloudevents-batch+json"
LINES = "application/x-ndjson; profile=cloudevents"


async def say(door: Door, because: str, events: int = 1) -> list[int]:
    """Events of one command that names this reason; their positions."""
    stream, command_id = uuid4(), uuid4()
    envelope = {
        "actor": "ada",
        "correlation_id": "c",
        "causation_id": because.replace("SELF", str(command_id)),
        "command_id": str(command_id),
    }
    outcome = await door.services.store.append(
        Append(
            command_id=command_id,
            expectations=[Expectation(stream, 0, writes=True)],
            events=[StoredEvent(stream, n, "session.closed", EVENT_DATA) for n in range(1, events + 1)],
            metadata=json.dumps(envelope, separators=(",", ":")).encode(),
        )
    )
    assert isinstance(outcome, Appended)
    return list(range(outcome.position - events + 1, outcome.position + 1))


async def ask(door: Door, position: int, direction: str, **query: Any) -> Any:
    answer = await door.client.get(f"/v1/events/{position}/causes", params={"direction": direction, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def positions(found: Any) -> Sequence[int]:
    return [one["position"] for one in found["events"]]


async def test_a_family_of_events_both_ways(door: Door) -> None:
    first, second = await say(door, "command:SELF", 2)
    await say(door, "command:SELF")  # a neighbour that has nothing to do with it
    third, fourth = await say(door, f"event:{first}", 2)
    (fifth,) = await say(door, f"event:{fourth}")
    (sixth,) = await say(door, f"event:{second}")
    back = await ask(door, fifth, "back")
    assert positions(back) == [fifth, fourth, first]
    assert back["complete"]
    command_id = (await door.services.store.reader.at([first]))[0].envelope.command_id
    assert back["origin"] == f"command:{command_id}"
    forward = await ask(door, first, "forward")
    assert positions(forward) == [first, second, third, fourth, fifth, sixth]
    assert (forward["complete"], forward["scanned_to"], forward["origin"]) == (True, sixth, None)
    assert positions(await ask(door, second, "forward")) == [second, sixth]
    assert positions(await ask(door, sixth, "forward")) == [sixth]


async def test_depth_reach_and_number_have_ends_that_are_told(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = await say(door, "command:SELF")
    for _ in range(5):
        chain += await say(door, f"event:{chain[-1]}")
    back = await ask(door, chain[-1], "back", depth=2)
    assert (positions(back), back["complete"]) == (chain[:2:-1], False)
    assert back["origin"] == f"event:{chain[2]}"
    forward = await ask(door, chain[0], "forward", depth=2)
    assert (positions(forward), forward["complete"]) == (chain[:3], False)
    near = await ask(door, chain[0], "forward", reach=1)
    assert (positions(near), near["complete"], near["scanned_to"]) == (chain[:2], False, chain[1])
    monkeypatch.setattr(causes, "SCAN_EVENTS", 2)
    assert positions(await ask(door, chain[0], "forward")) == chain
    monkeypatch.setattr(causes, "EVENTS_MAX", 3)
    many = await ask(door, chain[0], "forward")
    assert (positions(many), many["complete"]) == (chain[:3], False)


@pytest.mark.parametrize("reason", ["event:999999999999", "event:0", "event:x", "benchmark", "event:" + "9" * 40])
async def test_a_reason_that_leads_nowhere_is_the_end(door: Door, reason: str) -> None:
    (position,) = await say(door, reason)
    found = await ask(door, position, "back")
    assert (positions(found), found["origin"], found["complete"]) == ([position], reason, True)
    assert (await ask(door, 1, "forward"))["complete"]


async def test_an_event_that_names_itself_is_no_circle(door: Door) -> None:
    itself = await door.position() + 1
    assert await say(door, f"event:{itself}") == [itself]
    assert positions(await ask(door, itself, "back")) == positions(await ask(door, itself, "forward")) == [itself]


async def test_from_a_result_back_to_the_request(door: Door) -> None:
    """What the commands of the service itself write."""
    made = await door.client.post("/v1/jobs", json={"kind": "noop"}, headers={"X-Request-ID": "the-request"})
    assert made.status_code in (200, 201, 202), made.text
    job_id = made.json()["id"]
    await complete(door, UUID(job_id), {}, {})
    history = (await door.client.get(f"/v1/jobs/{job_id}/history")).json()["items"]
    found = await ask(door, history[0]["position"], "back")
    assert found["origin"].startswith("command:")
    assert found["events"][-1]["request_id"] == "the-request"


@pytest.mark.parametrize("path", ["0", "999999999", str(10**30)])
async def test_no_such_event(door: Door, path: str) -> None:
    answer = await door.client.get(f"/v1/events/{path}/causes")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_events_as_a_batch_of_cloud_events(door: Door) -> None:
    await say(door, "command:SELF", 3)
    answer = await door.client.get("/v1/events?limit=2", headers={"Accept": BATCH})
    assert answer.headers["Content-Type"].startswith(BATCH)
    plain = (await door.client.get("/v1/events?limit=2")).json()["items"]
    epoch = (await door.services.store.reader.head()).epoch
    for event, one in zip(answer.json(), plain, strict=True):
        assert event == {
            "specversion": "1.0",
            "id": str(one["position"]),
            "source": f"urn:sightline:log:{epoch}",
            "type": one["type"],
            "subject": one["stream_id"],
            "time": one["recorded_at"],
            "datacontenttype": "application/json",
            "position": str(one["position"]),
            "streamversion": str(one["version"]),
            "actor": one["actor"],
            "correlationid": one["correlation_id"],
            "causationid": one["causation_id"],
            **({"requestid": one["request_id"]} if one["request_id"] else {}),
            "data": one["data"],
        }
        assert all(name.isalnum() and name == name.lower() for name in event)
    following = await door.client.get(answer.links["next"]["url"], headers={"Accept": BATCH})
    assert following.json()[0]["id"] == "3"


async def test_events_as_lines_of_cloud_events(door: Door) -> None:
    answer = await door.client.get("/v1/events", headers={"Accept": LINES})
    assert answer.headers["Content-Type"] == LINES
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["id"] for line in lines] == [str(n) for n in range(1, await door.position() + 1)]
    assert {line["specversion"] for line in lines} == {"1.0"}
