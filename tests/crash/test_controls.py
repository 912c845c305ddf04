"""The controls: each breaks one thing that a promise rests on, and its row turns red; unbroken, it is green."""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from msgspec.structs import replace
from tests.adapters.event_store.proxy import Proxy
from tests.conftest_log import LogDatabase
from tests.conftest_parts import wait_for
from tests.conftest_service import Service, by
from tests.crash import checks
from tests.crash.appender import append
from tests.crash.clients import Clients
from tests.crash.ledger import Answers, Ledger
from tests.crash.observer import Reader, Tokens, impersonate
from tests.crash.plan import DUPLICATES, Gate
from tests.crash.system import APPEND
from tests.http.door import Door, opened, settings_for

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import PostgresServer, _servers_on
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.event_store.channel import Row as OutcomeRow
from sightline.adapters.event_store.codec import EventMapper
from sightline.adapters.event_store.reader import read_page
from sightline.adapters.event_store.wire import _uuid
from sightline.adapters.event_store.writer import Writer, _Queued
from sightline.commands import attempts
from sightline.commands.jobs import say
from sightline.commands.transact import Handler
from sightline.commands.transaction import Loaded, Transaction
from sightline.domain import jobs
from sightline.domain.events import EVENTS
from sightline.domain.jobs import Job, JobCompleted, Provenance
from sightline.projections import catalogue
from sightline.projections.projection import checkpoint
from sightline.projections.projector import Projector
from sightline.workers import lifecycle
from sightline.workers.janitor import Janitor

WRITERS = 4
COMMANDS = 400
ROUNDS_MAX = 20
LOOSE_POSITION = "coalesce((SELECT e.position FROM events AS e ORDER BY e.position DESC LIMIT 1), 0)"


async def appended(directory: Path, writers: list[Writer], *, commands: int = COMMANDS, seed: int = 1) -> list[Ledger]:
    """What these writers had acknowledged, each with lanes of its own; another seed, other commands."""
    gate = open_gate(directory)
    ledgers = [Ledger(directory / f"{number}.ledger") for number in range(len(writers))]
    works = zip(writers, ledgers, range(len(writers)), strict=True)
    await asyncio.gather(
        *(append(one, ledger, seed=seed, number=number, quotas=[commands], gate=gate) for one, ledger, number in works)
    )
    for ledger in ledgers:
        ledger.close()
    return ledgers


def open_gate(directory: Path) -> Gate:
    directory.mkdir()
    gate = Gate(directory)
    gate.set(1)
    return gate


async def test_r1_asynchronous_commit_loses_what_was_acknowledged() -> None:
    with tempfile.TemporaryDirectory(prefix="sightline-r1-") as directory, PostgresServer(Path(directory)) as server:
        postgres.migrate(server.dsn)
        lost = {}
        for seed, commit in enumerate(("on", "off")):
            # The WAL writer would write out within 0.2 s, or after 1 MiB, what nobody waits for.
            configure(server, synchronous_commit=commit, wal_writer_delay="10s", wal_writer_flush_after="1GB")
            ledgers = await appended(Path(directory) / commit, [Writer(server.dsn)], seed=seed)
            kill_server(server)
            with checks.connect(server.dsn) as connection:
                checks.load(connection, ledgers)
                lost[commit] = checks.nothing_lost(connection, []).broken
    assert lost["on"] == 0
    assert lost["off"] > 0


def configure(server: PostgresServer, **wanted: str) -> None:
    """For every connection made from now on."""
    with psycopg.connect(server.superuser_dsn, autocommit=True) as superuser:
        for name, value in wanted.items():
            superuser.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        superuser.execute("SELECT pg_reload_conf()")
    name, value = next(iter(wanted.items()))
    wait_for(lambda: shown(server, name) == value)


def shown(server: PostgresServer, name: str) -> str:
    with psycopg.connect(server.superuser_dsn) as connection:
        row = connection.execute(f"SHOW {name}".encode()).fetchone()
    assert row is not None
    return str(row[0])


def kill_server(server: PostgresServer) -> None:
    """All of it at once, so that its shared memory goes, and start it again."""
    pids = list(_servers_on(server.data))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert server._process is not None
    server._process.wait(10)
    server.launch()
    server.wait_ready()


