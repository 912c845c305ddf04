"""Batches on a real log: whole or not at all, in one append."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import attempts, batches, jobs, quotas
from sightline.commands.batches import JobOfBatch
from sightline.commands.transaction import Transaction
from sightline.domain import batches as domain
from sightline.domain import model_slots as slots
from sightline.domain.assets import NotClean
from sightline.domain.kernel import InvalidState, NotFound, QueueFull
from sightline.domain.kinds import InvalidParameters
from sightline.domain.quotas import Limits, QuotaExceeded
from sightline.workers import lifecycle

CAPACITY = 100


def command(count: int = 3, **changed: Any) -> batches.SubmitBatch:
    given: dict[str, Any] = {"batch_id": uuid7(), "kind": "noop", "pending_max": CAPACITY}
    return batches.SubmitBatch(**(given | {"members": [JobOfBatch()] * count} | changed))


async def submit(service: Service, count: int = 3, **changed: Any) -> UUID:
    return (await service.run(batches.submit_batch, command(count, **changed))).stream_id


async def head(service: Service) -> int:
    return (await service.services.store.reader.head()).position


def waiting(service: Service) -> int:
    """What the counter of waiting jobs says."""
    with psycopg.connect(service.settings.database_url) as connection:
        row = connection.execute(
            "SELECT value FROM guards WHERE key = %s ORDER BY move DESC LIMIT 1", [jobs.pending_key("noop")]
        ).fetchone()
    return row[0] if row else 0


async def test_a_batch_and_its_jobs_are_one_append(bare_service: Service) -> None:
    receipt = await bare_service.run(batches.submit_batch, command(50))
    events = await bare_service.services.store.reader.page(after=0, limit=100)
    assert [one.position for one in events] == list(range(1, 52))
    assert [one.topic for one in events] == ["batch.submitted", *["job.submitted"] * 50]
    assert len({(one.recorded_at, one.metadata) for one in events}) == 1
    assert (receipt.position, receipt.version, waiting(bare_service)) == (51, 1, 50)
    offered = await bare_service.services.hints.take(["noop"], count=100, timeout_s=5)
    assert set(offered) == {domain.job_id(receipt.stream_id, number) for number in range(1, 51)}


async def test_what_does_not_fit_is_refused_whole(bare_service: Service) -> None:
    """At once, from two processes: as many batches as there is room for, each whole."""
    found = await asyncio.gather(*(submit(bare_service, 30) for _ in range(6)), return_exceptions=True)
    assert [type(one) for one in found if isinstance(one, BaseException)] == [QueueFull] * 3
    assert (await head(bare_service), waiting(bare_service)) == (3 * 31, 90)
    with pytest.raises(QueueFull):
        await submit(bare_service, 11)
    await submit(bare_service, 10)


async def test_a_capacity_that_counts_a_batch_as_one_job_lets_too_many_in(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the counter is not told, it cannot hold against the limit."""

    def once(self: Transaction, key: str, delta: int, limit: int | None = None, refusal: Any = None) -> None:
        if not self._guards:
            real(self, key, delta, limit, refusal)

    real = Transaction.guard
    monkeypatch.setattr(Transaction, "guard", once)
    found = await asyncio.gather(*(submit(bare_service, 30) for _ in range(6)), return_exceptions=True)
    assert not [one for one in found if isinstance(one, BaseException)]
    assert await head(bare_service) > CAPACITY


async def test_a_quota_counts_every_job_and_refuses_the_whole(bare_service: Service) -> None:
    limits = quotas.SetQuotaLimit(principal="ada", limits=Limits(jobs_per_day=10))
    await bare_service.run(quotas.set_quota_limit, limits, by("root"))
    before = await head(bare_service)
    with pytest.raises(QuotaExceeded):
        await submit(bare_service, 11)
    assert await head(bare_service) == before
    batch_id = await submit(bare_service, 10)
    assert await head(bare_service) == before + 1 + 2 * 10, "each job with its reservation"
    with pytest.raises(QuotaExceeded):
        await bare_service.submit()
    # What is cancelled before it began does not count after all.
    await bare_service.run(batches.cancel_batch, batches.CancelBatch(batch_id=batch_id))
    end = batches.CancelJobOfBatch(batch_id=batch_id, job_id=domain.job_id(batch_id, 7))
    await bare_service.run(batches.cancel_job_of_batch, end, by("clock"))
    await bare_service.submit()
    with pytest.raises(QuotaExceeded):
        await bare_service.submit()


