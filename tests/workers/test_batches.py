"""The clock about batches: ends are said once, and what was cancelled ends, thousands at a time."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql
from tests.conftest_log import LogDatabase
from tests.conftest_service import Service, by, until
from tests.projections.test_quarantine import UNDECODABLE, rewrite

from sightline.adapters.event_store.writer import StoreBusy
from sightline.adapters.ids import uuid7
from sightline.commands import attempts, jobs
from sightline.commands import batches as commands
from sightline.commands.batches import JobOfBatch
from sightline.domain import batches as domain
from sightline.domain.batches import Batch, BatchCompleted, Counts
from sightline.domain.jobs import AGGREGATE as JOB
from sightline.domain.jobs import Provenance
from sightline.projections import batches as projection
from sightline.projections.batches import Counted
from sightline.projections.projection import ReadModels
from sightline.workers import batches as duties
from sightline.workers import clock, lifecycle
from sightline.workers.batches import Batches


@pytest_asyncio.fixture
async def two(service: Service) -> AsyncIterator[tuple[Batches, Batches]]:
    """The duties of two clocks, each with a process's cache of its own."""
    async with lifecycle.open_services(service.settings) as others:
        yield Batches(service.services), Batches(others)


async def submitted(service: Service, count: int = 3, **changed: Any) -> tuple[UUID, list[UUID]]:
    given: dict[str, Any] = {"batch_id": uuid7(), "kind": "noop", "members": [JobOfBatch()] * count}
    command = commands.SubmitBatch(**(given | {"pending_max": 100_000} | changed))
    batch_id = (await service.run(commands.submit_batch, command)).stream_id
    return batch_id, [domain.job_id(batch_id, number) for number in range(1, count + 1)]


async def start(service: Service, job_id: UUID, attempt: int = 1) -> dict[str, Any]:
    lease_until = lifecycle.now() + timedelta(seconds=60)
    start = attempts.StartJob(job_id=job_id, worker="w1", lease_until=lease_until)
    await service.run(attempts.start_job, start)
    return {"job_id": job_id, "attempt": attempt, "worker": "w1"}


async def complete(service: Service, job_id: UUID, attempt: int = 1) -> None:
    held = await start(service, job_id, attempt)
    done = attempts.CompleteJob(**held, outputs=(), manifest={}, timings={}, receipt=Provenance())
    await service.run(attempts.complete_job, done)


async def fail(service: Service, job_id: UUID, *, retryable: bool) -> None:
    held = await start(service, job_id)
    failed = attempts.FailJob(**held, code="noop_failed", message="told to", retryable=retryable, retry_delay_s=0)
    await service.run(attempts.fail_job, failed)


async def tick(service: Service, *clocks: Batches) -> None:
    """Every duty of every clock, at the same time, on read models that are up to date."""
    await service.caught_up()
    await asyncio.gather(*(duty(lifecycle.now()) for clock in clocks for duty in clock.duties))
    await service.caught_up()


async def batch(service: Service, batch_id: UUID) -> Batch:
    return (await service.commands.state(domain.AGGREGATE, batch_id, read_tail=True))[0]


async def counted(service: Service, batch_id: UUID) -> Counted:
    await service.caught_up()
    found = await projection.one(service.reads, batch_id)
    assert found is not None
    return found


async def test_the_end_of_a_batch_is_said_once_whoever_says_it(service: Service, two: tuple[Batches, Batches]) -> None:
    batch_id, [first, second, third] = await submitted(service, attempts_max=1)
    await complete(service, first)
    await fail(service, second, retryable=False)
    await tick(service, *two)
    assert (await batch(service, batch_id)).outcome is None
    await fail(service, third, retryable=True)
    for _ in range(2):
        await tick(service, *two)
    outcome = (await batch(service, batch_id)).outcome
    assert outcome is not None
    said = BatchCompleted(at=outcome.at, total=3, completed=1, failed=2, cancelled=0, dead_letters=1)
    assert outcome == said
    assert await service.topics(batch_id) == ["submitted", "completed"]
    recorded = (await service.events(batch_id))[-1]
    assert (recorded.envelope.actor, recorded.envelope.correlation_id) == ("clock", str(batch_id))
    found = await counted(service, batch_id)
    assert found.batch.outcome == {name: getattr(found.counts, name) for name in Counts.__struct_fields__}


