"""Quotas on a real log: however many ask at once, a day never comes to more than its limit."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.conftest_log import LogDatabase
from tests.conftest_service import EMPTY_SHA256, Service, by

from sightline.adapters.ids import uuid7
from sightline.commands import assets, attempts, jobs, quotas
from sightline.commands.transact import Commands, Handler, Receipt
from sightline.commands.transaction import Loaded, Transaction
from sightline.domain.assets import Scan
from sightline.domain.jobs import Job, Provenance
from sightline.domain.quotas import Limits, QuotaExceeded, reserved_id
from sightline.projections.quotas import UsageRow, usage

AT_ONCE = 50
LIMIT = 20
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def limited(service: Service, principal: str = "ada", **limits: int) -> None:
    command = quotas.SetQuotaLimit(principal=principal, limits=Limits(**limits))
    await service.run(quotas.set_quota_limit, command, by("root"))


async def submit(service: Service, job_id: UUID | None = None, **caller: Any) -> UUID:
    command = jobs.SubmitJob(job_id=job_id or uuid7(), kind="noop", pending_max=1_000)
    return (await service.run(jobs.submit_job, command, by(**caller))).stream_id


async def used(service: Service, principal: str = "ada", day: datetime = NOON) -> tuple[int, int, int]:
    """What the day's counters say: jobs, bytes, milliseconds."""
    found = []
    async with service.services.store.pool.connection() as connection:
        for resource in ("jobs", "size_bytes", "compute_ms"):
            key = quotas.counter(principal, str(day.date()), resource)
            cursor = await connection.execute(
                "SELECT max(value) FILTER (WHERE move = m) FROM (SELECT value, move,"
                " max(move) OVER () AS m FROM guards WHERE key = %s) AS g",
                (key,),
            )
            row = await cursor.fetchone()
            found.append(int(row[0] or 0) if row else 0)
    return found[0], found[1], found[2]


async def outcomes(service: Service, handler: Handler[jobs.SubmitJob, Job]) -> list[BaseException | Receipt[Job]]:
    commands = [jobs.SubmitJob(job_id=uuid7(), kind="noop", pending_max=1_000) for _ in range(AT_ONCE)]
    other = Commands(service.services.store)  # as another process would: with a cache and turns of its own
    sides = (service.commands, other)
    return await asyncio.gather(
        *(sides[n % 2].execute(handler, command, by(now=NOON)) for n, command in enumerate(commands)),
        return_exceptions=True,
    )


def accepted(found: list[BaseException | Receipt[Job]]) -> int:
    refused = [one for one in found if isinstance(one, BaseException)]
    assert {type(one) for one in refused} <= {QuotaExceeded}
    return len(found) - len(refused)


async def test_fifty_at_once_get_exactly_the_twenty_that_there_are(bare_service: Service) -> None:
    await limited(bare_service, jobs_per_day=LIMIT)
    found = await outcomes(bare_service, jobs.submit_job)
    assert accepted(found) == LIMIT
    assert (await used(bare_service))[0] == LIMIT
    refusal = next(one for one in found if isinstance(one, QuotaExceeded))
    assert refusal.extra == {"retry_after_s": 12 * 3600}


async def test_looking_before_the_append_would_let_more_through(bare_service: Service) -> None:
    """The control: the same counters, asked before the append instead of in it; all of them look before one appends."""
    looked, all_looked = [0], asyncio.Event()

    async def careless(tx: Transaction, command: jobs.SubmitJob) -> Loaded[Job]:
        if not all_looked.is_set():  # a decision that is made again has looked
            if (await used(bare_service))[0] >= LIMIT:
                raise QuotaExceeded
            looked[0] += 1
            if looked[0] == AT_ONCE:
                all_looked.set()
            await all_looked.wait()
        counted, tx.guard = tx.guard, lambda key, delta, *_: counted(key, delta)  # type: ignore[method-assign]  # the fault
        return await jobs.submit_job(tx, command)

    await limited(bare_service, jobs_per_day=LIMIT)
    async with asyncio.timeout(120):
        assert accepted(await outcomes(bare_service, careless)) == AT_ONCE