@pytest.mark.parametrize("forgetful", [False, True])
async def test_r2_without_receipts_a_lost_answer_becomes_a_conflict(
    log_database: LogDatabase, tmp_path: Path, forgetful: bool
) -> None:
    kind = NewIdsEachTime if forgetful else Writer
    with tempfile.TemporaryDirectory() as home:  # a socket's path is short
        async with Proxy(log_database.dsn, Path(home), asked=APPEND) as between:
            for _ in range(3):
                between.lose_next_answer()
            ledgers = await appended(tmp_path / "run", [kind(between.dsn)])
    with checks.connect(log_database.dsn) as connection:
        checks.load(connection, ledgers)
        row = checks.no_false_conflict(connection, [], between.answers_lost)
    assert between.answers_lost == 3
    assert (row.broken > 0) == forgetful, row.figure


class NewIdsEachTime(Writer):
    """As if the log kept no receipts: what is sent again is another command."""

    async def _call(self, batch: list[_Queued]) -> list[OutcomeRow]:
        for one in batch:
            command_id = uuid4()
            columns = (_uuid(16, command_id.bytes), *one.rendered.columns[1:])
            one.rendered = replace(one.rendered, command_id=command_id, columns=columns)
        return await super()._call(batch)


async def test_r3_positions_from_a_sequence_without_a_lock_are_skipped(
    log_database: LogDatabase, tmp_path: Path
) -> None:
    row = await read_along(log_database, tmp_path / "locked")
    assert row.broken == 0, row.figure
    loosen(log_database)
    for number in range(ROUNDS_MAX):
        row = await read_along(log_database, tmp_path / f"loose-{number}", begun=number + 1)
        if row.broken:
            return
    raise AssertionError(f"the control saw every event: {row.figure}")


async def read_along(database: LogDatabase, directory: Path, begun: int = 0) -> checks.Row:
    """Several appenders, and a reader that follows them from where the log ends now."""
    reader = Reader(database.dsn)
    with checks.connect(database.dsn) as connection:
        for position, stream_id, version in connection.execute(
            "SELECT position, stream_id, version FROM events ORDER BY position"
        ):
            reader.position = position
            reader.seen.add(position, stream_id, version)
    following = asyncio.create_task(reader.run())
    await appended(directory, [Writer(database.dsn) for _ in range(WRITERS)], commands=50, seed=begun)
    with checks.connect(database.dsn) as connection:
        head = connection.execute("SELECT max(position) FROM events").fetchone()
        assert head is not None
        while reader.position < head[0]:  # noqa: ASYNC110  # the reader is at work in a task of its own
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.wait({following})
        return checks.whole_and_in_order(connection, reader.seen, reader.holes)


def loosen(database: LogDatabase) -> None:
    """`append_batch` without its lock, its positions from a sequence, and a commit that takes a moment."""
    with database.connect(superuser=True) as superuser:
        found = superuser.execute("SELECT pg_get_functiondef('append_batch'::regproc)").fetchone()
        assert found is not None
        text: str = found[0]
        for before, after in (
            ("WHERE h.one FOR UPDATE", "WHERE h.one"),
            (f"v_base := {LOOSE_POSITION}", "v_base := nextval('loose') - 1"),
            ("SELECT v_base + row_number() OVER ()", "SELECT nextval('loose')"),
            (
                "RETURN QUERY SELECT 0, 'appended'",
                "PERFORM pg_sleep(random() * 0.01); RETURN QUERY SELECT 0, 'appended'",
            ),
        ):
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        superuser.execute("CREATE SEQUENCE loose")
        superuser.execute("SELECT setval('loose', (SELECT max(position) FROM events))")
        superuser.execute("GRANT USAGE ON SEQUENCE loose TO sightline_writer")
        superuser.execute(text.encode())


@pytest.mark.parametrize("apart", [False, True])
async def test_r4_a_checkpoint_in_a_transaction_of_its_own_leaves_read_models_behind(
    log_database: LogDatabase, tmp_path: Path, apart: bool
) -> None:
    await appended(tmp_path / "run", [Writer(log_database.dsn)], commands=20)
    projector = (Apart if apart else Together)(log_database.dsn)
    async with await postgres.connect(log_database.dsn) as connection:
        while True:
            events = await read_page(connection, after=await checkpoint(connection), limit=16)
            if not events:
                break
            with contextlib.suppress(Killed):
                await projector.project(connection, events)
    assert projector.kills == 0
    with checks.connect(log_database.dsn) as log:
        row = checks.same_as_a_cold_replay(log)
    assert (row.broken > 0) == apart, row.figure


class Killed(Exception):
    """The process dies here; the server rolls back what was open."""


