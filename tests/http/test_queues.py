"""Queues at the door: figures, pause and drain, limits; jobs for later and under a key."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from tests.conftest_service import by
from tests.http.door import Door

from sightline.commands import attempts
from sightline.domain.jobs import Provenance
from sightline.domain.queues import QueueIsPaused

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/queues/noop"


async def submit(door: Door, **body: Any) -> httpx.Response:
    return await door.client.post("/v1/jobs", json={"kind": "noop"} | body)


async def start(door: Door, job_id: str) -> None:
    command = attempts.StartJob(job_id=UUID(job_id), worker="w", lease_until=datetime.now(UTC))
    await door.services.commands.execute(attempts.start_job, command, by("w"))


async def finish(door: Door, job_id: str) -> None:
    command = attempts.CompleteJob(
        job_id=UUID(job_id), attempt=1, worker="w", outputs=(), manifest={}, timings={}, receipt=Provenance()
    )
    await door.services.commands.execute(attempts.complete_job, command, by("w"))


async def figures(door: Door) -> dict[str, Any]:
    await door.caught_up()
    found: dict[str, Any] = (await door.client.get(PATH)).json()
    return found


async def test_figures_follow_the_jobs(door: Door) -> None:
    before = await figures(door)
    assert (before["paused"], before["running_max"], before["oldest_s"]) == (False, None, None)
    ids = [(await submit(door)).json()["id"] for _ in range(3)]
    await submit(door, delay_s=3600)
    await start(door, ids[0])
    await start(door, ids[1])
    await finish(door, ids[1])
    after = await figures(door)
    moved = {name: after[name] - before[name] for name in ("pending", "scheduled", "running", "starts_last_minute")}
    assert moved == {"pending": 1, "scheduled": 1, "running": 1, "starts_last_minute": 2}
    assert after["oldest_s"] > 0
    assert 0 <= after["wait_p50_s"] <= after["wait_p95_s"]
    assert 0 <= after["run_p50_s"] <= after["run_p95_s"]
    page = (await door.client.get("/v1/queues")).json()["items"]
    assert [one["kind"] for one in page] == sorted(one["kind"] for one in page)
    assert next(one for one in page if one["kind"] == "noop")["running"] == after["running"]


async def test_a_paused_kind_takes_jobs_and_starts_none(door: Door) -> None:
    running = (await submit(door)).json()["id"]
    await start(door, running)
    paused = await door.client.post(f"{PATH}/pause", json={"reason": "a new disk"})
    assert paused.status_code == 200
    assert (paused.json()["paused"], paused.json()["reason"]) == (True, "a new disk")
    waiting = (await submit(door)).json()["id"]
    with pytest.raises(QueueIsPaused, match="a new disk"):
        await start(door, waiting)
    seen = await door.get(PATH, paused)
    assert seen.headers["ETag"] == paused.headers["ETag"]
    await finish(door, running)
    resumed = await door.client.post(f"{PATH}/resume", headers={"If-Match": paused.headers["ETag"]})
    assert resumed.json()["paused"] is False
    await start(door, waiting)
    again = await door.client.post(f"{PATH}/pause")
    assert (again.json()["paused"], again.json()["reason"]) == (True, "")
    await door.client.post(f"{PATH}/resume")
    history = (await door.client.get(f"{PATH}/history")).json()
    assert [one["type"] for one in history["items"]][:2] == ["queue.paused", "queue.resumed"]


async def test_limits_are_whole_numbers_or_none(door: Door) -> None:
    answer = await door.client.put(f"{PATH}/limits", json={"running_max": 2})
    assert (answer.json()["running_max"], answer.json()["starts_per_minute_max"]) == (2, None)
    wrong: list[Any] = [{"running_max": 0}, {"starts_per_minute_max": -1}, {"running_max": 2**40}, {"speed": 1}, []]
    for body in wrong:
        assert (await door.client.put(f"{PATH}/limits", json=body)).status_code == 422, body
    assert (await door.client.put(f"{PATH}/limits", json={})).json()["running_max"] is None
    stale = await door.client.put(
        f"{PATH}/limits", json={"running_max": 9}, headers={"If-Match": answer.headers["ETag"]}
    )
    assert stale.status_code == 412


@pytest.mark.parametrize("path", ["", "/pause", "/resume", "/limits"])
async def test_a_kind_that_there_is_not_has_no_queue(door: Door, path: str) -> None:
    method = {"": "GET", "/limits": "PUT"}.get(path, "POST")
    answer = await door.client.request(method, f"/v1/queues/nothing{path}", json={} if method != "GET" else None)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_reason_is_one_line(door: Door) -> None:
    answer = await door.client.post(f"{PATH}/pause", json={"reason": "a\nb"})
    assert (answer.status_code, answer.json()["code"]) == (422, "rule_violated")


# Jobs for later


async def test_a_job_is_for_later_by_a_time_or_by_a_delay(door: Door) -> None:
    then = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    zoned = then.astimezone().isoformat()
    by_time = await submit(door, not_before=zoned)
    assert datetime.fromisoformat(by_time.json()["not_before"]) == then
    assert by_time.json()["not_before"].endswith("Z")
    by_delay = await submit(door, delay_s=60.5)
    delay = datetime.fromisoformat(by_delay.json()["not_before"]) - datetime.fromisoformat(
        by_delay.json()["created_at"]
    )
    assert delay == timedelta(seconds=60.5)
    row = (await door.get(by_delay.headers["Location"], by_delay)).json()
    assert row["not_before"] == by_delay.json()["not_before"]


@pytest.mark.parametrize(
    "body",
    [
        {"not_before": "2030-01-01T00:00:00"},
        {"not_before": "soon"},
        {"not_before": "9999-12-31T23:59:59Z"},
        {"delay_s": -1},
        {"delay_s": 91 * 24 * 3600},
        {"delay_s": 1, "not_before": "2026-01-01T00:00:00Z"},
    ],
    ids=str,
)
async def test_a_time_that_is_none_or_too_far_is_refused(door: Door, body: dict[str, Any]) -> None:
    assert (await submit(door, **body)).status_code == 422


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+23:59", "2026-01-01T00:00:00-23:59"])
async def test_a_time_of_any_zone_can_be_kept(door: Door, moment: str) -> None:
    answer = await submit(door, not_before=moment)
    assert (answer.status_code, answer.json()["not_before"]) == (201, None)


# Unique keys


async def test_a_job_under_a_key_that_is_taken_is_refused_and_told_which(door: Door) -> None:
    first = await submit(door, unique_key="report 7/2026")
    assert first.json()["unique_key"] == "report 7/2026"
    second = await submit(door, unique_key="report 7/2026")
    assert (second.status_code, second.json()["code"]) == (409, "job_exists")
    assert second.headers["Location"] == first.headers["Location"]
    assert first.json()["id"] in second.json()["detail"]
    await door.client.post(f"{first.headers['Location']}/cancel")
    third = await submit(door, unique_key="report 7/2026")
    assert third.status_code == 201
    assert (await door.get(third.headers["Location"], third)).json()["unique_key"] == "report 7/2026"


@pytest.mark.parametrize("key", ["", "x" * 201, "a\u0000b", "a\nb"])
async def test_a_key_is_one_line_of_text(door: Door, key: str) -> None:
    assert (await submit(door, unique_key=key)).status_code in {400, 422}
