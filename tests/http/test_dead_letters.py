"""Dead letters at the door: filtered, counted, and requeued in bulk after a preview."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.conftest_service import by
from tests.http.door import Door

from sightline.adapters.event_store.writer import StoreBusy, StoreUnavailable
from sightline.adapters.ids import uuid7
from sightline.commands import attempts, batches, jobs
from sightline.commands.dead_letters import requeue_all
from sightline.domain.batches import job_id as job_of_batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v1/dead-letters"


async def dead(door: Door, owner: str, code: str = "noop_failed", **submitted: Any) -> UUID:
    """A job that used up its one attempt."""
    execute = door.services.commands.execute
    wanted: dict[str, Any] = {"job_id": uuid7(), "kind": "noop", "attempts_max": 1, "pending_max": 1_000} | submitted
    job_id = (await execute(jobs.submit_job, jobs.SubmitJob(**wanted), by(owner))).stream_id
    await kill(door, job_id, code)
    return job_id


async def kill(door: Door, job_id: UUID, code: str) -> None:
    """Its first attempt, which fails."""
    execute = door.services.commands.execute
    start = attempts.StartJob(job_id=job_id, worker="w", lease_until=datetime.now(UTC))
    await execute(attempts.start_job, start, by("w"))
    failed = attempts.FailJob(
        job_id=job_id, attempt=1, worker="w", code=code, message="", retryable=True, retry_delay_s=0
    )
    await execute(attempts.fail_job, failed, by("w"))


async def listed(door: Door, **query: Any) -> list[str]:
    await door.caught_up()
    answer = await door.client.get(PATH, params=query)
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["items"]]


async def requeue(door: Door, **body: Any) -> dict[str, Any]:
    await door.caught_up()
    answer = await door.client.post(f"{PATH}/requeue", json=body)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


async def test_letters_are_filtered_and_counted_by_code(door: Door) -> None:
    began = datetime.now(UTC)
    first = await dead(door, "f-ada", "disk_full")
    second = await dead(door, "f-ada", "disk_full")
    batch = batches.SubmitBatch(
        batch_id=uuid7(), kind="noop", members=[batches.JobOfBatch()], attempts_max=1, pending_max=1_000
    )
    await door.services.commands.execute(batches.submit_batch, batch, by("f-ada"))
    third = job_of_batch(batch.batch_id, 1)
    await kill(door, third, "cosmic_ray")
    assert await listed(door, code="disk_full") == [str(first), str(second)]
    assert await listed(door, batch_id=batch.batch_id) == [str(third)]
    assert await listed(door, kind="layer-photo-realistic") == []
    assert await listed(door, code="disk_full", to=began.isoformat()) == []
    assert await listed(door, code="disk_full", **{"from": began.isoformat()}) == [str(first), str(second)]
    page = await door.client.get(PATH, params={"limit": 1, "code": "disk_full"})
    assert (page.json()["next"], page.json()["counts"]) == (str(first), [{"code": "disk_full", "jobs": 2}])
    assert 'rel="next"' in page.headers["Link"]
    assert await listed(door, code="disk_full", after=first) == [str(second)]


async def test_a_preview_does_nothing_and_then_each_is_requeued_once(door: Door) -> None:
    ids = [await dead(door, "p-ada", "poison") for _ in range(30)]
    other = await dead(door, "p-ada", "else")
    preview = await requeue(door, code="poison", preview=True)
    assert (preview["matching"], preview["requeued"], preview["skipped"]) == (30, 0, 0)
    assert [one["id"] for one in preview["sample"]] == [str(one) for one in ids[:10]]
    assert preview["counts"] == [{"code": "poison", "jobs": 30}]
    assert len(await listed(door, code="poison")) == 30
    some = await requeue(door, code="poison", limit=10)
    assert (some["matching"], some["requeued"], some["skipped"]) == (30, 10, 0)
    rest = await requeue(door, code="poison")
    assert (rest["requeued"], rest["skipped"]) == (20, 0)
    assert await listed(door, code="poison") == []
    assert await listed(door, code="else") == [str(other)]
    assert (await requeue(door, code="poison"))["matching"] == 0
    for job_id in ids:
        topics = [one.topic for one in await door.services.store.reader.stream(job_id)]
        assert topics.count("job.requeued") == 1


async def test_two_who_requeue_the_same_at_once_requeue_each_once(door: Door) -> None:
    ids = [await dead(door, "t-ada", "twice") for _ in range(40)]
    letters = [(job_id, 1) for job_id in ids]
    found = await asyncio.gather(*(requeue_all(door.services.commands, letters, by(name)) for name in ("x", "y")))
    assert sum(one.requeued for one in found) == 40
    assert sum(sum(one.skipped.values()) for one in found) == 40


async def test_with_ids_of_their_own_a_letter_that_died_again_would_come_back_by_a_repeat(door: Door) -> None:
    """The control: the same letters after their jobs died again. Ids that follow from the letter say nothing; a fresh
    id for each request gives attempts that nobody decided on.
    """
    job_id = await dead(door, "r-ada", "again")
    commands = door.services.commands
    assert (await requeue_all(commands, [(job_id, 1)], by("x"))).requeued == 1
    start = attempts.StartJob(job_id=job_id, worker="w", lease_until=datetime.now(UTC))
    await commands.execute(attempts.start_job, start, by("w"))
    failed = attempts.FailJob(
        job_id=job_id, attempt=2, worker="w", code="again", message="", retryable=True, retry_delay_s=0
    )
    await commands.execute(attempts.fail_job, failed, by("w"))
    repeated = await requeue_all(commands, [(job_id, 1)], by("x"))
    assert (repeated.requeued, repeated.skipped) == (0, {"repeated": 1})
    careless = await commands.execute(jobs.requeue_job, jobs.RequeueJob(job_id=job_id), by("x"))
    assert careless.events


async def test_what_cannot_be_requeued_is_skipped_and_told_why(door: Door) -> None:
    held = await dead(door, "s-ada", "held", unique_key="k")
    gone = await dead(door, "s-ada", "held")
    submit = jobs.SubmitJob(job_id=uuid7(), kind="noop", unique_key="k", pending_max=1_000)
    await door.services.commands.execute(jobs.submit_job, submit, by("s-ada"))
    await door.services.commands.execute(jobs.delete_job, jobs.DeleteJob(job_id=gone), by("s-ada"))
    done = await requeue_all(door.services.commands, [(held, 1), (gone, 1)], by("x"))
    assert (done.requeued, done.skipped) == (0, {"job_exists": 1, "not_found": 1})
    said = await requeue(door, code="held")
    assert (said["matching"], said["requeued"], said["skipped"], said["reasons"]) == (1, 0, 1, {"job_exists": 1})


@pytest.mark.parametrize(
    "refused",
    [
        psycopg.OperationalError("the connection is lost"),
        StoreBusy("the queue is full"),
        StoreUnavailable("no answer"),
    ],
    ids=lambda one: type(one).__name__,
)
async def test_while_a_part_is_down_whoever_asks_is_told_to_come_back(
    door: Door, monkeypatch: pytest.MonkeyPatch, refused: Exception
) -> None:
    """The first that finds it down ends them all; what is done stays done, and the rest is for later."""
    ids = [await dead(door, "d-ada", "down") for _ in range(5)]
    await door.caught_up()
    append, appended = door.services.store.writer.append, 0

    async def dying(*given: Any, **named: Any) -> Any:
        nonlocal appended
        appended += 1
        if appended > 2:
            raise refused
        return await append(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(door.services.store.writer, "append", dying)
        answer = await door.client.post(f"{PATH}/requeue", json={"code": "down"})
    assert (answer.status_code, int(answer.headers.get("Retry-After", 0)) > 0) == (503, True), answer.text
    said = await requeue(door, code="down")
    assert 3 <= said["requeued"] <= 5  # of the two that were sent nobody waited for the answer
    for job_id in ids:
        topics = [one.topic for one in await door.services.store.reader.stream(job_id)]
        assert topics.count("job.requeued") == 1


@pytest.mark.parametrize(
    "body",
    [{"limit": 0}, {"limit": 10_001}, {"codes": []}, {"since": "2026-01-01T00:00:00"}, {"preview": "yes"}],
    ids=str,
)
async def test_a_wish_that_cannot_be_is_refused(door: Door, body: dict[str, Any]) -> None:
    assert (await door.client.post(f"{PATH}/requeue", json=body)).status_code == 422


async def test_it_takes_no_key_since_it_needs_none(door: Door) -> None:
    answer = await door.client.post(f"{PATH}/requeue", json={}, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 400
