"""Queues on a real log: nothing starts after a pause, and no more than may, however many ask at once."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.conftest_service import Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import attempts, jobs, queues
from sightline.commands.attempts import StartJob
from sightline.commands.transact import Commands, Receipt
from sightline.commands.transaction import Transaction
from sightline.domain import queues as domain
from sightline.domain.jobs import Job, Provenance
from sightline.domain.kernel import InvalidState, NotFound, QueueFull
from sightline.domain.kinds import UnknownKind
from sightline.domain.queues import QueueIsBusy, QueueIsPaused, queue_id

AT_ONCE, LIMIT = 40, 7
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def start(job_id: UUID, worker: str = "w1") -> StartJob:
    return StartJob(job_id=job_id, worker=worker, lease_until=NOON)


async def started(service: Service, job_id: UUID, **caller: Any) -> Job:
    return (await service.run(attempts.start_job, start(job_id), by("w1", **caller))).state


async def pause(service: Service) -> None:
    await service.run(queues.pause_queue, queues.PauseQueue(kind="noop", reason="disk"), by("root"))


async def limit(service: Service, running: int | None = None, starts: int | None = None) -> None:
    command = queues.SetQueueLimits(kind="noop", running_max=running, starts_per_minute_max=starts)
    await service.run(queues.set_queue_limits, command, by("root"))


async def counted(service: Service, key: str) -> int:
    async with service.services.store.pool.connection() as connection:
        cursor = await connection.execute("SELECT value FROM guards WHERE key = %s ORDER BY move DESC LIMIT 1", (key,))
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def running(service: Service) -> int:
    return await counted(service, queues.running_key("noop"))


async def all_at_once(service: Service, **caller: Any) -> list[BaseException | Receipt[Job]]:
    """Starts of AT_ONCE jobs, from two processes' worth of commands."""
    ids = [await service.submit() for _ in range(AT_ONCE)]
    sides = (service.commands, Commands(service.services.store))
    return await asyncio.gather(
        *(sides[n % 2].execute(attempts.start_job, start(one), by("w1", **caller)) for n, one in enumerate(ids)),
        return_exceptions=True,
    )


def refused(found: list[BaseException | Receipt[Job]]) -> list[BaseException]:
    return [one for one in found if isinstance(one, BaseException)]


async def end(service: Service, job_id: UUID, how: str) -> None:
    said = {"job_id": job_id, "attempt": 1, "worker": "w1"}
    if how == "completed":
        done = attempts.CompleteJob(**said, outputs=(), manifest={}, timings={}, receipt=Provenance())  # type: ignore[arg-type]  # ids and texts
        await service.run(attempts.complete_job, done)
    elif how == "deleted":
        await service.run(jobs.delete_job, jobs.DeleteJob(job_id=job_id))
    elif how == "lost":
        await service.run(attempts.lose_lease, attempts.LoseLease(**said, retry_delay_s=0))  # type: ignore[arg-type]  # ids and texts
    elif how == "cancelled":
        await service.run(jobs.cancel_job, jobs.CancelJob(job_id=job_id))
        await service.run(attempts.confirm_cancel, attempts.ConfirmCancel(**said))  # type: ignore[arg-type]  # ids and texts
    else:
        failed = attempts.FailJob(**said, code="x", message="", retryable=how == "retried", retry_delay_s=0)  # type: ignore[arg-type]  # ids and texts
        await service.run(attempts.fail_job, failed)


# Pause


async def test_nothing_starts_that_is_paused_and_what_runs_goes_on(bare_service: Service) -> None:
    first, second = await bare_service.submit(), await bare_service.submit()
    await started(bare_service, first)
    await pause(bare_service)
    with pytest.raises(QueueIsPaused, match="disk"):
        await started(bare_service, second)
    await end(bare_service, first, "completed")
    assert (await bare_service.job(first)).status == "completed"
    await bare_service.submit()
    await bare_service.run(queues.resume_queue, queues.ResumeQueue(kind="noop"))
    assert (await started(bare_service, second)).status == "processing"


async def elsewhere_after_a_pause(service: Service) -> int:
    """Starts that another process makes, which knew the queue as it was before the pause."""
    await limit(service, starts=9)
    ids = [await service.submit() for _ in range(3)]
    other = Commands(service.services.store)
    await other.execute(attempts.start_job, start(ids[0]), by("w1"))
    await pause(service)
    found = await asyncio.gather(
        *(other.execute(attempts.start_job, start(one), by("w1")) for one in ids[1:]), return_exceptions=True
    )
    assert {type(one) for one in refused(found)} <= {QueueIsPaused}
    return len(found) - len(refused(found))


async def test_a_pause_holds_for_whoever_has_not_heard_of_it(bare_service: Service) -> None:
    assert await elsewhere_after_a_pause(bare_service) == 0


