"""A database with a little of everything in it, and analysts who ask."""

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from msgspec import Struct
from psycopg.conninfo import make_conninfo
from tests.conftest_log import LogDatabase, database
from tests.conftest_service import Service, by, open_service, short_lived

from sightline.adapters import analysts, postgres
from sightline.adapters.embedded.postgres import PostgresServer
from sightline.adapters.embedded.valkey import ValkeyServer
from sightline.adapters.event_store.reader import EventFilter
from sightline.adapters.ids import uuid7
from sightline.commands import attempts, jobs, model_slots, models, sessions
from sightline.domain.jobs import Provenance
from sightline.workers import lifecycle

DURATION_S = 2.5
WORKER = "worker:test"
SECRET = "token=abracadabra"
DENIED = psycopg.errors.InsufficientPrivilege
PERSON = "somebody@people.example"
MODEL_NAME = '=1+1, "twice"'  # a spreadsheet would run it

_numbers = itertools.count(1)


class Facts(Struct, frozen=True):
    """What was done, in this order: positions are those after each step."""

    done: UUID  # by ada, with a model, completed
    waiting: UUID  # by bob, pending
    deleted: UUID  # by ada
    session: UUID  # by ada, for PERSON
    task: str
    models: list[UUID]  # activated for it one after the other
    activated: list[int]  # positions of the activations
    done_at: int  # where `done` was completed


class AnalystDatabase(Struct, frozen=True):
    """Attributes:
    facts: what is in it.
    """

    log: LogDatabase
    facts: Facts

    def service(self) -> psycopg.Connection:
        return self.log.connect()

    @contextmanager
    def analyst(self, *owners: str) -> Iterator[str]:
        """The dsn of a new analyst who sees the rows of `owners`, or all."""
        name = f"analyst_{next(_numbers)}"
        with self.service() as connection:
            analysts.create(connection, name, owners=owners, connections_max=3, query_s_max=30)
        try:
            yield make_conninfo(self.log.dsn, user=name)
        finally:
            with self.service() as connection:
                analysts.drop(connection, name)


@contextmanager
def as_analyst(dsn: str) -> Iterator[psycopg.Connection]:
    connection = psycopg.connect(dsn, autocommit=True)
    try:
        yield connection
    finally:
        with suppress(psycopg.Error):
            connection.close()


def rows(connection: psycopg.Connection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query.encode()).fetchall()


@pytest.fixture(scope="session")
def analyst_database(postgres_server: PostgresServer, valkey_server: ValkeyServer) -> Iterator[AnalystDatabase]:
    """Migrated itself: a copied database lacks the rights on the database as such."""
    with (
        database(postgres_server, "analysts", "template1") as log,
        tempfile.TemporaryDirectory(prefix="sightline-analysts-") as directory,
    ):
        postgres.migrate(log.dsn)
        facts = asyncio.run(filled(log.dsn, valkey_server.url, Path(directory)))
        yield AnalystDatabase(log, facts)


@pytest.fixture(scope="module")
def analyst_dsn(analyst_database: AnalystDatabase) -> Iterator[str]:
    with analyst_database.analyst() as dsn:
        yield dsn


async def filled(dsn: str, redis_url: str, directory: Path) -> Facts:
    async with open_service(short_lived(dsn, redis_url, directory)) as service:
        return await fill(service)


async def fill(service: Service) -> Facts:
    """One of everything, by two people; times are those of the commands, so that durations are known."""
    await service.install_models()
    slot = (await service.services.store.reader.search(EventFilter(topic="model_slot.activated"), after=0, limit=1))[0]
    first = service.services.store.mapper.event(slot)
    second, activated = await second_model(service, first.task)

    session = sessions.CreateSession(session_id=uuid7(), user_id=PERSON, duration_s=60)
    session_id = (await service.run(sessions.create_session, session, by("ada"))).stream_id
    asset_id = await service.asset(uuid7())
    done, done_at = await finished_job(service, asset_id, session_id, second)
    waiting = (await service.run(jobs.submit_job, noop(), by("bob"))).stream_id
    deleted = (await service.run(jobs.submit_job, noop(), by("ada"))).stream_id
    await service.run(jobs.delete_job, jobs.DeleteJob(job_id=deleted), by("ada"))
    await service.caught_up()
    return Facts(
        done, waiting, deleted, session_id, first.task, [first.model_id, second], [slot.position, activated], done_at
    )


def noop() -> jobs.SubmitJob:
    return jobs.SubmitJob(
        job_id=uuid7(), kind="noop", pending_max=100, callback_url=f"https://caller.example/?{SECRET}"
    )


async def second_model(service: Service, task: str) -> tuple[UUID, int]:
    model_id = uuid7()
    register = models.RegisterModel(
        model_id=model_id, name=MODEL_NAME, framework="onnx", task=task, uri="builtin:second"
    )
    await service.run(models.register_model, register, by("ada"))
    await service.run(models.start_sync, models.StartSync(model_id=model_id), by("ada"))
    complete = models.CompleteSync(
        model_id=model_id, sha256="5" * 64, path="second.onnx", size_bytes=1, origin="builtin"
    )
    await service.run(models.complete_sync, complete, by("ada"))
    activate = model_slots.ActivateModel(model_id=model_id)
    return model_id, (await service.run(model_slots.activate_model, activate, by("ada"))).position


async def finished_job(service: Service, asset_id: UUID, session_id: UUID, model_id: UUID) -> tuple[UUID, int]:
    """A job of ada's that took DURATION_S; and the position of its end."""
    submit = jobs.SubmitJob(
        job_id=uuid7(),
        kind="layer-photo-realistic",
        inputs=(asset_id,),
        session_id=session_id,
        model_version_id=model_id,
        pending_max=100,
    )
    job_id = (await service.run(jobs.submit_job, submit, by("ada"))).stream_id
    begun = lifecycle.now()
    start = attempts.StartJob(job_id=job_id, worker=WORKER, lease_until=begun + timedelta(seconds=60))
    await service.run(attempts.start_job, start, by(WORKER, now=begun))
    complete = attempts.CompleteJob(
        job_id=job_id, attempt=1, worker=WORKER, outputs=(), manifest={}, timings={"run": 2.0}, receipt=Provenance()
    )
    ended = by(WORKER, now=begun + timedelta(seconds=DURATION_S))
    return job_id, (await service.run(attempts.complete_job, complete, ended)).position
