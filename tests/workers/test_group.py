"""Short jobs that a worker claims and runs together: each is done once, and one that fails fails alone."""

import asyncio
import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from msgspec.structs import replace
from tests.conftest_service import Processes, Service, until

from sightline.adapters.event_store.codec import Recorded
from sightline.commands import queues
from sightline.domain.kinds import KINDS
from sightline.workers.attempt import Attempt
from sightline.workers.group import Group
from sightline.workers.inference import Worker, _fitting
from sightline.workers.leases import Lease
from sightline.workers.runner_messages import Output, RunnerAnswer


@pytest_asyncio.fixture
async def lease(service: Service) -> Lease:
    held = Lease(service.settings, "w1")
    held.start()
    return held


async def _submitted(service: Service, count: int) -> list[UUID]:
    return list(await asyncio.gather(*(service.submit() for _ in range(count))))


async def _events(service: Service) -> list[Recorded]:
    found: list[Recorded] = []
    while page := await service.services.store.reader.page(after=found[-1].id if found else 0):
        found += page
    return found


async def _work(service: Service, lease: Lease, job_ids: list[UUID]) -> None:
    """One worker in this process, until these jobs are over."""
    stopping = asyncio.Event()
    working = asyncio.create_task(Worker(service.services).run(stopping, lease))

    async def over() -> bool:
        return all([(await service.job(job_id)).finished_at for job_id in job_ids])

    try:
        await until(over)
    finally:
        stopping.set()
        await working
        lease.stop()


async def test_many_short_jobs_are_started_and_completed_a_batch_at_a_time(service: Service, lease: Lease) -> None:
    job_ids = await _submitted(service, 200)
    await service.services.hints.ready()
    await _work(service, lease, job_ids)
    events = await _events(service)
    for job_id in job_ids:
        assert await service.topics(job_id) == ["submitted", "started", "completed"]
        chain = await service.events(job_id)
        assert len({event.envelope.correlation_id for event in chain}) == 1
        assert [event.envelope.causation_id for event in chain[1:]] == [f"event:{event.id}" for event in chain[:-1]]
    began = [event.id for event in events if event.topic == "job.started"]
    runs = 1 + sum(after - before > 1 for before, after in pairwise(began))
    assert runs < 20  # of starts without anything between them; one by one there are 200


async def test_one_by_one_there_is_a_completion_between_two_starts(service: Service, lease: Lease) -> None:
    """The control: where nothing is taken beside the first."""
    job_ids = await _submitted(service, 20)

    async def nothing(*_: object, **__: object) -> list[UUID]:
        return []

    service.services.hints.take_more = nothing  # type: ignore[method-assign]  # this one's alone
    await _work(service, lease, job_ids)
    began = [event.id for event in await _events(service) if event.topic == "job.started"]
    assert all(after - before > 1 for before, after in pairwise(began))


async def test_one_that_fails_fails_alone(service: Service, lease: Lease) -> None:
    job_ids = await _submitted(service, 20)
    poison = await service.submit(params={"fail": True}, attempts_max=1)
    await _work(service, lease, [*job_ids, poison])
    assert {(await service.job(job_id)).status for job_id in job_ids} == {"completed"}
    job = await service.job(poison)
    assert (job.status, job.dead_letter, job.error_code) == ("failed", True, "noop_failed")


async def test_one_that_takes_its_time_is_not_taken_with_others(service: Service, lease: Lease) -> None:
    """Else they would wait for it, and it could not be cancelled."""
    short = await _submitted(service, 5)
    long_id = await service.submit(params={"sleep_s": 0.1})
    hints = service.services.hints
    worker = Worker(service.services)
    attempts = await worker._attempts(asyncio.Event(), lease)
    assert {(await service.job(job_id)).status for job_id in short} == {"processing"}
    assert len(attempts) == len(short)
    assert (await service.job(long_id)).status == "pending"
    assert await hints.take(["noop"], count=1, timeout_s=0.1) == [long_id]  # at its place again
    lease.stop()


async def test_two_workers_share_what_waits_and_do_each_once(service: Service, processes: Processes) -> None:
    job_ids = await _submitted(service, 400)
    processes.start("tick")
    for _ in range(2):
        processes.start("work")

    async def over() -> bool:
        done = [event for event in await _events(service) if event.topic == "job.completed"]
        return len(done) >= len(job_ids)

    await until(over)
    events = await _events(service)
    done = [event.stream_id for event in events if event.topic == "job.completed"]
    assert sorted(done) == sorted(job_ids)


async def test_a_claim_that_was_lost_leaves_the_others_of_its_batch(service: Service, lease: Lease) -> None:
    job_ids = await _submitted(service, 10)
    first = Worker(service.services)
    taken = await first._due(job_ids[:3])
    for one in taken:
        assert await first._claimed(one, lease) is not None
    service.commands.states.clear()
    second = Worker(service.services)
    lost = [await second._claimed(one, lease) for one in taken]
    assert lost == [None, None, None]
    assert len(await second._due(job_ids)) == 7
    lease.stop()


