"""The catalogue of read models: how far each is, and tasks that go on after the answer."""

import asyncio
from typing import Any

import psycopg
import pytest
from tests.conftest_log import LogDatabase
from tests.conftest_service import until
from tests.http.door import Door

from sightline.adapters import postgres
from sightline.adapters.ids import uuid7
from sightline.http.background import Background, TooManyTasks
from sightline.projections import catalogue, upkeep

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = sorted(model.name for model in catalogue.ALL_MODELS)


async def state_of(door: Door, name: str) -> dict[str, Any]:
    answer = await door.client.get(f"/v1/projections/{name}")
    assert answer.status_code == 200, answer.text
    state: dict[str, Any] = answer.json()["state"]
    return state


async def test_the_catalogue(door: Door) -> None:
    await door.client.post("/v1/sessions")
    await door.caught_up()
    answer = await door.client.get("/v1/projections")
    states = answer.json()
    assert [state["name"] for state in states] == NAMES
    assert {state["lag"] for state in states} == {0}
    assert {str(state["position"]) for state in states} == {answer.headers["Event-Position"]}
    assert {state["quarantined"] for state in states} == {0}


async def test_verify_and_rebuild_go_on_after_the_answer(door: Door) -> None:
    await door.caught_up()
    for task, done in (("verify", "verified_position"), ("rebuild", "rebuilt_position")):
        answer = await door.client.post(f"/v1/projections/sessions/{task}")
        assert (answer.status_code, answer.json()) == (202, {"name": "sessions", "task": task})

        async def over(done: str = done) -> dict[str, Any] | None:
            state = await state_of(door, "sessions")
            return state if state["task"] is None and state[done] is not None else None

        state = await until(over)
        assert state[done] == await door.position()
    assert state["equal"] is True
    assert len(state["digest"]) == 64
    assert state["generation"] == 1


async def test_a_second_task_is_a_conflict(door: Door) -> None:
    dsn = door.services.settings.database_url
    async with await postgres.connect(dsn) as connection, upkeep.claimed(connection, "jobs", "rebuild"):
        for task in ("rebuild", "verify"):
            answer = await door.client.post(f"/v1/projections/jobs/{task}")
            assert (answer.status_code, answer.json()["code"]) == (409, "projection_busy")
        assert (await state_of(door, "jobs"))["task"] == "rebuild"


async def test_what_cannot_be_is_refused(door: Door) -> None:
    for method, path in (("GET", ""), ("POST", "/rebuild"), ("POST", "/verify")):
        answer = await door.client.request(method, f"/v1/projections/nothing{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    for name, at in (("jobs", await door.position() + 1), ("assets", 0), ("jobs", -1), ("jobs", "x"), ("jobs", 10**30)):
        answer = await door.client.post(f"/v1/projections/{name}/verify", params={"at": str(at)})
        assert 400 <= answer.status_code < 500, answer.text
        assert (await state_of(door, name))["task"] is None


async def test_streams_set_aside_are_shown_and_counted(door: Door, door_database: LogDatabase) -> None:
    stream_id = uuid7()
    with psycopg.connect(door_database.dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO projection_quarantine VALUES (%s, 1, 'job.submitted', 'why', now())", (stream_id,)
        )
        answer = await door.client.get("/v1/projections/jobs")
        metrics = await door.client.get("/metrics")
        listing = await door.client.get("/v1/projections")
        connection.execute("DELETE FROM projection_quarantine")
    [aside] = answer.json()["quarantine"]
    assert (aside["stream_id"], aside["error"]) == (str(stream_id), "why")
    assert {state["name"] for state in listing.json() if state["quarantined"]} == {"jobs", "lineage_edges"}
    assert "sightline_projection_quarantined_streams 1.0" in metrics.text
    assert "sightline_projection_quarantined_streams 0.0" in (await door.client.get("/metrics")).text


async def test_background_tasks_are_few_and_end_with_the_process() -> None:
    background = Background()
    begun, never = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await never.wait()

    async def fail() -> None:
        raise ValueError("before it begun")

    with pytest.raises(ValueError, match="before it begun"):
        await background.start(fail(), asyncio.Event(), "fails")
    for number in range(4):
        begun.clear()
        await background.start(work(), begun, f"works-{number}")
    with pytest.raises(TooManyTasks):
        await background.start(work(), begun, "one too many")
    await background.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("works-")]