async def test_one_wrong_job_refuses_all(bare_service: Service) -> None:
    wrong = [JobOfBatch()] * 4 + [JobOfBatch(params={"sleep_s": "long"})]
    with pytest.raises(InvalidParameters, match="job 5: "):
        await submit(bare_service, members=wrong)
    assert await head(bare_service) == 0
    assert waiting(bare_service) == 0


async def test_inputs_are_looked_at_and_a_model_is_pinned_once(bare_service: Service) -> None:
    await bare_service.install_models()
    clean = [await bare_service.asset(uuid7()) for _ in range(3)]
    dirty = await bare_service.asset(uuid7(), code="malware_signature")
    before = await head(bare_service)
    for wrong, error in ((dirty, NotClean), (uuid4(), NotFound)):
        members = [JobOfBatch(inputs=(one,)) for one in (*clean, wrong)]
        with pytest.raises(error):
            await submit(bare_service, kind="layer-photo-realistic", members=members)
    assert await head(bare_service) == before
    members = [JobOfBatch(inputs=(one,)) for one in clean]
    batch_id = await submit(bare_service, kind="layer-photo-realistic", members=members)
    active = (await bare_service.commands.state(slots.AGGREGATE, slots.slot_id("depth"), read_tail=True))[0].active
    submitted = [(await bare_service.job(domain.job_id(batch_id, number))).submitted for number in (1, 2, 3)]
    assert [one.inputs for one in submitted if one is not None] == [(one,) for one in clean]
    assert {one.model_version_id for one in submitted if one is not None} == {active}


async def test_a_repeat_is_the_same_batch_and_decides_nothing(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller, first = by(), command(20)
    receipt = await bare_service.run(batches.submit_batch, first, caller)
    before = await head(bare_service)
    monkeypatch.delattr(batches, "_parsed")  # it does not come so far
    again = await bare_service.run(batches.submit_batch, first, caller)
    assert (again.repeat, again.position, again.stream_id) == (True, receipt.position, receipt.stream_id)
    assert await head(bare_service) == before


async def test_a_decision_on_a_state_that_moved_is_made_again(bare_service: Service) -> None:
    """A quota is set in another process, which this one's cache does not know: the append says so."""
    await submit(bare_service, 2)  # by ada, of whom it is remembered now that she has no limits
    limits = quotas.SetQuotaLimit(principal="ada", limits=Limits(jobs_per_day=5))
    async with lifecycle.open_services(bare_service.settings) as others:
        await others.commands.execute(quotas.set_quota_limit, limits, by("root"))
    batch_id = await submit(bare_service, 5)
    submitted = (await bare_service.job(domain.job_id(batch_id, 5))).submitted
    assert submitted is not None
    assert submitted.counted


async def test_jobs_are_ended_on_behalf_of_whoever_cancelled_their_batch(bare_service: Service) -> None:
    batch_id, other = await submit(bare_service), await submit(bare_service)
    waits, runs, done = (domain.job_id(batch_id, number) for number in (1, 2, 3))
    for job_id in (runs, done):
        start = attempts.StartJob(job_id=job_id, worker="w1", lease_until=lifecycle.now())
        await bare_service.run(attempts.start_job, start)
    complete = attempts.FailJob(
        job_id=done, attempt=1, worker="w1", code="x", message="", retryable=False, retry_delay_s=0
    )
    await bare_service.run(attempts.fail_job, complete)

    async def end(job_id: UUID, of: UUID = batch_id) -> None:
        wanted = batches.CancelJobOfBatch(batch_id=of, job_id=job_id)
        await bare_service.run(batches.cancel_job_of_batch, wanted, by("clock"))

    with pytest.raises(InvalidState, match="not being cancelled"):
        await end(waits)
    for one in (batch_id, other):
        await bare_service.run(batches.cancel_batch, batches.CancelBatch(batch_id=one), by("bob"))
    with pytest.raises(NotFound):
        await end(waits, other)
    await end(waits)
    await end(runs)
    with pytest.raises(InvalidState, match="the job is failed"):
        await end(done)
    assert await bare_service.topics(waits) == ["submitted", "cancelled"]
    assert (await bare_service.job(runs)).cancel_requested_by == "bob"


async def test_the_process_serves_others_while_it_decides(bare_service: Service) -> None:
    """Between some hundreds of jobs everybody else has a turn."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    tx = Transaction(bare_service.commands, by(), set(), frozenset())
    await batches.submit_batch(tx, command(2_000))
    assert turns >= 2 * 2_000 // batches.JOBS_PER_TURN
    counting.cancel()
    await asyncio.wait({counting})