async def test_a_start_that_rests_on_what_is_remembered_would_slip_through(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the queue is looked at, and the append expects nothing of it."""

    async def careless(tx: Transaction, kind: str) -> bool:
        queue, _, _ = await tx.commands.state(domain.AGGREGATE, queue_id(kind), read_tail=False)
        domain.require_open(queue)
        return False

    monkeypatch.setattr(attempts, "admit", careless)
    assert await elsewhere_after_a_pause(bare_service) == 2


async def test_a_claim_that_is_repeated_is_the_same_claim_though_its_kind_was_paused(bare_service: Service) -> None:
    job_id, caller = await bare_service.submit(), by("w1")
    first = await bare_service.run(attempts.start_job, start(job_id), caller)
    await pause(bare_service)
    again = await bare_service.run(attempts.start_job, start(job_id), caller)
    assert (again.repeat, again.position) == (True, first.position)


async def test_only_kinds_that_there_are_have_queues(bare_service: Service) -> None:
    with pytest.raises(UnknownKind):
        await bare_service.run(queues.pause_queue, queues.PauseQueue(kind="nothing"))


# Limits


async def test_of_forty_starts_at_once_exactly_seven_run(bare_service: Service) -> None:
    await limit(bare_service, running=LIMIT)
    found = await all_at_once(bare_service)
    assert len(found) - len(refused(found)) == await running(bare_service) == LIMIT
    assert {type(one) for one in refused(found)} == {QueueIsBusy}


async def test_counting_before_the_append_would_let_more_run(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same counter, asked before the append instead of in it."""
    looked, all_looked = [0], asyncio.Event()

    async def careless(tx: Transaction, kind: str) -> bool:
        if await running(bare_service) >= LIMIT:
            raise QueueIsBusy
        looked[0] += 1
        if looked[0] == AT_ONCE:
            all_looked.set()
        await all_looked.wait()
        tx.guard(queues.running_key(kind), 1)
        return True

    monkeypatch.setattr(attempts, "admit", careless)
    async with asyncio.timeout(120):
        assert refused(await all_at_once(bare_service)) == []


@pytest.mark.parametrize("how", ["completed", "failed", "retried", "cancelled", "deleted", "lost"])
async def test_every_end_of_an_attempt_makes_room(bare_service: Service, how: str) -> None:
    await limit(bare_service, running=1)
    first, second = await bare_service.submit(), await bare_service.submit()
    assert (await started(bare_service, first)).limited
    with pytest.raises(QueueIsBusy):
        await started(bare_service, second)
    await end(bare_service, first, how)
    assert await running(bare_service) == 0
    await started(bare_service, second)
    await end(bare_service, first, how) if how == "deleted" else None
    assert await running(bare_service) == 1


async def test_attempts_from_before_the_limit_are_not_counted_in_nor_out(bare_service: Service) -> None:
    first, second = await bare_service.submit(), await bare_service.submit()
    await started(bare_service, first)
    await limit(bare_service, running=1)
    await started(bare_service, second)
    await end(bare_service, first, "completed")
    assert await running(bare_service) == 1
    await limit(bare_service)
    third = await bare_service.submit()
    assert not (await started(bare_service, third)).limited
    await end(bare_service, second, "completed")
    assert await running(bare_service) == 0


async def test_so_many_start_within_a_minute_and_the_next_begins_anew(bare_service: Service) -> None:
    await limit(bare_service, starts=2)
    ids = [await bare_service.submit(not_before=None) for _ in range(5)]
    soon = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    for job_id, second in zip(ids[:2], (1, 58), strict=True):
        await started(bare_service, job_id, now=soon + timedelta(seconds=second))
    with pytest.raises(QueueIsBusy, match="within this minute"):
        await started(bare_service, ids[2], now=soon + timedelta(seconds=59))
    await started(bare_service, ids[2], now=soon + timedelta(seconds=61))
    assert await counted(bare_service, queues.starts_key("noop", soon)) == 2


async def test_counters_of_minutes_gone_by_are_removed(bare_service: Service) -> None:
    await limit(bare_service, running=5, starts=2)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    for minutes in (0, 1):
        await started(bare_service, await bare_service.submit(), now=soon + timedelta(minutes=minutes))
    async with bare_service.services.store.pool.connection() as connection:
        await connection.execute("SELECT prune_start_counters(%s)", (f"{soon + timedelta(minutes=1):%Y-%m-%dT%H:%M}",))
    assert await counted(bare_service, queues.starts_key("noop", soon)) == 0
    assert await counted(bare_service, queues.starts_key("noop", soon + timedelta(minutes=1))) == 1
    assert await running(bare_service) == 2


async def test_a_kind_of_which_nothing_was_said_leaves_no_trace(bare_service: Service) -> None:
    job_id = await bare_service.submit()
    assert not (await started(bare_service, job_id)).limited
    assert await bare_service.events(queue_id("noop")) == []
    assert await running(bare_service) == 0


# Later


async def test_a_job_for_later_starts_then_and_not_before_though_a_hint_comes_early(bare_service: Service) -> None:
    now = datetime.now(UTC)
    then = now + timedelta(hours=1)
    job_id = await bare_service.submit(not_before=then)
    await bare_service.commands.close()  # every hint is out
    assert await bare_service.services.hints.take(["noop"], count=1, timeout_s=0.01) == []
    with pytest.raises(InvalidState, match="until"):
        await started(bare_service, job_id, now=then - timedelta(microseconds=1))
    assert (await started(bare_service, job_id, now=then)).status == "processing"


async def test_a_time_that_is_over_is_none(bare_service: Service) -> None:
    job_id = await bare_service.submit(not_before=datetime.now(UTC) - timedelta(days=1))
    assert (await bare_service.job(job_id)).not_before is None


async def test_jobs_for_later_count_among_those_that_wait(bare_service: Service) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    await bare_service.submit(not_before=later, pending_max=1)
    with pytest.raises(QueueFull):
        await bare_service.submit(pending_max=1)
    assert await counted(bare_service, jobs.pending_key("noop")) == 1


async def test_a_job_is_not_found_by_anothers_id(bare_service: Service) -> None:
    with pytest.raises(NotFound):
        await started(bare_service, uuid7())
