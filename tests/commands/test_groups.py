"""Starting and completing together is starting and completing one by one: the same states, whatever the jobs are."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import attempts, groups, jobs
from sightline.commands.groups import Claim, CompleteJobs, Completion, StartJobs
from sightline.domain.jobs import Job, Provenance
from sightline.domain.kernel import Rejection
from sightline.workers.lifecycle import now

WORKER = "worker:1"
STATES = ("pending", "cancelled", "deleted", "held by another", "for later", "running", "pending")


async def _made(bare_service: Service, state: str) -> UUID:
    later = now() + timedelta(hours=1) if state == "for later" else None
    job_id = await bare_service.submit(not_before=later)
    match state:
        case "cancelled":
            await bare_service.run(jobs.cancel_job, jobs.CancelJob(job_id=job_id))
        case "deleted":
            await bare_service.run(jobs.delete_job, jobs.DeleteJob(job_id=job_id))
        case "held by another":
            await _start(bare_service, job_id, "worker:2")
        case "running":
            await _start(bare_service, job_id, WORKER)
    return job_id


async def _start(bare_service: Service, job_id: UUID, worker: str) -> None:
    lease_until = now() + timedelta(seconds=10)
    await bare_service.run(attempts.start_job, attempts.StartJob(job_id=job_id, worker=worker, lease_until=lease_until))


def _start_jobs(job_ids: list[UUID]) -> StartJobs:
    claims = [Claim(job_id=one, correlation_id=f"of {one}", causation_id="event:7") for one in job_ids]
    return StartJobs(claims=tuple(claims), worker=WORKER, lease_until=now() + timedelta(seconds=10))


def _completion(job_id: UUID, job: Job) -> Completion:
    result = attempts.CompleteJob(
        job_id=job_id,
        attempt=job.attempt,
        worker=WORKER,
        outputs=(),
        manifest={},
        timings={},
        receipt=Provenance(),
    )
    return Completion(result=result, correlation_id=f"of {job_id}", causation_id="event:8")


def _plain(job: Job) -> tuple[Any, ...]:
    return job.status, job.attempt, job.worker, job.refused, job.result is not None


async def test_together_they_come_to_what_they_come_to_one_by_one(bare_service: Service) -> None:
    one_by_one = [await _made(bare_service, state) for state in STATES]
    together = [await _made(bare_service, state) for state in STATES]
    for job_id in one_by_one:
        try:
            await _start(bare_service, job_id, WORKER)
        except Rejection:
            continue
    await bare_service.run(groups.start_jobs, _start_jobs(together))
    assert [_plain(await bare_service.job(one)) for one in together] == [
        _plain(await bare_service.job(one)) for one in one_by_one
    ]

    held = [n for n, one in enumerate(together) if (await bare_service.job(one)).attempt == 1]
    assert len(held) == 4
    for n in held:
        one = one_by_one[n]
        await bare_service.run(attempts.complete_job, _completion(one, await bare_service.job(one)).result)
    completions = [_completion(together[n], await bare_service.job(together[n])) for n in held]
    await bare_service.run(groups.complete_jobs, CompleteJobs(completions=tuple(completions)))
    assert [_plain(await bare_service.job(one)) for one in together] == [
        _plain(await bare_service.job(one)) for one in one_by_one
    ]
    assert (await bare_service.job(together[0])).status == "completed"


async def test_each_event_has_its_own_cause_and_one_receipt_is_kept(bare_service: Service) -> None:
    job_ids = [await _made(bare_service, "pending") for _ in range(3)]
    command = by(WORKER)
    before = (await bare_service.services.store.reader.head()).position
    for _ in range(2):
        receipt = await bare_service.run(groups.start_jobs, _start_jobs(job_ids), command)
        assert receipt.position == before + 3
    events = await bare_service.services.store.reader.page(after=before)
    assert [event.stream_id for event in events] == job_ids
    assert [event.envelope.correlation_id for event in events] == [f"of {one}" for one in job_ids]
    assert {event.envelope.causation_id for event in events} == {"event:7"}
    assert {event.envelope.command_id for event in events} == {str(command.command_id)}


@pytest.mark.parametrize("wrong", [{"attempt": 2}, {"job_id": uuid7()}])
async def test_one_that_cannot_be_refuses_all_of_them(bare_service: Service, wrong: dict[str, Any]) -> None:
    job_ids = [await _made(bare_service, "pending") for _ in range(2)]
    await bare_service.run(groups.start_jobs, _start_jobs(job_ids))
    first, second = [_completion(one, await bare_service.job(one)) for one in job_ids]
    second = replace(second, result=replace(second.result, **wrong))
    before = (await bare_service.services.store.reader.head()).position
    with pytest.raises(Rejection):
        await bare_service.run(groups.complete_jobs, CompleteJobs(completions=(first, second)))
    assert (await bare_service.services.store.reader.head()).position == before