async def test_more_than_may_run_at_once_are_not_started_together(service: Service, lease: Lease) -> None:
    limits = queues.SetQueueLimits(kind="noop", running_max=3, starts_per_minute_max=None)
    await service.run(queues.set_queue_limits, limits)
    job_ids = await _submitted(service, 10)
    worker = Worker(service.services)
    attempts = await worker._attempts(asyncio.Event(), lease)
    assert len(attempts) == 3
    assert [one.job_id for one in attempts] == job_ids[:3]
    # The others are at their places again, and nobody asks for them until there is room.
    assert await service.services.hints.take(["noop"], count=10, timeout_s=0.05) == []
    worker._let_go(attempts)
    assert await service.services.hints.take(["noop"], count=10, timeout_s=5) == job_ids[3:]
    lease.stop()


async def test_only_what_has_the_same_time_runs_together(service: Service, lease: Lease) -> None:
    """The time of all of them runs from their start, which is one."""
    long = [await service.submit(timeout_s=60) for _ in range(3)]
    short = [await service.submit(timeout_s=30) for _ in range(2)]
    worker = Worker(service.services)
    for same in (long, short):
        assert [one.job_id for one in await worker._attempts(asyncio.Event(), lease)] == same
    lease.stop()


async def test_whoever_is_tried_again_is_alone(service: Service) -> None:
    """What made it fail may have been its neighbours, and theirs may have been it."""
    worker = Worker(service.services)
    first, second, third = await worker._due(await _submitted(service, 3))
    again = replace(first, number=2)
    kind = KINDS["noop"]
    assert _fitting([again, second, third], kind) == [again]
    assert _fitting([second, again, third], kind) == [second, third]


async def test_a_database_that_goes_away_between_two_claims_leaves_what_is_held(
    service: Service, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody would run them, and their worker would keep them for as long as it lives."""
    limits = queues.SetQueueLimits(kind="noop", running_max=8, starts_per_minute_max=None)
    await service.run(queues.set_queue_limits, limits)
    job_ids = await _submitted(service, 10)
    worker = Worker(service.services)
    claimed, left = worker._claimed, iter(range(3))

    async def until_it_goes(*given: Any) -> Attempt | None:
        if next(left, None) is None:
            raise psycopg.OperationalError("the connection is lost")
        return await claimed(*given)

    monkeypatch.setattr(worker, "_claimed", until_it_goes)
    attempts = await worker._attempts(asyncio.Event(), lease)
    assert [one.job_id for one in attempts] == job_ids[:3]
    assert {(await service.job(job_id)).status for job_id in job_ids[3:]} == {"pending"}
    with pytest.raises(psycopg.OperationalError):
        await worker._claims(await worker._due(job_ids[3:]), lease)  # where it holds none, its slot waits
    lease.stop()


async def test_one_result_that_cannot_be_had_leaves_the_others_as_they_were_stored(
    service: Service, lease: Lease, tmp_path: Path
) -> None:
    await _submitted(service, 3)
    attempts = await Worker(service.services)._attempts(asyncio.Event(), lease)
    path = tmp_path / "a.txt"
    path.write_bytes(b"a")

    def answer(said: bytes) -> RunnerAnswer:
        return RunnerAnswer([Output("a.txt", str(path), "text/plain", 1, hashlib.sha256(said).hexdigest())], {}, {})

    group = Group(service.services, attempts, lease.epoch)
    group._outcomes = [answer(b"a"), answer(b"b"), answer(b"a")]
    before = (await _events(service))[-1].id
    await group.settle()
    told = [event for event in await _events(service) if event.id > before]
    assert [event.topic for event in told] == ["job.retry_scheduled", "job.completed", "job.completed"]
    assert told[1].recorded_at == told[2].recorded_at, "they are one append, as they would be without the third"
    lease.stop()


async def test_of_a_paused_kind_nothing_starts_and_nothing_is_lost(service: Service, lease: Lease) -> None:
    job_ids = await _submitted(service, 5)
    await service.run(queues.pause_queue, queues.PauseQueue(kind="noop"))
    worker = Worker(service.services)
    assert await worker._attempts(asyncio.Event(), lease) == []
    assert worker._ours == set()
    await service.run(queues.resume_queue, queues.ResumeQueue(kind="noop"))
    await _work(service, lease, job_ids)
    assert {(await service.job(job_id)).status for job_id in job_ids} == {"completed"}


async def test_a_job_that_one_slot_has_in_hand_is_no_other_slots(service: Service, lease: Lease) -> None:
    """The clock offers what waits again, also between a slot's taking it and its claim."""
    [job_id] = await _submitted(service, 1)
    worker = Worker(service.services)
    first = await worker._due([job_id])
    assert [one.job_id for one in first] == [job_id]
    assert await worker._due([job_id]) == []
    assert await Worker(service.services)._due([job_id]) != []  # another process asks the log, as ever
    lease.stop()