class Together(Projector):
    """Dies twice, just after the checkpoint was moved."""

    def __init__(self, dsn: str) -> None:
        super().__init__(EventMapper(EVENTS), catalogue.READ_MODELS, catalogue.EDGE_MODELS)
        self.dsn = dsn
        self.kills = 2

    async def _move_checkpoint(self, connection: psycopg.AsyncConnection, before: int, after: int) -> None:
        await super()._move_checkpoint(connection, before, after)
        if self.kills:
            self.kills -= 1
            raise Killed


class Apart(Together):
    async def _move_checkpoint(self, connection: psycopg.AsyncConnection, before: int, after: int) -> None:
        async with await postgres.connect(self.dsn) as another:
            await super()._move_checkpoint(another, before, after)


@pytest.mark.parametrize("fenced", [True, False])
async def test_r5_without_fencing_a_stale_token_is_taken(bare_service: Service, fenced: bool) -> None:
    job_id = await bare_service.submit()
    for attempt, worker in ((1, "stopped"), (2, "holder")):
        start = attempts.StartJob(job_id=job_id, worker=worker, lease_until=lifecycle.now())
        await bare_service.run(attempts.start_job, start, by(worker, now=lifecycle.now() + timedelta(seconds=attempt)))
        if attempt == 1:
            lost = attempts.LoseLease(job_id=job_id, attempt=1, worker=worker, retry_delay_s=0)
            await bare_service.run(attempts.lose_lease, lost)
    handler: Handler[attempts.CompleteJob, Job] = attempts.complete_job if fenced else complete_unfenced
    with checks.connect(bare_service.settings.database_url) as connection:
        assert checks.no_job_stuck(connection, [], 0, 0).broken == 1, "R7: a job that does not end is seen"
        tokens, reader = Tokens(), Reader(bare_service.settings.database_url)
        reader.over.put_nowait((job_id, 1, "stopped"))
        impostor = asyncio.create_task(impersonate(bare_service.commands, reader, tokens, handler))
        while not tokens.tried:  # noqa: ASYNC110  # the impostor is a task of its own
            await asyncio.sleep(0.01)
        impostor.cancel()
        await asyncio.wait({impostor})
        await bare_service.run(handler, completion(job_id, 2, "holder"), by("holder"))
        row = checks.one_winner(connection, tokens, 1)
        assert (row.broken == 0) == fenced, row.figure
        assert checks.no_job_stuck(connection, [], 0, 0).broken == 0


def completion(job_id: UUID, attempt: int, worker: str) -> attempts.CompleteJob:
    return attempts.CompleteJob(
        job_id=job_id, attempt=attempt, worker=worker, outputs=(), manifest={}, timings={}, receipt=Provenance()
    )


async def complete_unfenced(tx: Transaction, command: attempts.CompleteJob) -> Loaded[Job]:
    """The decision without its look at the attempt."""
    job = await tx.load(jobs.AGGREGATE, command.job_id)
    return say(tx, job, [JobCompleted(at=tx.caller.now, attempt=command.attempt, worker=command.worker)])


@asynccontextmanager
async def clients_at(
    database: LogDatabase, valkey: ValkeyServer, directory: Path, *, one_key: bool = True
) -> AsyncIterator[tuple[Door, Clients, Answers]]:
    async with opened(settings_for(database, valkey.url, directory)) as door:
        answers = Answers(directory / "answers.ledger")
        yield door, Clients(door.client, answers, 1, one_key=one_key), answers
        answers.close()


@pytest.mark.parametrize("blind", [False, True])
async def test_r8_a_janitor_that_ignores_the_log_is_seen(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path, blind: bool
) -> None:
    async with (
        clients_at(log_database, valkey_server, tmp_path) as (door, clients, _),
        lifecycle.open_services(door.services.settings) as services,
    ):
        await clients.round(1, keys=0, long_jobs=0, uploads=3)
        with checks.connect(log_database.dsn) as connection:
            await checks.leave_orphans(connection, services)
            row = await checks.objects_named(connection, services, 0, Blind(services) if blind else Janitor(services))
    assert (row.broken > 0) == blind, row.figure


class Blind(Janitor):
    async def _named(self, keys: object) -> set[str]:
        return set()


@pytest.mark.parametrize("one_key", [True, False])
async def test_r9_without_one_key_a_repeated_request_is_another_job(
    log_database: LogDatabase, valkey_server: ValkeyServer, tmp_path: Path, one_key: bool
) -> None:
    async with clients_at(log_database, valkey_server, tmp_path, one_key=one_key) as (_, clients, answers):
        await clients.round(1, keys=3, long_jobs=0, uploads=0)
        with checks.connect(log_database.dsn) as connection:
            row = checks.one_job_per_key(connection, list(answers), DUPLICATES)
    assert (row.broken == 0) == one_key, row.figure
