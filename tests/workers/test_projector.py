"""The projector process: damage is told, and what comes before it is read all the same."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
import structlog
from tests.conftest_log import LogDatabase
from tests.conftest_service import Processes, Service, ended, until

from sightline.adapters import metrics, postgres
from sightline.adapters.event_store.codec import EventMapper
from sightline.adapters.event_store.reader import LogHole
from sightline.domain.events import EVENTS
from sightline.projections import catalogue
from sightline.projections.projection import checkpoint
from sightline.workers import projector
from sightline.workers.projector import step


@pytest.fixture
def told() -> Iterator[list[structlog.types.EventDict]]:
    with structlog.testing.capture_logs() as lines:
        yield lines


async def test_a_hole_in_the_log_is_never_read_past(bare_service: Service, log_database: LogDatabase) -> None:
    for _ in range(3):
        await bare_service.submit()
    with log_database.connect(superuser=True) as superuser:
        superuser.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        superuser.execute("DELETE FROM events WHERE position = 2")
    async with await postgres.connect(log_database.dsn) as connection:
        with pytest.raises(LogHole, match="position 2"):
            await step(catalogue.projector(EventMapper(EVENTS)), connection)
        assert await checkpoint(connection) == 0
    with pytest.raises(LogHole):  # the process ends with it, which is the alarm
        await asyncio.wait_for(projector.run(bare_service.settings, asyncio.Event()), 10)


async def test_a_stream_that_cannot_be_projected_is_set_aside_and_all_others_go_on(
    bare_service: Service, log_database: LogDatabase, told: list[structlog.types.EventDict]
) -> None:
    jobs = [await bare_service.submit() for _ in range(20)]
    poison(log_database, position=14)
    stopping = asyncio.Event()
    running = asyncio.create_task(projector.run(bare_service.settings, stopping))

    async def read_to() -> bool:
        return await bare_service.reads.position() == 20

    assert await until(read_to)
    [line] = [line for line in told if line["event"] == "stream_quarantined"]
    assert (line["position"], line["stream"], line["log_level"]) == (14, str(jobs[13]), "error")
    assert metrics.PROJECTION_QUARANTINED._value.get() == 1
    with log_database.connect() as connection:
        found = {job_id for (job_id,) in connection.execute("SELECT job_id FROM jobs")}
    assert found == {*jobs} - {jobs[13]}
    stopping.set()
    await running


def poison(database: LogDatabase, position: int) -> None:
    _write(database, position, "jsonb_set(data::jsonb, '{kind}', '7')")


def _write(database: LogDatabase, position: int, data: str) -> None:
    with database.connect(superuser=True) as superuser:
        superuser.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        superuser.execute(f"UPDATE events SET data = {data} WHERE position = {position}")


async def test_the_projector_process_survives_its_connection(service_processes: tuple[Service, Processes]) -> None:
    service, processes = service_processes
    process = processes.start("project")
    await until_read(service, await service.submit())
    with psycopg.connect(service.settings.database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await until_read(service, await service.submit())
    assert process.poll() is None
    process.terminate()
    assert await ended(process) == 0


@pytest.fixture
def service_processes(bare_service: Service, processes: Processes) -> tuple[Service, Processes]:
    return bare_service, processes


async def until_read(service: Service, job_id: UUID) -> None:
    from sightline.projections.jobs import JOBS

    async def found() -> bool:
        row, _ = await service.reads.get(JOBS, job_id)
        return row is not None

    await until(found)
