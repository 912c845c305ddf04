"""Why a job waits: each reason while it holds, its place, and an estimate where there is a pace."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from tests.conftest_service import by
from tests.http.door import Door

from sightline.adapters.ids import uuid7
from sightline.commands import attempts, jobs, queues
from sightline.domain.jobs import Provenance

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def submit(door: Door, owner: str = "ada", **changed: Any) -> UUID:
    wanted: dict[str, Any] = {"job_id": uuid7(), "kind": "noop", "pending_max": 1_000} | changed
    return (await door.services.commands.execute(jobs.submit_job, jobs.SubmitJob(**wanted), by(owner))).stream_id


async def start(door: Door, job_id: UUID, **at: datetime) -> None:
    command = attempts.StartJob(job_id=job_id, worker="w", lease_until=datetime.now(UTC))
    await door.services.commands.execute(attempts.start_job, command, by("w", **at))


async def finish(door: Door, job_id: UUID) -> None:
    command = attempts.CompleteJob(
        job_id=job_id, attempt=1, worker="w", outputs=(), manifest={}, timings={}, receipt=Provenance()
    )
    await door.services.commands.execute(attempts.complete_job, command, by("w"))


async def limit(door: Door, running: int | None = None, starts: int | None = None) -> None:
    command = queues.SetQueueLimits(kind="noop", running_max=running, starts_per_minute_max=starts)
    await door.services.commands.execute(queues.set_queue_limits, command, by("root"))


async def why(door: Door, job_id: UUID) -> dict[str, Any]:
    await door.caught_up()
    answer = await door.client.get(f"/v1/jobs/{job_id}/waiting")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def worker(door: Door) -> AsyncIterator[None]:
    """Somebody who holds a lease."""
    with psycopg.connect(door.services.settings.database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO worker_leases VALUES ('w', now(), clock_timestamp() + interval '1 minute')")
        yield
        connection.execute("DELETE FROM worker_leases")


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def quiet(door: Door) -> AsyncIterator[None]:
    """Nothing waits that another test left, and nothing is limited."""
    yield
    await door.services.commands.execute(queues.resume_queue, queues.ResumeQueue(kind="noop"), by("root"))
    await limit(door)
    await door.caught_up()
    for status in ("pending", "processing"):
        page = await door.client.get("/v1/jobs", params={"status": status, "limit": 200})
        for one in page.json()["items"]:
            await door.client.delete(f"/v1/jobs/{one['id']}")
    await door.caught_up()


async def test_nobody_is_there_to_start_it(door: Door) -> None:
    seen = await why(door, await submit(door))
    assert (seen["reasons"], seen["workers"], seen["position"], seen["estimate_s"]) == (["no_worker"], 0, 0, None)


async def test_it_is_about_to_start(door: Door, worker: None) -> None:  # lives
    seen = await why(door, await submit(door))
    assert (seen["reasons"], seen["workers"], seen["status"]) == ([], 1, "pending")


async def test_its_kind_is_paused(door: Door, worker: None) -> None:  # lives
    job_id = await submit(door)
    command = queues.PauseQueue(kind="noop", reason="a new disk")
    await door.services.commands.execute(queues.pause_queue, command, by("root"))
    seen = await why(door, job_id)
    assert (seen["reasons"], seen["pause_reason"], seen["estimate_s"]) == (["paused"], "a new disk", None)


async def test_it_is_for_later_or_its_retry_is(door: Door, worker: None) -> None:  # lives
    answer = await door.client.post("/v1/jobs", json={"kind": "noop", "delay_s": 600})
    later = await why(door, UUID(answer.json()["id"]))
    assert (later["reasons"], later["not_before"]) == (["scheduled"], answer.json()["not_before"])
    job_id = await submit(door)
    await start(door, job_id)
    failed = attempts.FailJob(
        job_id=job_id, attempt=1, worker="w", code="x", message="", retryable=True, retry_delay_s=60
    )
    await door.services.commands.execute(attempts.fail_job, failed, by("w"))
    assert (await why(door, job_id))["reasons"] == ["retry"]


async def test_as_many_run_or_started_as_may(
    door: Door,
    worker: None,  # lives
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = await submit(door), await submit(door)
    await limit(door, running=1)
    await start(door, first)
    assert (await why(door, second))["reasons"] == ["concurrency_limit"]
    running = await why(door, first)
    assert (running["status"], running["reasons"], running["position"]) == ("processing", [], None)
    await finish(door, first)
    assert (await why(door, second))["reasons"] == []
    await limit(door, starts=1)
    third = await submit(door)
    moment = datetime.now(UTC)
    await start(door, third, now=moment)
    monkeypatch.setattr("sightline.http.waiting.now", lambda: moment)  # or a minute may end between the two
    assert (await why(door, second))["reasons"] == ["rate_limit"]
    monkeypatch.setattr("sightline.http.waiting.now", lambda: moment + timedelta(minutes=1))
    assert (await why(door, second))["reasons"] == [], "the control: the next minute has room"


async def test_others_are_in_front_of_it(door: Door, worker: None) -> None:  # lives
    flood = [await submit(door) for _ in range(20)]
    graces = await submit(door, "grace")
    assert ((await why(door, flood[-1]))["position"], (await why(door, flood[-1]))["reasons"]) == (
        20,
        ["behind_others"],
    )
    assert (await why(door, graces))["position"] == 0
    patient = await submit(door, "grace", priority=6)
    assert (await why(door, patient))["position"] == 21


async def test_an_estimate_follows_the_pace(door: Door, worker: None) -> None:  # lives
    for job_id in [await submit(door) for _ in range(8)]:
        await start(door, job_id)
        await finish(door, job_id)
    near, *_, far = [await submit(door) for _ in range(10)]
    first, last = (await why(door, near))["estimate_s"], (await why(door, far))["estimate_s"]
    assert 0 < first["p50"] <= first["p90"] < 60
    assert last["p50"] == pytest.approx(10 * first["p50"], rel=0.01, abs=0.02)
    later = await door.client.post("/v1/jobs", json={"kind": "noop", "delay_s": 600})
    assert (await why(door, UUID(later.json()["id"])))["estimate_s"]["p50"] == pytest.approx(600, abs=30)


async def test_of_a_job_that_is_not_there_nothing_is_said(door: Door) -> None:
    assert (await door.client.get(f"/v1/jobs/{uuid7()}/waiting")).status_code == 404