async def test_job_and_reservation_are_one_append(bare_service: Service) -> None:
    await limited(bare_service, jobs_per_day=1)
    job_id = await submit(bare_service, now=NOON)
    [submitted], [reserved] = await bare_service.events(job_id), await bare_service.events(reserved_id(job_id))
    assert submitted.envelope.command_id == reserved.envelope.command_id
    lost = uuid7()
    with pytest.raises(QuotaExceeded):
        await submit(bare_service, lost, now=NOON)
    assert await bare_service.events(lost) == await bare_service.events(reserved_id(lost)) == []


async def test_a_request_that_is_repeated_counts_once(bare_service: Service) -> None:
    await limited(bare_service, jobs_per_day=1)
    caller, command = by(now=NOON), jobs.SubmitJob(job_id=uuid7(), kind="noop", pending_max=9)
    first = await bare_service.run(jobs.submit_job, command, caller)
    again = await bare_service.run(jobs.submit_job, command, caller)
    assert (again.repeat, again.position) == (True, first.position)
    assert (await used(bare_service))[0] == 1


async def test_whoever_has_no_limits_leaves_no_trace(bare_service: Service, log_database: LogDatabase) -> None:
    await limited(bare_service, principal="bob", jobs_per_day=1)
    for _ in range(3):
        job_id = await submit(bare_service, now=NOON)
        assert await bare_service.events(reserved_id(job_id)) == []
    assert await used(bare_service) == (0, 0, 0)
    await limited(bare_service, jobs_per_day=0)
    with pytest.raises(QuotaExceeded):
        await submit(bare_service, now=NOON)
    await limited(bare_service)
    await submit(bare_service, now=NOON)


async def test_limits_that_another_process_sets_hold_from_the_next_request_on(bare_service: Service) -> None:
    await submit(bare_service, now=NOON)
    other = Commands(bare_service.services.store)
    command = quotas.SetQuotaLimit(principal="ada", limits=Limits(jobs_per_day=0))
    await other.execute(quotas.set_quota_limit, command, by("root"))
    with pytest.raises(QuotaExceeded):
        await submit(bare_service, now=NOON)


async def test_another_day_begins_with_nothing_used(bare_service: Service) -> None:
    await limited(bare_service, jobs_per_day=1)
    for day in range(3):
        await submit(bare_service, now=NOON + timedelta(days=day))
        with pytest.raises(QuotaExceeded):
            await submit(bare_service, now=NOON + timedelta(days=day))


async def test_a_job_that_never_began_is_given_back(bare_service: Service) -> None:
    await limited(bare_service, jobs_per_day=1)
    job_id = await submit(bare_service, now=NOON)
    await bare_service.run(jobs.cancel_job, jobs.CancelJob(job_id=job_id), by(now=NOON))
    assert await used(bare_service) == (0, 0, 0)
    await bare_service.run(jobs.delete_job, jobs.DeleteJob(job_id=job_id), by(now=NOON))
    assert await used(bare_service) == (0, 0, 0), "given back once"
    await submit(bare_service, now=NOON)


async def work(service: Service, job_id: UUID, *, seconds: float, began: datetime = NOON) -> None:
    start = attempts.StartJob(job_id=job_id, worker="w", lease_until=began + timedelta(seconds=60))
    await service.run(attempts.start_job, start, by("w", now=began))
    done = attempts.CompleteJob(
        job_id=job_id, attempt=1, worker="w", outputs=(), manifest={}, timings={}, receipt=Provenance()
    )
    await service.run(attempts.complete_job, done, by("w", now=began + timedelta(seconds=seconds)))


