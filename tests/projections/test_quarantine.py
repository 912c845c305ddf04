"""Poison: one stream is set aside, by the fold or by the database; all others go on; and it comes back."""

import asyncio
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from tests.conftest_log import LogDatabase
from tests.conftest_service import Service
from tests.projections.test_projection import project_all

from sightline.adapters import metrics, postgres
from sightline.adapters.event_store.codec import EventMapper
from sightline.adapters.event_store.reader import read_page
from sightline.adapters.ids import uuid7
from sightline.commands import jobs as job_commands
from sightline.domain.events import EVENTS
from sightline.domain.kernel import NotFound
from sightline.projections import catalogue, quarantine
from sightline.projections.projection import checkpoint
from sightline.projections.rebuild import CannotFold, rebuild
from sightline.projections.resume import StillPoisoned, resume
from sightline.projections.verify import verify
from sightline.workers import projector

MAPPER = EventMapper(EVENTS)

# What may be wrong with an event: its payload, its place in the stream, or what it makes of the row.
UNDECODABLE: LiteralString = "data = jsonb_set(data::jsonb, '{kind}', '7')"
UNFOLDABLE: LiteralString = "topic = 'job.started', data = (SELECT data FROM started)"
REFUSED: LiteralString = "data = jsonb_set(data::jsonb, '{priority}', '99')"
STARTED: LiteralString = (
    'WITH started (data) AS (SELECT \'{"type":"job.started","at":"2026-01-01T00:00:00Z","attempt":1,'
    '"worker":"w","lease_until":"2026-01-01T00:00:00Z"}\'::json) '
)


def rewrite(database: LogDatabase, change: LiteralString, position: int) -> None:
    """Damage one event, as a version with a fault would have written it."""
    with database.connect(superuser=True) as superuser:
        superuser.execute("ALTER TABLE events DISABLE TRIGGER ALL")
        superuser.execute(STARTED + "UPDATE events SET " + change + " WHERE position = %s", (position,))


def rows(database: LogDatabase, query: LiteralString) -> list[tuple[object, ...]]:
    with database.connect() as connection:
        return connection.execute(query).fetchall()


async def project(service: Service) -> None:
    await project_log(service.settings.database_url)


async def project_log(dsn: str) -> None:
    """Everything that is in the log, as the process does it."""
    async with await postgres.connect(dsn) as connection:
        made = catalogue.projector(MAPPER)
        while await projector.step(made, connection):
            pass


async def pair(service: Service) -> UUID:
    job_id = await service.submit()
    await service.run(job_commands.cancel_job, job_commands.CancelJob(job_id=job_id))
    return job_id


@pytest.mark.parametrize("poison", [UNDECODABLE, UNFOLDABLE, REFUSED], ids=["undecodable", "unfoldable", "refused"])
async def test_only_its_own_stream_is_set_aside(
    bare_service: Service, log_database: LogDatabase, poison: LiteralString
) -> None:
    jobs = [await pair(bare_service) for _ in range(10)]
    before = rows(log_database, "SELECT data::text, topic FROM events WHERE position = 9")
    rewrite(log_database, poison, 9)
    await project(bare_service)
    assert rows(log_database, "SELECT stream_id, position FROM projection_quarantine") == [(jobs[4], 9)]
    assert metrics.PROJECTION_QUARANTINED._value.get() == 1
    assert {job_id for (job_id,) in rows(log_database, "SELECT job_id FROM jobs")} == {*jobs} - {jobs[4]}
    assert rows(log_database, "SELECT count(*) FROM jobs_history") == [(18,)]
    await pair(bare_service)
    await project(bare_service)
    assert rows(log_database, "SELECT position FROM projection_checkpoints") == [(22,)]
    async with await postgres.connect(log_database.dsn) as connection:
        with pytest.raises(StillPoisoned):
            await resume(connection, MAPPER, jobs[4])
        assert rows(log_database, "SELECT count(*) FROM projection_quarantine") == [(1,)]
        with log_database.connect(superuser=True) as superuser:
            superuser.execute("UPDATE events SET data = %s::json, topic = %s WHERE position = 9", before[0])
        done = await resume(connection, MAPPER, jobs[4])
        assert (done.events, done.position) == (2, 22)
        with pytest.raises(NotFound):
            await resume(connection, MAPPER, jobs[4])
        assert await quarantine.count(connection) == 0
    assert rows(log_database, "SELECT count(*) FROM jobs WHERE status = 'cancelled'") == [(11,)]
    for name in ("jobs", "lineage_edges"):
        assert (await verify(log_database.dsn, name, MAPPER)).equal


