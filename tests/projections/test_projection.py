"""The projector and what rests on it: exactly once, equal to a cold replay, and waiting for a position."""

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from msgspec import Struct
from psycopg import sql
from tests.conftest_service import Service, until
from tests.projections.history import History

from sightline.adapters import postgres
from sightline.adapters.event_store.codec import EventMapper, Recorded
from sightline.adapters.event_store.reader import read_page
from sightline.adapters.ids import uuid7
from sightline.commands import attempts, sessions
from sightline.domain.events import EVENTS
from sightline.domain.jobs import Artifact, Provenance
from sightline.projections import catalogue
from sightline.projections import projection as projection_
from sightline.projections.lineage import trace
from sightline.projections.projection import NotYetProjected, ReadModel, TooManyWaiters, checkpoint
from sightline.projections.projector import Overtaken, Projector
from sightline.workers import lifecycle

STEPS = 400
TABLES = [model.table for model in catalogue.ALL_MODELS] + [
    model.history_table for model in catalogue.READ_MODELS if model.history
]


async def rows(connection: psycopg.AsyncConnection, table: str) -> list[str]:
    """Every row as text, sorted: two tables are equal if and only if these are."""
    query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(sql.Identifier(table))
    return [row for (row,) in await (await connection.execute(query)).fetchall()]


async def project_all(
    projector: Projector, dsn: str, page_sizes: Callable[[], int] = lambda: 1000
) -> psycopg.AsyncConnection:
    connection = await postgres.connect(dsn)
    while events := await read_page(connection, after=await checkpoint(connection), limit=page_sizes()):
        await projector.project(connection, events)
    return connection


async def replay(service: Service) -> dict[str, list[str]]:
    """The whole log folded again, one event at a time, into tables of this connection alone."""
    connection = await postgres.connect(service.settings.database_url)
    for table in ("projection_checkpoints", *TABLES):
        copy = sql.SQL("CREATE TEMPORARY TABLE {0} (LIKE public.{0} INCLUDING ALL)")
        await connection.execute(copy.format(sql.Identifier(table)))
    await connection.execute("INSERT INTO projection_checkpoints VALUES ('read_models', 0, clock_timestamp())")
    projector = catalogue.projector(EventMapper(EVENTS))
    events = await service.services.store.reader.page(after=0, limit=100_000)
    for start in range(0, len(events), 7):
        await projector.project(connection, events[start : start + 7])
    found = {table: await rows(connection, table) for table in TABLES}
    await connection.close()
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_read_models_equal_a_cold_replay(service: Service, seed: int) -> None:
    """Followed while it was written, by two projectors at once; and every reachable row passed its CHECKs."""
    await service.install_models()
    stopping = asyncio.Event()
    from sightline.workers import projector as worker

    second = asyncio.create_task(worker.run(service.settings, stopping))
    await History(service, seed).run(STEPS)
    position = await service.caught_up()
    stopping.set()
    await second
    assert position > STEPS / 4, "most steps must not be refused"
    replayed = await replay(service)
    async with service.services.store.pool.connection() as connection:
        for table in TABLES:
            assert await rows(connection, table) == replayed[table]
            assert replayed[table], f"the history left {table} empty"
        seen = {one for (one,) in await (await connection.execute("SELECT DISTINCT status FROM jobs_v1")).fetchall()}
        assert seen >= {"pending", "processing", "completed", "failed", "cancelled", "deleted"}
        drift = await connection.execute(
            "SELECT kind, count(*) FILTER (WHERE status = 'pending'), (SELECT value FROM guards"
            " WHERE key = 'jobs_pending:' || kind ORDER BY move DESC LIMIT 1) FROM jobs_v1 GROUP BY kind"
        )
        for kind, waiting, counted in await drift.fetchall():
            assert waiting == counted, f"the guard of {kind} says {counted}"


