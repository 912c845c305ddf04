"""A log of a test's own: a database copied from one migrated template, and commands small enough to read."""

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio
from eventsourcing.persistence import StoredEvent
from msgspec import Struct
from psycopg import sql
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper
from psycopg.conninfo import make_conninfo
from psycopg.pq import Format

from sightline.adapters import postgres
from sightline.adapters.embedded.postgres import ROLE, PostgresServer
from sightline.adapters.event_store import wire
from sightline.adapters.event_store.store import EventStore, open_event_store
from sightline.adapters.event_store.wire import Append, Expectation, Guard
from sightline.domain.events import EVENTS

ROOT = Path(__file__).parents[1]
TEMPLATE = "log_template"
METADATA = b'{"actor":"ada","correlation_id":"c","causation_id":"c","command_id":"c"}'
EVENT_DATA = b'{"type":"session.closed","at":"2026-01-01T00:00:00Z","by":"ada"}'

_numbers = itertools.count(1)


class LogDatabase(Struct, frozen=True):
    """A database with an empty log.

    Attributes:
        dsn: as the login role, which owns it.
        superuser_dsn: the same database as the superuser.
    """

    dsn: str
    superuser_dsn: str

    def connect(self, *, superuser: bool = False) -> psycopg.Connection:
        return psycopg.connect(self.superuser_dsn if superuser else self.dsn, autocommit=True)


@contextmanager
def database(server: PostgresServer, name: str, template: str) -> Iterator[LogDatabase]:
    """A database of the login role's, dropped at the end with whoever is still connected."""
    with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY file_copy").format(  # the quicker without fsync
                *map(sql.Identifier, (name, template, ROLE))
            )
        )
    try:
        yield LogDatabase(make_conninfo(server.dsn, dbname=name), make_conninfo(server.superuser_dsn, dbname=name))
    finally:
        with psycopg.connect(server.superuser_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def log_template(postgres_server: PostgresServer) -> Iterator[str]:
    with database(postgres_server, TEMPLATE, "template1") as made:
        postgres.migrate(made.dsn)
        yield TEMPLATE


@pytest.fixture
def log_database(postgres_server: PostgresServer, log_template: str) -> Iterator[LogDatabase]:
    """An empty, migrated, never analysed log."""
    with database(postgres_server, f"log_{next(_numbers)}", log_template) as made:
        yield made


@pytest.fixture
def empty_database(postgres_server: PostgresServer) -> Iterator[LogDatabase]:
    """Not migrated."""
    with database(postgres_server, f"log_{next(_numbers)}", "template1") as made:
        yield made


@pytest_asyncio.fixture
async def store(log_database: LogDatabase) -> AsyncIterator[EventStore]:
    """The event store on `log_database`; a writer that dies fails the test."""
    deaths: list[BaseException] = []
    async with open_event_store(log_database.dsn, EVENTS, on_death=deaths.append) as opened:
        yield opened
    assert deaths == []


def event(stream: UUID, version: int, data: bytes = EVENT_DATA) -> StoredEvent:
    return StoredEvent(originator_id=stream, originator_version=version, topic="session.closed", state=data)


def command(
    *writes: tuple[UUID, int],
    looks: Sequence[tuple[UUID, int]] = (),
    guards: Sequence[Guard] = (),
    command_id: UUID | None = None,
    events_each: int = 1,
    result: bytes | None = None,
    data: bytes = EVENT_DATA,
) -> Append:
    """One command that expects each stream of `writes` at its version and adds events, and merely looks at others."""
    return Append(
        command_id=command_id or uuid4(),
        expectations=[
            *(Expectation(stream, version, writes=True) for stream, version in writes),
            *(Expectation(stream, version, writes=False) for stream, version in looks),
        ],
        events=[event(stream, version + n, data) for stream, version in writes for n in range(1, events_each + 1)],
        metadata=METADATA,
        guards=guards,
        result=result,
    )


def utc(hour: int) -> datetime:
    return datetime(2026, 1, 1, hour, tzinfo=UTC)


def log_rows(database: LogDatabase) -> list[tuple[int, UUID, int]]:
    """The whole log: position, stream, version."""
    with database.connect() as connection:
        return connection.execute("SELECT position, stream_id, version FROM events ORDER BY position").fetchall()


def assert_whole(rows: Sequence[tuple[int, UUID, int]]) -> None:
    """Positions follow one another from 1, and so do the versions of each stream, in the order of positions."""
    versions: dict[UUID, int] = {}
    for n, (position, stream, version) in enumerate(rows, 1):
        assert position == n
        assert version == versions.get(stream, 0) + 1
        versions[stream] = version


class ArrayDumper(Dumper):
    """A column of a batch as psycopg sends it, for tests that call append_batch without the writer's channel."""

    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        payload: bytes = obj.payload
        return payload


def register_arrays(context: AdaptContext) -> None:
    """Teach one connection the parameters of wire.STATEMENT."""
    for kind, (oid, _) in wire._OIDS.items():
        context.adapters.register_dumper(kind, type(f"{kind.__name__}Dumper", (ArrayDumper,), {"oid": oid}))
