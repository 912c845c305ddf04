"""Rebuild and verify: beside the live table, under load, and with something to find."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from tests.conftest_log import LogDatabase
from tests.conftest_service import Service, until
from tests.projections.history import History

from sightline.adapters import postgres
from sightline.adapters.event_store.codec import EventMapper
from sightline.commands import jobs as job_commands
from sightline.domain.events import EVENTS
from sightline.domain.kernel import Invalid, NotFound
from sightline.projections import catalogue, quarantine, shadow, upkeep
from sightline.projections import rebuild as rebuild_
from sightline.projections.jobs import JOBS
from sightline.projections.rebuild import rebuild
from sightline.projections.verify import verify

MAPPER = EventMapper(EVENTS)
NAMES = [model.name for model in catalogue.ALL_MODELS]

SHAPES: tuple[LiteralString, ...] = (
    (
        "SELECT attname, atttypid::regtype::text, attnotnull, attacl::text FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum"
    ),
    "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s ORDER BY 1",
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass ORDER BY 1",
    (
        "SELECT relacl::text, relrowsecurity, relforcerowsecurity, reloptions, relowner FROM pg_class"
        " WHERE oid = %s::regclass"
    ),
    "SELECT policyname, permissive, roles, cmd, qual, with_check FROM pg_policies WHERE tablename = %s ORDER BY 1",
    "SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal ORDER BY 1",
)


def shape(database: LogDatabase, table: str) -> list[Any]:
    """Everything about a table that a reader, the projector or a migration relies on."""
    with database.connect() as connection:
        return [connection.execute(query, (table,)).fetchall() for query in SHAPES]


async def changed(service: Service, query: LiteralString, *values: Any) -> None:
    async with service.services.store.pool.connection() as connection:
        await connection.execute(query, values)


@asynccontextmanager
async def load(service: Service) -> AsyncIterator[None]:
    """Jobs that are submitted and cancelled all the while."""
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            job_id = await service.submit()
            await service.run(job_commands.cancel_job, job_commands.CancelJob(job_id=job_id))

    writers = [asyncio.create_task(write()) for _ in range(4)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*writers)


async def test_every_model_is_rebuilt_to_the_same(service: Service, log_database: LogDatabase) -> None:
    await service.install_models()
    await History(service, 7).run(200)
    position = await service.caught_up()
    dsn = service.settings.database_url
    for name in NAMES:
        before = await verify(dsn, name, MAPPER)
        shapes = shape(log_database, upkeep.model_named(name).table)
        done = await rebuild(dsn, name, MAPPER)
        after = await verify(dsn, name, MAPPER)
        assert (done.position, before.equal, after.equal) == (position, True, True)
        assert [one.live for one in after.comparisons] == [one.live for one in before.comparisons]
        assert after.comparisons[0].rows == done.rows
        assert shape(log_database, upkeep.model_named(name).table) == shapes
    with log_database.connect() as connection:
        left = connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE '%\\_rebuild%'").fetchone()
    assert left == (0,)


async def test_rights_and_row_security_are_those_of_the_live_table(service: Service, log_database: LogDatabase) -> None:
    with log_database.connect() as connection:
        connection.execute("GRANT SELECT ON jobs_v1 TO PUBLIC")
        connection.execute("GRANT SELECT (row), UPDATE (at) ON jobs_history_v1 TO pg_monitor WITH GRANT OPTION")
        connection.execute("ALTER TABLE jobs_v1 ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY \"a {}\" ON jobs_v1 AS RESTRICTIVE FOR SELECT USING (params <> '{}')")
        connection.execute("ALTER TABLE jobs_v1 SET (fillfactor = 70)")
    before = [shape(log_database, table) for table in ("jobs_v1", "jobs_history_v1")]
    await service.submit()
    await service.caught_up()
    await rebuild(service.settings.database_url, "jobs", MAPPER)
    assert [shape(log_database, table) for table in ("jobs_v1", "jobs_history_v1")] == before


async def test_under_load_reads_never_fail_and_never_go_back(service: Service) -> None:
    seen: list[str] = [str(await service.submit())]
    await service.caught_up()
    stop = asyncio.Event()
    reads, keys = 0, seen[0]

    async def read() -> None:
        nonlocal reads
        last = 0
        async with service.services.store.pool.connection() as connection:
            while not stop.is_set():
                row, position = await service.reads.get(JOBS, UUID(keys))
                assert row is not None
                assert position >= last
                cursor = await connection.execute("SELECT max(position), count(*) FROM jobs", prepare=True)
                found = await cursor.fetchone()
                assert found is not None
                assert found[0] >= last, "rows of an earlier position than was answered before"
                last = max(position, found[0])
                reads += 1

    readers = [asyncio.create_task(read()) for _ in range(3)]
    dsn = service.settings.database_url
    async with load(service):
        for _ in range(3):
            before = reads
            done = await rebuild(dsn, "jobs", MAPPER)

            async def read_since(position: int = done.position, before: int = before) -> bool:
                return reads > before + 20 and await service.reads.position() > position

            await until(read_since)
    await service.caught_up()
    stop.set()
    await asyncio.gather(*readers)
    assert (await verify(dsn, "jobs", MAPPER)).equal


async def test_a_reader_that_stays_delays_the_switch_and_nothing_else(service: Service) -> None:
    job_id = await service.submit()
    await service.caught_up()
    dsn = service.settings.database_url
    async with await postgres.connect(dsn) as analyst:
        async with analyst.transaction():
            await analyst.execute("SELECT * FROM jobs")
            rebuilding = asyncio.create_task(rebuild(dsn, "jobs", MAPPER))

            async def tried() -> bool:
                waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'jobs'::regclass AND NOT granted)"
                return bool((await (await analyst.execute(waiting)).fetchall())[0][0])

            await until(tried)
            await service.submit()
            await service.caught_up()  # the projector is not held up
            assert (await service.row(job_id)).status == "pending"
            assert not rebuilding.done()
        done = await asyncio.wait_for(rebuilding, 120)
    assert done.attempts > 1
    assert done.rows == 2


async def test_who_never_leaves_ends_the_rebuild_without_a_trace(
    service: Service, log_database: LogDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_, "SWITCH_ATTEMPTS_MAX", 2)
    await service.submit()
    await service.caught_up()
    dsn = service.settings.database_url
    async with await postgres.connect(dsn) as analyst, analyst.transaction():
        await analyst.execute("SELECT * FROM jobs")
        with pytest.raises(rebuild_.SwitchRefused):
            await rebuild(dsn, "jobs", MAPPER)
    with log_database.connect() as connection:
        assert connection.execute("SELECT to_regclass('jobs_v1_rebuild')").fetchone() == (None,)
        [(error,)] = connection.execute("SELECT task_error FROM projections").fetchall()
        assert "SwitchRefused" in error


async def test_a_view_on_the_table_itself_refuses_the_rebuild(service: Service, log_database: LogDatabase) -> None:
    with log_database.connect() as connection:
        connection.execute("CREATE VIEW mine AS SELECT job_id FROM jobs_v1")
    with pytest.raises(shadow.TableInUse, match="mine"):
        await rebuild(service.settings.database_url, "jobs", MAPPER)


async def test_one_at_a_time(service: Service) -> None:
    dsn = service.settings.database_url
    async with await postgres.connect(dsn) as connection, upkeep.claimed(connection, "jobs", "rebuild"):
        for task in (rebuild, verify):
            with pytest.raises(upkeep.ProjectionBusy):
                await task(dsn, "jobs", MAPPER)
        await rebuild(dsn, "sessions", MAPPER)
        state = next(one for one in await upkeep.overview(connection) if one.name == "jobs")
        assert state.task == "rebuild"
    async with await postgres.connect(dsn) as connection:
        # A process that died says nothing at its end, and claims nothing any more.
        await connection.execute("UPDATE projections SET task = 'verify', task_started_at = now() WHERE name = 'jobs'")
        state = next(one for one in await upkeep.overview(connection) if one.name == "jobs")
        assert (state.task, state.task_error) == (None, "the verify was interrupted")
    await rebuild(dsn, "jobs", MAPPER)
    with pytest.raises(NotFound):
        await rebuild(dsn, "nothing", MAPPER)


async def test_a_row_changed_by_hand_is_found_and_a_rebuild_heals_it(service: Service) -> None:
    job_ids = sorted([await service.submit() for _ in range(5)])
    position = await service.caught_up()
    dsn = service.settings.database_url
    await changed(service, "UPDATE jobs_v1 SET progress = 1 WHERE job_id = %s", job_ids[2])
    verdict = await verify(dsn, "jobs", MAPPER)
    assert verdict.comparisons[0].differs_at == str(job_ids[2])
    assert verdict.comparisons[0].live != verdict.comparisons[0].replayed
    assert verdict.comparisons[1].differs_at is None
    assert (await verify(dsn, "jobs", MAPPER, at=position)).equal, "the history is as it was"
    await rebuild(dsn, "jobs", MAPPER)
    # The projector forgets what it had in memory: the next event is folded onto the healed row.
    await service.run(job_commands.cancel_job, job_commands.CancelJob(job_id=job_ids[2]))
    await service.caught_up()
    assert (await verify(dsn, "jobs", MAPPER)).equal


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM jobs_history_v1 WHERE position = 2",
        "UPDATE jobs_history_v1 SET row = jsonb_set(row::jsonb, '{progress}', '3')::json WHERE position = 2",
        "UPDATE jobs_history_v1 SET row = '[]' WHERE position = 2",
        "UPDATE jobs_history_v1 SET at = at - interval '1 us' WHERE position = 2",
        "INSERT INTO jobs_history_v1 SELECT job_id, 3, at, row FROM jobs_history_v1 WHERE position = 2",
    ],
)
async def test_a_changed_history_is_found(service: Service, damage: LiteralString) -> None:
    for _ in range(2):
        await service.submit()
    await service.caught_up()
    dsn = service.settings.database_url
    assert (await verify(dsn, "jobs", MAPPER)).equal
    await changed(service, damage)
    verdict = await verify(dsn, "jobs", MAPPER)
    assert [one.differs_at is None for one in verdict.comparisons] == [True, False]


async def test_rows_as_of_a_position(service: Service) -> None:
    job_id = await service.submit()
    await service.run(job_commands.cancel_job, job_commands.CancelJob(job_id=job_id))
    await service.caught_up()
    dsn = service.settings.database_url
    digests = [(await verify(dsn, "jobs", MAPPER, at=at)).comparisons[0] for at in (0, 1, 2)]
    assert [one.rows for one in digests] == [0, 1, 1]
    assert all(one.differs_at is None for one in digests)
    assert len({one.live for one in digests}) == 3
    assert digests[2].live == (await verify(dsn, "jobs", MAPPER)).comparisons[0].live
    for name, at in (("jobs", 3), ("assets", 1)):
        with pytest.raises(Invalid):
            await verify(dsn, name, MAPPER, at=at)


async def test_a_stream_set_aside_meanwhile_is_as_the_live_table_has_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its quarantine comes, or is lifted, between the fill and the switch."""
    job_id = await service.submit()
    await service.run(job_commands.cancel_job, job_commands.CancelJob(job_id=job_id))
    await service.caught_up()
    dsn = service.settings.database_url
    real = rebuild_._follow
    queries: list[LiteralString] = [
        "INSERT INTO projection_quarantine VALUES (%s, 2, 'job.cancelled', 'x', now())",
        "DELETE FROM projection_quarantine WHERE stream_id = %s",
    ]

    async def follow(connection: psycopg.AsyncConnection, *rest: Any) -> None:
        await real(connection, *rest)
        await connection.execute(queries.pop(0), (job_id,))

    monkeypatch.setattr(rebuild_, "_follow", follow)
    for status in ("pending", "cancelled"):
        await rebuild(dsn, "jobs", MAPPER)
        assert (await service.row(job_id)).status == status
        assert (await verify(dsn, "jobs", MAPPER)).equal
    async with service.services.store.pool.connection() as connection:
        assert await quarantine.count(connection) == 0
