"""The clock: what time alone brings is said once, whoever asks and however often."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
import redis
from msgspec.structs import replace
from tests.conftest_service import Service, until

from sightline.commands import attempts, jobs
from sightline.domain.jobs import Provenance
from sightline.domain.kernel import InvalidState
from sightline.projections.jobs import waiting as waiting_jobs
from sightline.workers import clock, lifecycle
from sightline.workers.clock import TIMEOUT_GRACE_S, Clock

KINDS = ["noop", "layer-photo-realistic"]


@pytest_asyncio.fixture
async def ticking(service: Service) -> AsyncIterator[Service]:
    """Two clocks at once."""
    stopping = asyncio.Event()
    async with lifecycle.open_services(service.settings) as others:
        clocks = [asyncio.create_task(clock.run(one, stopping)) for one in (service.services, others)]
        yield service
        stopping.set()
        await asyncio.gather(*clocks)


async def started(service: Service, worker: str = "w1", **submitted: object) -> UUID:
    job_id = await service.submit(**submitted)  # type: ignore[arg-type]  # fields of SubmitJob
    start = attempts.StartJob(job_id=job_id, worker=worker, lease_until=lifecycle.now())
    await service.run(attempts.start_job, start)
    return job_id


def lease(service: Service, worker: str, seconds: float) -> None:
    """A lease that somebody renewed last `seconds` before it ends, which may be in the past."""
    with psycopg.connect(service.settings.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO worker_leases VALUES (%s, now(), clock_timestamp() + make_interval(secs => %s))",
            [worker, seconds],
        )


async def test_a_session_expires_at_its_time_and_takes_its_waiting_jobs(ticking: Service) -> None:
    lease(ticking, "w1", 60)
    session_id = await ticking.session(duration_s=1)
    waiting = await ticking.submit(session_id=session_id)
    running = await started(ticking, session_id=session_id)
    elsewhere = await ticking.submit()
    expired = await ticking.until_said(session_id, "session.expired")
    created = (await ticking.events(session_id))[0]
    assert timedelta(seconds=1) <= expired.recorded_at - created.recorded_at < timedelta(seconds=4)
    await ticking.until_job(waiting, "expired")

    complete = attempts.CompleteJob(
        job_id=running, attempt=1, worker="w1", outputs=(), manifest={}, timings={}, receipt=Provenance()
    )
    assert (await ticking.run(attempts.complete_job, complete)).state.status == "completed"
    assert (await ticking.job(elsewhere)).status == "pending"
    await asyncio.sleep(clock.TICK_S * 1.5)  # long enough for both clocks to say it again, if they did
    assert await ticking.topics(session_id) == ["created", "expired"]
    assert await ticking.topics(waiting) == ["submitted", "expired"]


async def test_a_job_of_a_dead_worker_goes_to_another_attempt_until_it_is_a_dead_letter(ticking: Service) -> None:
    lease(ticking, "alive", 60)
    lease(ticking, "dead", -0.1)
    kept = await started(ticking, "alive")
    lost = await started(ticking, "dead")
    for attempt in (1, 2):
        state = await ticking.until_job(lost, "pending", attempt=attempt)
        assert (state.error_code, state.attempt) == ("lease_expired", attempt)
        assert state.not_before is not None
        delay_s = ticking.settings.job_retry_base_s * 2 ** (attempt - 1)
        retried = await ticking.until_said(lost, "job.retry_scheduled")
        assert state.not_before <= retried.recorded_at + timedelta(seconds=attempt * 3 + delay_s)

        async def start_again() -> bool:
            start = attempts.StartJob(job_id=lost, worker="dead", lease_until=lifecycle.now())
            try:
                return bool((await ticking.run(attempts.start_job, start)).events)
            except InvalidState:  # not due yet: the backoff
                return False

        await until(start_again)
    state = await ticking.until_job(lost, "failed")
    assert (state.dead_letter, state.attempt, state.error_code) == (True, 3, "lease_expired")
    assert (await ticking.job(kept)).status == "processing"
    row = await ticking.row(lost)
    assert (row.status, row.dead_letter, row.attempt) == ("failed", True, 3)
    told = await ticking.topics(lost)
    assert told == ["submitted", *["started", "retry_scheduled"] * 2, "started", "dead_lettered"]


@pytest.mark.parametrize("most", [2, 1])
async def test_jobs_that_run_for_long_hide_none_whose_worker_died_or_whose_time_is_over(
    service: Service, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """However many there are, and however few the clock looks at in a tick."""
    monkeypatch.setattr(clock, "PER_TICK_MAX", most)
    lease(service, "alive", 60)
    lease(service, "dead", -0.1)
    held = [await started(service, "alive") for _ in range(3)]
    lost, overrun = await started(service, "dead"), await started(service, "alive", timeout_s=1)
    await service.caught_up()
    timekeeper = Clock(service.services)
    await timekeeper.reap_leases(lifecycle.now())
    await service.caught_up()
    await timekeeper.time_out_jobs(lifecycle.now() + timedelta(seconds=TIMEOUT_GRACE_S + 2))
    assert (await service.job(lost)).error_code == "lease_expired"
    assert (await service.job(overrun)).error_code == "timeout"
    assert {(await service.job(one)).status for one in held} == {"processing"}


async def test_a_dead_letter_that_is_requeued_has_its_attempts_again(ticking: Service) -> None:
    job_id = await started(ticking, "nobody", attempts_max=1)
    await ticking.until_job(job_id, "failed")
    await ticking.run(jobs.requeue_job, jobs.RequeueJob(job_id=job_id))
    row = await ticking.row(job_id)
    assert (row.status, row.dead_letter, row.attempts_max) == ("pending", False, 2)


async def test_a_job_that_overran_under_a_living_worker_times_out(service: Service) -> None:
    """With a clock that is told the time, since the grace is longer than a test should be."""
    lease(service, "w1", 60)
    job_id = await started(service, timeout_s=1)
    await service.caught_up()
    timekeeper = Clock(service.services)
    await timekeeper.time_out_jobs(lifecycle.now() + timedelta(seconds=TIMEOUT_GRACE_S))
    assert (await service.job(job_id)).status == "processing"
    for _ in range(2):
        await timekeeper.time_out_jobs(lifecycle.now() + timedelta(seconds=TIMEOUT_GRACE_S + 2))
    state = await service.job(job_id)
    assert (state.status, state.error_code) == ("failed", "timeout")
    assert (await service.topics(job_id)).count("failed") == 1


async def test_a_flushed_valkey_has_every_waiting_job_again_within_seconds(ticking: Service) -> None:
    waiting = {await ticking.submit() for _ in range(5)}
    held = await started(ticking, "nobody-yet")
    lease(ticking, "nobody-yet", 60)
    await ticking.caught_up()
    with redis.Redis.from_url(ticking.settings.redis_url) as valkey:
        valkey.flushall()
    offered: set[UUID] = set()

    async def all_offered() -> bool:
        offered.update(await ticking.services.hints.take(KINDS, count=10, timeout_s=0.5))
        return offered >= waiting

    await until(all_offered)
    assert held not in offered


async def test_a_long_queue_of_one_kind_hides_no_other(service: Service) -> None:
    await service.install_models()
    asset_id = await service.asset(UUID(int=1))
    layers = [await service.submit("layer-photo-realistic", inputs=(asset_id,)) for _ in range(5)]
    noop = await service.submit()
    await service.caught_up()
    found = await waiting_jobs(service.reads, kinds=KINDS, now=lifecycle.now(), limit=2)
    assert [row.job_id for row in found if row.kind != "noop"] == layers[:2]
    assert [row.job_id for row in found if row.kind == "noop"] == [noop]


async def test_a_clock_goes_on_without_valkey(service: Service) -> None:
    given = replace(service.settings, redis_url="unix:///nowhere/valkey.sock")
    async with lifecycle.open_services(given) as deaf:
        stopping = asyncio.Event()
        ticks = asyncio.create_task(clock.run(deaf, stopping))
        session_id = await service.session(duration_s=1)
        await service.submit(session_id=session_id)
        await service.until_said(session_id, "session.expired")
        stopping.set()
        await ticks


async def test_a_job_for_later_is_offered_when_its_time_has_come(ticking: Service) -> None:
    due = lifecycle.now() + timedelta(seconds=1)
    job_id = await ticking.submit(not_before=due)

    async def offered() -> bool:
        return job_id in await ticking.services.hints.take(KINDS, count=10, timeout_s=0.5)

    await until(offered)
    assert lifecycle.now() >= due