async def test_a_damaged_row_differs_from_the_replay(service: Service) -> None:
    """The control of the comparison above."""
    job_id = await service.submit()
    await service.caught_up()
    async with service.services.store.pool.connection() as connection:
        await connection.execute("UPDATE jobs_v1 SET progress = 1 WHERE job_id = %s", [job_id])
        assert await rows(connection, "jobs_v1") != (await replay(service))["jobs_v1"]


# Exactly once. Counting is where a page folded twice shows: a row that is set twice looks the same.


class CountRow(Struct, frozen=True):
    counted_id: UUID
    events: int


def count(row: CountRow | None, _event: Any, at: Recorded) -> CountRow:
    return CountRow(at.stream_id, (row.events if row else 0) + 1)


COUNTS = ReadModel("counted", 1, frozenset({"session"}), CountRow, count)
EVENTS_COUNTED = 200
CRASH_EVERY_FOLDS = 37


class CutOff(BaseException):
    """The process is over: no fault of the event at which it happens."""


class NoCompare(Projector):
    """The control: the checkpoint is moved without looking where it was."""

    async def _move_checkpoint(self, connection: psycopg.AsyncConnection, before: int, after: int) -> None:
        self._pages.forget()  # rows in memory are good only where the compare holds, and would hide what it prevents
        await connection.execute("UPDATE projection_checkpoints SET position = %s", [after])


class TwoTransactions(Projector):
    """The control: the checkpoint is moved and committed before the page is written, which a crash then loses."""

    async def _move_checkpoint(self, connection: psycopg.AsyncConnection, before: int, after: int) -> None:
        async with await postgres.connect(connection.info.dsn) as other:
            await super()._move_checkpoint(other, before, after)


