"""Workers as processes: whatever is killed, stopped or cut off, each job is done once and late writers are refused."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio
import redis
from tests.conftest_log import database
from tests.conftest_parts import is_running
from tests.conftest_service import LEASE_S, Processes, Service, ended, open_service, short_lived, until

from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.settings import Settings
from sightline.commands import jobs
from sightline.domain.jobs import Job

RESUMED_S = LEASE_S + 2 + 3  # a dead worker's job resumes within its lease and 2 s; the rest is for a busy machine


Worker = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def shared_settings(
    postgres_server: PostgresServer,
    log_template: str,
    valkey_server: ValkeyServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Settings]:
    with database(postgres_server, "shared_worker", log_template) as made:
        yield short_lived(
            made.dsn, valkey_server.url.replace("db=0", "db=1"), tmp_path_factory.mktemp("shared") / "service"
        )


@pytest.fixture(scope="module")
def shared_worker(shared_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker, and a clock, for all tests that leave it as it was."""
    processes = Processes(shared_settings, tmp_path_factory.mktemp("logs"))
    processes.start("tick")
    yield processes.start("work")
    processes.stop()


@pytest_asyncio.fixture
async def shared(shared_settings: Settings, shared_worker: Worker) -> AsyncIterator[Service]:
    async with open_service(shared_settings) as service:
        await workers_up(service, 1)
        yield service


def once(topics: list[str]) -> bool:
    return topics.count("completed") == 1