async def test_seconds_are_charged_when_an_attempt_ends_and_then_refuse(bare_service: Service) -> None:
    await limited(bare_service, compute_s_per_day=10)
    first, second = [await submit(bare_service, now=NOON) for _ in range(2)]
    await work(bare_service, first, seconds=9.5)
    third = await submit(bare_service, now=NOON)
    await work(bare_service, second, seconds=2)
    assert await used(bare_service) == (3, 0, 11_503)
    with pytest.raises(QuotaExceeded, match="seconds of computing"):
        await submit(bare_service, now=NOON)
    await work(bare_service, third, seconds=1)  # What was admitted runs to its end.
    await submit(bare_service, now=NOON + timedelta(days=1))


async def test_an_attempt_that_fails_or_is_deleted_is_charged_too(bare_service: Service) -> None:
    await limited(bare_service, compute_s_per_day=1000)
    job_id = await submit(bare_service, now=NOON)
    start = attempts.StartJob(job_id=job_id, worker="w", lease_until=NOON)
    await bare_service.run(attempts.start_job, start, by("w", now=NOON))
    failed = attempts.FailJob(
        job_id=job_id, attempt=1, worker="w", code="crashed", message="", retryable=True, retry_delay_s=0
    )
    later = NOON + timedelta(seconds=3)
    await bare_service.run(attempts.fail_job, failed, by("w", now=later))
    await bare_service.run(attempts.start_job, start, by("w", now=later))
    await bare_service.run(jobs.delete_job, jobs.DeleteJob(job_id=job_id), by(now=later + timedelta(seconds=4)))
    assert (await used(bare_service))[2] == 7_001


async def test_bytes_are_counted_as_announced(bare_service: Service) -> None:
    await limited(bare_service, bytes_per_day=100)
    announce = {"filename": "a.png", "content_type": "image/png", "purpose": "image"}
    first = assets.RequestUpload(asset_id=uuid7(), size_bytes=60, **announce)  # type: ignore[arg-type]  # texts
    await bare_service.run(assets.request_upload, first, by(now=NOON))
    scan = Scan(engine="test", width_px=1, height_px=1)
    whole = assets.RegisterAsset(
        asset_id=uuid7(),
        found_content_type="image/png",
        size_bytes=41,
        sha256=EMPTY_SHA256,
        scan=scan,
        **announce,  # type: ignore[arg-type]  # texts
    )
    with pytest.raises(QuotaExceeded):
        await bare_service.run(assets.register_asset, whole, by(now=NOON))
    assert (await used(bare_service))[1] == 60


async def test_what_was_used_is_what_the_counters_say(service: Service) -> None:
    await limited(service, jobs_per_day=5, compute_s_per_day=60)
    ids = [await submit(service, now=NOON) for _ in range(3)]
    await work(service, ids[0], seconds=1.25)
    receipt = await service.run(jobs.cancel_job, jobs.CancelJob(job_id=ids[1]), by(now=NOON))
    await service.reads.wait_for(receipt.position, timeout_s=10)
    page = await usage(service.reads, day=NOON.date())
    assert page.rows == [UsageRow("ada", 5, None, 60, 1, 2, 0, 1_252)]
    assert await used(service) == (2, 0, 1_252)


async def test_counters_of_days_gone_by_are_removed(bare_service: Service) -> None:
    await limited(bare_service, jobs_per_day=5)
    await submit(bare_service, now=NOON)
    await submit(bare_service, now=NOON + timedelta(days=1))
    async with bare_service.services.store.pool.connection() as connection:
        await connection.execute("SELECT prune_quota_counters(%s)", ((NOON + timedelta(days=1)).date(),))
        cursor = await connection.execute("SELECT DISTINCT split_part(key, ':', 2) FROM guards WHERE key ~ '^quota:'")
        assert await cursor.fetchall() == [("2026-03-02",)]
        cursor = await connection.execute("SELECT count(*) FROM guards WHERE key ~ '^jobs_pending'")
        assert await cursor.fetchone() != (0,)