async def counted(service: Service, kind: type[Projector], *, crashes: bool) -> int:
    """Two projectors over one history, in pages of up to 20; each may be cut off within a page."""
    dice = random.Random(3)
    folds = itertools.count(1)
    mapper = EventMapper(EVENTS)

    def fold(row: CountRow | None, event: Any, at: Recorded) -> CountRow:
        if crashes and next(folds) % CRASH_EVERY_FOLDS == 0:
            raise CutOff
        return count(row, event, at)

    model = ReadModel("counted", 1, frozenset({"session"}), CountRow, fold)

    async def follow() -> None:
        projector = kind(mapper, [model], [])
        async with await postgres.connect(service.settings.database_url) as connection:
            while (after := await checkpoint(connection)) < EVENTS_COUNTED:
                events = await read_page(connection, after=after, limit=dice.randint(1, 20))
                try:
                    await projector.project(connection, events)
                except (Overtaken, CutOff):
                    continue

    async with service.services.store.pool.connection() as connection:
        await connection.execute("CREATE TABLE counted_v1 (counted_id uuid PRIMARY KEY, events int NOT NULL)")
    # No stream begins and ends in one page: what begins in a page is folded from nothing, and so but once.
    for session_id in [await service.session() for _ in range(EVENTS_COUNTED // 2)]:
        await service.run(sessions.close_session, sessions.CloseSession(session_id=session_id))
    await asyncio.gather(follow(), follow())
    async with service.services.store.pool.connection() as connection:
        row = await (await connection.execute("SELECT sum(events) FROM counted_v1")).fetchone()
    assert row is not None
    return int(row[0])


async def test_two_projectors_that_are_cut_off_count_every_event_once(bare_service: Service) -> None:
    assert await counted(bare_service, Projector, crashes=True) == EVENTS_COUNTED


async def test_without_the_compare_two_projectors_count_twice(bare_service: Service) -> None:
    assert await counted(bare_service, NoCompare, crashes=False) > EVENTS_COUNTED


async def test_with_a_transaction_of_its_own_for_the_checkpoint_a_crash_loses_events(bare_service: Service) -> None:
    assert await counted(bare_service, TwoTransactions, crashes=True) < EVENTS_COUNTED


# Waiting


async def test_a_position_beyond_the_log_is_refused_at_once(service: Service) -> None:
    await service.submit()
    position = await service.caught_up()
    started = asyncio.get_running_loop().time()
    with pytest.raises(NotYetProjected):
        await service.reads.wait_for(position + 1, timeout_s=60)
    assert asyncio.get_running_loop().time() - started < 60


async def test_who_waits_is_woken_by_the_projection(bare_service: Service) -> None:
    """Long before its time is over; and it leaves nothing behind."""
    reads = bare_service.reads
    await bare_service.submit()
    watching = asyncio.create_task(reads.watch())
    waiting = [asyncio.create_task(reads.wait_for(1, timeout_s=60)) for _ in range(5)]
    with pytest.raises(NotYetProjected):
        await reads.wait_for(1, timeout_s=0.01)
    with pytest.raises(NotYetProjected):
        await reads.wait_for(1, timeout_s=0)
    projector = catalogue.projector(EventMapper(EVENTS))
    connection = await project_all(projector, bare_service.settings.database_url)
    await connection.close()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    assert await reads.position() == 1
    assert not reads._waiters
    watching.cancel()
    await asyncio.wait({watching})


async def test_waiters_are_bounded_and_leave_when_they_give_up(
    bare_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection_, "WAITERS_MAX", 3)
    await bare_service.submit()
    for _ in range(2):  # the second round finds the places of the first free
        waiting = [asyncio.create_task(bare_service.reads.wait_for(1, timeout_s=60)) for _ in range(3)]

        async def all_wait() -> bool:
            return len(bare_service.reads._waiters) == 3

        await until(all_wait)
        with pytest.raises(TooManyWaiters):
            await bare_service.reads.wait_for(1, timeout_s=60)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_the_position_never_goes_back_unless_the_log_may_be_another(service: Service) -> None:
    await service.submit()
    position = await service.caught_up()
    async with service.services.store.pool.connection() as connection:
        await connection.execute("UPDATE projection_checkpoints SET position = 0")
        assert await service.reads.position() == position
        service.reads.forget()
        await connection.execute("UPDATE projection_checkpoints SET position = %s", [position])


async def test_an_answer_never_reflects_less_than_its_position_says(service: Service) -> None:
    stop = asyncio.Event()

    async def look() -> int:
        answers = 0
        while not stop.is_set():
            page = await service.reads.fetch(Count, COUNT_JOBS, {})
            assert page.rows[0].jobs >= page.position
            answers += 1
        return answers

    looking = asyncio.create_task(look())
    for _ in range(50):
        await service.submit()
    await service.caught_up()
    stop.set()
    assert await looking > 5


class Count(Struct, frozen=True):
    jobs: int


_COUNT: LiteralString = "SELECT json_build_object('jobs', count(*)) FROM jobs"
COUNT_JOBS = sql.SQL(_COUNT)


# Lineage


async def test_a_trace_follows_the_material_both_ways(service: Service) -> None:
    await service.install_models()
    asset_id, session_id = await service.asset(uuid7()), await service.session()
    job_id = await service.submit("layer-photo-realistic", inputs=(asset_id,), session_id=session_id)
    await service.run(attempts.start_job, attempts.StartJob(job_id=job_id, worker="w", lease_until=lifecycle.now()))
    made = Artifact(name="a.png", object_key="k", sha256="a" * 64, size_bytes=1, content_type="image/png")
    complete = attempts.CompleteJob(
        job_id=job_id, attempt=1, worker="w", outputs=(made,), manifest={}, timings={}, receipt=Provenance()
    )
    await service.run(attempts.complete_job, complete)
    await service.caught_up()
    forward, position = await trace(service.reads, asset_id, forward=True, depth=20)
    assert [(edge.dst_kind, edge.relation) for edge in forward] == [("job", "used"), ("artifact", "generated")]
    back, _ = await trace(service.reads, forward[-1].dst, forward=False, depth=20)
    assert {edge.src_kind for edge in back} == {"job", "asset", "session", "model"}
    assert max(edge.position for edge in back) <= position
    near, _ = await trace(service.reads, asset_id, forward=True, depth=1)
    assert [edge.dst for edge in near] == [job_id]