def runners(pid: int) -> list[int]:
    """The children of a worker."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def running(service: Service, job_id: UUID) -> Job:
    """Processing, and its runner is asleep in it."""
    await service.until_said(job_id, "job.progressed")
    return await service.until_job(job_id, "processing")


async def live(service: Service) -> set[str]:
    from sightline.projections.jobs import LIVE_WORKERS

    async with service.services.store.pool.connection() as connection:
        return {worker for (worker,) in await (await connection.execute(LIVE_WORKERS)).fetchall()}


async def workers_up(service: Service, count: int) -> None:
    async def found() -> bool:
        return len(await live(service)) >= count

    await until(found)


async def test_kill_9_during_a_job_and_another_attempt_completes_it_once(
    service: Service, processes: Processes
) -> None:
    both = [processes.start("work") for _ in range(2)]
    processes.start("tick")
    await workers_up(service, 2)
    job_id = await service.submit(params={"sleep_s": 1.0})
    before = await running(service, job_id)
    [holder] = [one for one in both if runners(one.pid)]  # the other one had no job yet, and so no runner
    [runner] = runners(holder.pid)
    holder.kill()
    killed_at = asyncio.get_running_loop().time()
    started = await service.until_job(job_id, "processing", "completed", attempt=2, timeout_s=30)
    resumed_s = asyncio.get_running_loop().time() - killed_at
    assert started.worker != before.worker
    assert resumed_s < RESUMED_S
    await service.until_job(job_id, "completed")
    assert await service.topics(job_id) == ["submitted", "started", "retry_scheduled", "started", "completed"]
    assert not is_running(runner), "the runner went with its worker"


async def test_a_worker_stopped_for_longer_than_its_lease_is_refused_when_it_goes_on(
    service: Service, processes: Processes
) -> None:
    """Its runner goes on and brings a result; the stopped worker then wakes up with it in its hands."""
    await service.install_models()
    asset_id = await service.picture(service.settings.data_dir)
    first = processes.start("work")
    processes.start("tick")
    await workers_up(service, 1)
    warm = await service.submit()  # the runner is up, so that the job below is begun and done while its worker stands
    await service.until_job(warm, "completed")
    job_id = await service.submit(params={"sleep_s": 1.5})
    before = await running(service, job_id)
    os.kill(first.pid, signal.SIGSTOP)
    processes.start("work")
    state = await service.until_job(job_id, "completed", attempt=2, timeout_s=30)
    assert state.worker != before.worker
    os.kill(first.pid, signal.SIGCONT)
    refused = await service.until_said(job_id, "job.late_result_rejected")
    assert refused.envelope.actor == before.worker
    assert once(await service.topics(job_id))
    assert (await service.job(job_id)).result == state.result
    row = await service.row(job_id)
    assert (row.status, row.late_results) == ("completed", 1)

    again = await service.submit("layer-photo-realistic", inputs=(asset_id,))
    await service.until_job(again, "completed")
    assert first.poll() is None, "and it works on"


async def test_a_running_job_is_cancelled_and_its_worker_takes_the_next(shared: Service, shared_worker: Worker) -> None:
    job_id, next_id = await shared.submit(params={"sleep_s": 600}), await shared.submit()
    await running(shared, job_id)
    [runner] = runners(shared_worker.pid)
    await shared.run(jobs.cancel_job, jobs.CancelJob(job_id=job_id))
    await shared.until_job(job_id, "cancelled", timeout_s=5)
    await shared.until_job(next_id, "completed")
    assert not is_running(runner)
    assert await shared.topics(job_id) == ["submitted", "started", "cancel_requested", "cancelled"]


async def test_a_dead_runner_costs_an_attempt_never_the_worker(shared: Service, shared_worker: Worker) -> None:
    job_id = await shared.submit(params={"sleep_s": 600})
    for attempt in (1, 2, 3):
        await shared.until_job(job_id, "processing", attempt=attempt)

        async def child() -> list[int]:
            return runners(shared_worker.pid)

        [runner] = await until(child)
        os.kill(runner, signal.SIGKILL)
        if attempt < 3:
            await shared.until_job(job_id, "processing", attempt=attempt + 1)
    state = await shared.until_job(job_id, "failed")
    assert (state.dead_letter, state.error_code, state.attempt) == (True, "runner_died", 3)
    assert shared_worker.poll() is None


async def test_a_failing_job_is_retried_with_growing_pauses_and_then_a_dead_letter(
    shared: Service, shared_worker: Worker
) -> None:
    job_id = await shared.submit(params={"fail": True})
    state = await shared.until_job(job_id, "failed")
    assert (state.dead_letter, state.error_code) == (True, "noop_failed")
    decode = shared.services.store.mapper.event
    waits = [decode(one) for one in await shared.events(job_id) if one.topic == "job.retry_scheduled"]
    base_s = shared.settings.job_retry_base_s
    for attempt, retry in enumerate(waits, 1):
        assert base_s * 2 ** (attempt - 1) / 2 <= (retry.not_before - retry.at).total_seconds() <= base_s * 2**attempt
    assert len(waits) == 2


async def test_a_job_that_overruns_fails_with_timeout_and_is_not_retried(
    shared: Service, shared_worker: Worker
) -> None:
    job_id = await shared.submit(params={"sleep_s": 600}, timeout_s=1)
    state = await shared.until_job(job_id, "failed")
    assert (state.error_code, state.dead_letter, state.attempt) == ("timeout", False, 1)


async def test_jobs_are_done_without_valkey(service: Service, processes: Processes) -> None:
    processes.start("work", redis_url="unix:///nowhere/valkey.sock")
    ids = [await service.submit() for _ in range(3)]
    for job_id in ids:
        await service.until_job(job_id, "completed")
    assert all([once(await service.topics(job_id)) for job_id in ids])


async def test_flushing_valkey_while_jobs_wait_loses_none(service: Service, processes: Processes) -> None:
    processes.start("tick")
    ids = [await service.submit() for _ in range(20)]
    processes.start("work")
    with redis.Redis.from_url(service.settings.redis_url) as valkey:
        valkey.flushall()
        await service.until_job(ids[0], "completed")
        valkey.flushall()
    for job_id in ids:
        await service.until_job(job_id, "completed")
        assert once(await service.topics(job_id))


@pytest.mark.parametrize("outage_s", [1.0, LEASE_S + 1.0])
async def test_a_database_that_goes_away_in_the_middle_is_waited_for(
    service: Service, processes: Processes, outage_s: float
) -> None:
    """Every connection is cut, and none is let in, while the job ends; for longer than the lease, too."""
    worker = processes.start("work")
    processes.start("tick")
    await workers_up(service, 1)
    job_id = await service.submit(params={"sleep_s": 0.5})
    await running(service, job_id)
    name = service.settings.database_url.partition("dbname=")[2].split()[0]
    superuser = psycopg.connect(_elsewhere(service), autocommit=True)
    with superuser:
        superuser.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        await asyncio.sleep(outage_s)
        superuser.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    superuser.close()
    state = await service.until_job(job_id, "completed", timeout_s=30)
    assert once(await service.topics(job_id))
    assert state.attempt == 1 or outage_s > LEASE_S
    next_id = await service.submit()
    await service.until_job(next_id, "completed")
    assert worker.poll() is None


def _elsewhere(service: Service) -> str:
    """The same server, another database, as the superuser."""
    from psycopg.conninfo import make_conninfo

    from sightline.adapters.embedded.postgres import SUPERUSER

    return make_conninfo(service.settings.database_url, dbname="postgres", user=SUPERUSER)


@pytest.mark.parametrize(("sleep_s", "attempt"), [(1.5, 1), (600, 2)])
async def test_sigterm_drains(service: Service, processes: Processes, sleep_s: float, attempt: int) -> None:
    """A job shorter than the grace completes; a longer one waits again at once, and another worker takes it."""
    first = processes.start("work")
    await workers_up(service, 1)
    job_id = await service.submit(params={"sleep_s": sleep_s})
    before = await running(service, job_id)
    first.send_signal(signal.SIGTERM)
    if attempt == 1:
        assert await ended(first) == 0
        assert (await service.job(job_id)).status == "completed"
        assert await live(service) == set()
        return
    processes.start("work")
    state = await service.until_job(job_id, "processing", attempt=2, timeout_s=30)
    assert state.worker != before.worker
    assert await ended(first) == 0
    assert "worker_stopped" in (await _said(service, job_id))


async def _said(service: Service, job_id: UUID) -> str:
    return " ".join(one.state.decode() for one in await service.events(job_id))


async def test_many_jobs_and_workers_that_stand_still_for_a_while(service: Service, processes: Processes) -> None:
    """Two workers, both stopped for longer than their lease while 40 jobs go by: each is completed exactly once."""
    both = [processes.start("work", worker_slots=2) for _ in range(2)]
    processes.start("tick")
    await workers_up(service, 2)
    ids = [await service.submit(params={"sleep_s": 0.05}, attempts_max=10) for _ in range(40)]
    await asyncio.gather(*(_stop_for(worker, LEASE_S + 0.5) for worker in both))
    for job_id in ids:
        await service.until_job(job_id, "completed", timeout_s=40)
        assert once(await service.topics(job_id))
    assert [worker.poll() for worker in both] == [None, None]


async def _stop_for(worker: Worker, seconds: float) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.kill(worker.pid, signal.SIGCONT)