async def test_without_ids_of_their_own_two_clocks_would_both_be_heard(
    service: Service, two: tuple[Batches, Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: it takes the command's id and the decision's silence to be off."""
    batch_id, [only] = await submitted(service, 1)
    await complete(service, only)
    said = BatchCompleted(at=lifecycle.now(), total=1, completed=1, failed=0, cancelled=0)
    monkeypatch.setattr(domain, "complete", lambda _, **__: [said])
    monkeypatch.setattr(duties, "derived_id", lambda *_: uuid7())
    await tick(service, *two)
    assert (await service.topics(batch_id)).count("completed") == 2


async def test_jobs_of_a_cancelled_batch_end(
    service: Service, two: tuple[Batches, Batches], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "CANCELLED_PER_TICK_MAX", 150)
    monkeypatch.setattr(duties, "AT_ONCE", 64)
    batch_id, ids = await submitted(service, 200)
    other, _ = await submitted(service)
    await complete(service, ids[0])
    running = await start(service, ids[1])
    await fail(service, ids[2], retryable=True)  # and waits again
    await service.run(commands.cancel_batch, commands.CancelBatch(batch_id=batch_id), by("bob"))
    await tick(service, *two)
    assert (await counted(service, batch_id)).counts.cancelled in range(149, 151), "so many at a time"
    await tick(service, *two)
    found = await counted(service, batch_id)
    assert found.counts == Counts(processing=1, completed=1, cancelled=198)
    assert (await service.row(ids[1])).cancel_requested
    assert (await batch(service, batch_id)).outcome is None
    await service.run(attempts.confirm_cancel, attempts.ConfirmCancel(**running))
    await tick(service, *two)
    outcome = (await batch(service, batch_id)).outcome
    assert outcome is not None
    assert (outcome.completed, outcome.cancelled) == (1, 199)
    assert await service.topics(ids[1]) == ["submitted", "started", "cancel_requested", "cancelled"]
    assert await service.topics(ids[2]) == ["submitted", "started", "retry_scheduled", "cancelled"]
    assert {(await service.job(one)).status for one in ids[3:]} == {"cancelled"}
    assert (await counted(service, other)).counts == Counts(pending=3)
    by_whom = [one for one in await service.events(ids[5]) if one.topic == "job.cancelled"]
    assert [one.state for one in by_whom if b'"by":"bob"' in one.state] == [by_whom[0].state]


async def test_a_dead_letter_that_is_requeued_runs_and_the_end_stays_said(
    service: Service, two: tuple[Batches, Batches]
) -> None:
    """Also of a batch that was cancelled: whoever requeues it wants it after all."""
    batch_id, [poison, waits] = await submitted(service, 2, attempts_max=1)
    await fail(service, poison, retryable=True)
    await service.run(commands.cancel_batch, commands.CancelBatch(batch_id=batch_id))
    await tick(service, *two)
    await tick(service, *two)
    assert (await counted(service, batch_id)).counts == Counts(failed=1, dead_letters=1, cancelled=1)
    await service.run(jobs.requeue_job, jobs.RequeueJob(job_id=poison))
    await tick(service, *two)
    assert (await counted(service, batch_id)).counts == Counts(pending=1, cancelled=1)
    await complete(service, poison, attempt=2)
    await tick(service, *two)
    assert (await counted(service, batch_id)).counts == Counts(completed=1, cancelled=1)
    assert await service.topics(batch_id) == ["submitted", "cancelled", "completed"]
    assert await service.topics(waits) == ["submitted", "cancelled"]


async def test_counts_are_exact_at_the_position_that_comes_with_them(service: Service) -> None:
    """Asked all the time while a projector works: at each position the counts are those of a replay up to there."""
    batch_id, ids = await submitted(service, 40)

    async def work() -> None:
        for number, job_id in enumerate(ids):
            await (complete(service, job_id) if number % 3 else fail(service, job_id, retryable=False))

    seen: dict[int, Counts] = {}
    working = asyncio.create_task(work())
    while not working.done():
        if (found := await projection.one(service.reads, batch_id)) is not None:
            seen[found.position] = found.counts
    await working
    last = await counted(service, batch_id)
    seen[last.position] = last.counts
    assert len(seen) > 3
    for position, counts in seen.items():
        assert counts == await replayed(service, ids, position), position
        then = await projection.counts_at(service.reads, batch_id, position)
        assert then is not None
        assert then.counts == counts, position
    assert last.counts == Counts(completed=26, failed=14)


async def test_a_position_that_was_read_before_is_another(service: Service) -> None:
    """The control: read in a statement of its own, as lists of jobs have it, it is older than the rows may be."""
    batch_id, [only] = await submitted(service, 1)
    await service.caught_up()

    class Late(ReadModels):
        """The job ends between the two statements."""

        async def _reached(self, connection: psycopg.AsyncConnection) -> int:
            position = await super()._reached(connection)
            await complete(service, only)
            await service.caught_up()
            return position

    page = await Late(service.services.store.pool, service.reads._tail).fetch(
        Counted, projection.ONE, {"batch_id": batch_id}
    )
    assert page.rows[0].counts == Counts(completed=1)
    assert page.rows[0].position == page.position + 2


async def replayed(service: Service, ids: list[UUID], position: int) -> Counts:
    """How many jobs are in each state, by the log alone."""
    found: dict[str, int] = {}
    for job_id in ids:
        state = JOB.initial
        for recorded in await service.services.store.reader.stream(job_id, up_to_position=position):
            state = JOB.evolve(state, service.services.store.mapper.event(recorded))
        if state.status is not None:
            found[state.status] = found.get(state.status, 0) + 1
    return Counts(**found)


async def test_a_batch_of_which_half_is_projected_is_not_over(service: Service) -> None:
    """The read models may stop in the middle of an append: what ended by then is not all."""
    batch_id, [first, *_] = await submitted(service, 3)
    await complete(service, first)
    await service.caught_up()
    async with service.services.store.pool.connection() as connection:
        await connection.execute("DELETE FROM jobs_v1 WHERE job_id <> %s", (first,))
    assert await projection.over(service.reads, limit=10) == []
    control = sql.SQL(str(projection.OVER.as_string(None)).replace("AND c.ended = b.total", ""))
    found = await service.reads.fetch(Counted, control, {"limit": 10})
    assert [one.batch.batch_id for one in found.rows] == [batch_id], "the control"


async def poisoned(service: Service, database: LogDatabase) -> tuple[UUID, list[UUID]]:
    """A cancelled batch of three, of which one job's stream cannot be read by whoever has not read it yet."""
    batch_id, ids = await submitted(service, 3)
    await service.run(commands.cancel_batch, commands.CancelBatch(batch_id=batch_id))
    await service.caught_up()
    [first] = await service.events(ids[0])
    rewrite(database, UNDECODABLE, first.id)
    return batch_id, ids


async def test_one_job_that_cannot_be_read_keeps_neither_its_batch_nor_the_clock(
    service: Service, log_database: LogDatabase
) -> None:
    _, [unreadable, *others] = await poisoned(service, log_database)
    session_id = await service.session(duration_s=1)
    stopping = asyncio.Event()
    async with lifecycle.open_services(service.settings) as elsewhere:
        ticking = asyncio.create_task(clock.run(elsewhere, stopping))
        for job_id in others:
            await service.until_job(job_id, "cancelled")
        await service.until_said(session_id, "session.expired")  # the round after, and its other duties
        assert not ticking.done()
        stopping.set()
        await ticking
    assert await service.topics(unreadable) == ["submitted"]


@pytest.mark.parametrize("broken", ["the duty", "the subject"])
async def test_what_nobody_thought_of_does_not_end_the_clock(
    service: Service, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A fault of our own, in a duty or in one thing that it says: the duties behind it have their turn."""

    async def fail(*_: Any) -> Any:
        raise AssertionError("a fault")

    if broken == "the duty":
        monkeypatch.setattr(projection, "cancelled_jobs", fail)
    else:
        fail.__name__ = commands.cancel_job_of_batch.__name__
        monkeypatch.setattr(commands, "cancel_job_of_batch", fail)
        batch_id, _ = await submitted(service)
        await service.run(commands.cancel_batch, commands.CancelBatch(batch_id=batch_id))
    over, [only] = await submitted(service, 1)
    await complete(service, only)
    stopping = asyncio.Event()
    ticking = asyncio.create_task(clock.run(service.services, stopping))
    await service.until_said(over, "batch.completed")
    stopping.set()
    await ticking


async def test_a_store_that_takes_nothing_is_one_error_of_the_duty(service: Service) -> None:
    """Not one for each job, and not "it was done": the clock says aloud what it could not say."""
    batch_id, ids = await submitted(service)
    await service.run(commands.cancel_batch, commands.CancelBatch(batch_id=batch_id))
    await service.caught_up()
    async with lifecycle.open_services(service.settings) as elsewhere:
        await elsewhere.store.writer.close()
        with pytest.raises(StoreBusy):
            await Batches(elsewhere).cancel_jobs(lifecycle.now())
    assert {(await service.job(one)).status for one in ids} == {"pending"}


async def test_a_clock_says_it_by_itself(service: Service) -> None:
    stopping = asyncio.Event()
    ticking = asyncio.create_task(clock.run(service.services, stopping))
    batch_id, [only] = await submitted(service, 1)
    await complete(service, only)

    async def over() -> BatchCompleted | None:
        return (await batch(service, batch_id)).outcome

    assert (await until(over)).completed == 1
    stopping.set()
    await ticking