async def test_what_came_before_the_poison_stays(bare_service: Service, log_database: LogDatabase) -> None:
    """In one page or in many; and verify and rebuild agree with it."""
    job_id = await bare_service.submit()
    await project(bare_service)
    await bare_service.run(job_commands.cancel_job, job_commands.CancelJob(job_id=job_id))
    other = await pair(bare_service)
    rewrite(log_database, "topic = 'job.surprise'", 2)
    rewrite(log_database, "topic = 'job.surprise'", 4)
    await project(bare_service)
    states = rows(log_database, "SELECT job_id, status, version FROM jobs ORDER BY position")
    assert states == [(job_id, "pending", 1), (other, "pending", 1)]
    assert (await verify(log_database.dsn, "jobs", MAPPER)).equal
    await rebuild(log_database.dsn, "jobs", MAPPER)
    assert rows(log_database, "SELECT job_id, status, version FROM jobs ORDER BY position") == states
    # A control: without the quarantine the same log cannot be folded, and the live table stays as it is.
    with log_database.connect() as connection:
        connection.execute("DELETE FROM projection_quarantine")
    with pytest.raises(CannotFold, match=r"job\.surprise"):
        await rebuild(log_database.dsn, "jobs", MAPPER)
    assert rows(log_database, "SELECT job_id, status, version FROM jobs ORDER BY position") == states


async def test_a_stream_that_comes_back_is_folded_on(bare_service: Service, log_database: LogDatabase) -> None:
    """By the projector that set it aside, which has rows of others in memory."""
    made = catalogue.projector(MAPPER)
    job_id, other = await bare_service.submit(), await bare_service.submit()
    rewrite(log_database, UNDECODABLE, 1)
    async with await postgres.connect(log_database.dsn) as connection:
        await projector.step(made, connection)
        rewrite(log_database, "data = jsonb_set(data::jsonb, '{kind}', '\"noop\"')", 1)
        for one in (job_id, other):
            await bare_service.run(job_commands.cancel_job, job_commands.CancelJob(job_id=one))
        await resume(connection, MAPPER, job_id)
        await projector.step(made, connection)
    assert rows(log_database, "SELECT count(*) FROM jobs WHERE status = 'cancelled'") == [(2,)]
    assert (await verify(log_database.dsn, "jobs", MAPPER)).equal


async def test_a_failing_database_is_no_poison(bare_service: Service, log_database: LogDatabase) -> None:
    await pair(bare_service)
    made = catalogue.projector(MAPPER)
    async with await postgres.connect(log_database.dsn) as connection:
        with log_database.connect() as owner:
            owner.execute("ALTER TABLE jobs_v1 RENAME TO elsewhere")
            with pytest.raises(psycopg.errors.UndefinedTable):
                await projector.step(made, connection)
            owner.execute("ALTER TABLE elsewhere RENAME TO jobs_v1")
        events = await read_page(connection, after=await checkpoint(connection), limit=10)
        cut = asyncio.create_task(made.project(connection, events))
        with log_database.connect(superuser=True) as superuser:
            superuser.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            await cut
    assert rows(log_database, "SELECT count(*) FROM projection_quarantine") == [(0,)]
    await (await project_all(made, log_database.dsn)).close()
    assert rows(log_database, "SELECT count(*) FROM jobs") == [(1,)]


async def test_the_alarm_counts_and_is_bounded(
    bare_service: Service, log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "COUNTED_MAX", 3)
    with log_database.connect() as connection:
        for _ in range(5):
            connection.execute(
                "INSERT INTO projection_quarantine VALUES (%s, 1, 'job.submitted', 'x', now())", (uuid7(),)
            )
    async with await postgres.connect(bare_service.settings.database_url) as connection:
        assert await quarantine.count(connection) == 3
        assert len(await quarantine.listed(connection, limit=4)) == 4
        assert await quarantine.listed(connection, kinds=["session"], limit=4) == []
        assert await quarantine.positions(connection, [uuid7()]) == {}
    metrics.PROJECTION_QUARANTINED.set(0)
