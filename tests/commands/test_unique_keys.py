"""Unique keys on a real log: of any number at once one job is made, and whoever comes later is told which."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import attempts, jobs
from sightline.commands.jobs import SubmitJob
from sightline.commands.transact import Commands
from sightline.commands.transaction import Transaction
from sightline.domain import unique_keys
from sightline.domain.kernel import QueueFull
from sightline.domain.unique_keys import JobExists, unique_key_id
from sightline.workers import lifecycle

AT_ONCE = 50


def nightly(**changed: Any) -> SubmitJob:
    wanted: dict[str, Any] = {"job_id": uuid7(), "kind": "noop", "pending_max": 1_000, "unique_key": "nightly"}
    return SubmitJob(**wanted | changed)


async def submit(service: Service, owner: str = "ada", **changed: Any) -> UUID:
    return (await service.run(jobs.submit_job, nightly(**changed), by(owner))).stream_id


async def made_at_once(service: Service) -> set[UUID]:
    sides = (service.commands, Commands(service.services.store))
    found = await asyncio.gather(
        *(sides[n % 2].execute(jobs.submit_job, nightly(), by()) for n in range(AT_ONCE)), return_exceptions=True
    )
    made = {one.stream_id for one in found if not isinstance(one, BaseException)}
    refused = [one for one in found if isinstance(one, BaseException)]
    assert {type(one) for one in refused} <= {JobExists}
    assert {one.extra["job_id"] for one in refused if isinstance(one, JobExists)} <= made
    return made


async def test_of_fifty_at_once_in_two_processes_one_is_made_and_the_others_are_told_which(
    bare_service: Service,
) -> None:
    assert len(await made_at_once(bare_service)) == 1


async def test_looking_without_expecting_would_make_more(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the registry is read, and the append does not rest on what it said."""
    looked, all_looked = [0], asyncio.Event()

    async def careless(tx: Transaction, job_id: UUID, _: object) -> None:
        stream_id = unique_key_id("ada", "noop", "nightly")
        unique, _, _ = await tx.commands.state(unique_keys.AGGREGATE, stream_id, read_tail=True)
        if unique.holder is not None:
            raise JobExists(job_id=unique.holder)
        looked[0] += 1
        if looked[0] == AT_ONCE:
            all_looked.set()
        await all_looked.wait()

    monkeypatch.setattr(jobs, "take_unique_key", careless)
    async with asyncio.timeout(120):
        assert len(await made_at_once(bare_service)) == AT_ONCE


@pytest.mark.parametrize("end", ["cancelled", "deleted", "dead"])
async def test_the_key_is_free_when_its_job_is_over(bare_service: Service, end: str) -> None:
    first = await submit(bare_service, attempts_max=1)
    with pytest.raises(JobExists):
        await submit(bare_service)
    if end == "dead":
        await die(bare_service, first)
    elif end == "deleted":
        await bare_service.run(jobs.delete_job, jobs.DeleteJob(job_id=first))
    else:
        await bare_service.run(jobs.cancel_job, jobs.CancelJob(job_id=first))
    second = await submit(bare_service)
    with pytest.raises(JobExists, match=str(second)):
        await submit(bare_service)


async def die(service: Service, job_id: UUID) -> None:
    start = attempts.StartJob(job_id=job_id, worker="w", lease_until=lifecycle.now())
    attempt = (await service.run(attempts.start_job, start)).state.attempt
    failed = attempts.FailJob(
        job_id=job_id, attempt=attempt, worker="w", code="x", message="", retryable=True, retry_delay_s=0
    )
    await service.run(attempts.fail_job, failed)


async def test_a_dead_letter_takes_its_key_again_or_is_not_requeued(bare_service: Service) -> None:
    first = await submit(bare_service, attempts_max=1)
    await die(bare_service, first)
    second = await submit(bare_service)
    with pytest.raises(JobExists, match=str(second)):
        await bare_service.run(jobs.requeue_job, jobs.RequeueJob(job_id=first), by("root"))
    await bare_service.run(jobs.cancel_job, jobs.CancelJob(job_id=second))
    await bare_service.run(jobs.requeue_job, jobs.RequeueJob(job_id=first), by("root"))
    with pytest.raises(JobExists, match=str(first)):
        await submit(bare_service)


async def test_a_key_is_its_owners(bare_service: Service) -> None:
    await submit(bare_service)
    await submit(bare_service, "grace")
    await submit(bare_service, unique_key="weekly")


async def test_a_request_that_is_repeated_is_answered_with_its_job(bare_service: Service) -> None:
    caller, command = by(), nightly()
    first = await bare_service.run(jobs.submit_job, command, caller)
    again = await bare_service.run(jobs.submit_job, command, caller)
    assert (again.repeat, again.stream_id) == (True, first.stream_id)


async def test_a_refused_job_takes_no_key(bare_service: Service) -> None:
    with pytest.raises(QueueFull):
        await submit(bare_service, pending_max=0)
    assert await bare_service.events(unique_key_id("ada", "noop", "nightly")) == []
    await submit(bare_service)
