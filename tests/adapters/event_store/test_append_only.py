"""What is in the log stays: against the role that owns it, against the superuser, and against a downgrade."""

import os
import subprocess
import sys
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.config import Config
from alembic.script import ScriptDirectory
from tests.conftest_log import ROOT, LogDatabase, command, log_rows

from sightline.adapters import postgres
from sightline.adapters.event_store.store import EventStore
from sightline.adapters.event_store.writer import Appended

OURS = "prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql')"
TOAST = "pg_toast"  # named after the table's number, which is another one every time
CHANGES = [
    "UPDATE {} SET recorded_at = now()",
    "UPDATE {} SET recorded_at = now() WHERE false",
    "DELETE FROM {}",
    "TRUNCATE {}",
    "TRUNCATE {} CASCADE",
    "MERGE INTO {} AS t USING log_head AS h ON true WHEN MATCHED THEN DELETE",
]


async def filled(store: EventStore) -> None:
    assert isinstance(await store.append(command((uuid4(), 0), events_each=3)), Appended)


@pytest.mark.parametrize("table", ["events", "receipts"])
@pytest.mark.parametrize("change", CHANGES)
async def test_nobody_changes_what_was_written(
    store: EventStore, log_database: LogDatabase, table: str, change: str
) -> None:
    await filled(store)
    before = log_rows(log_database)
    with log_database.connect() as owner, pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute(change.format(table).encode())
    with log_database.connect(superuser=True) as superuser:
        for role in ("origin", "replica"):
            superuser.execute(f"SET session_replication_role = {role}".encode())
            with pytest.raises(psycopg.Error, match="is append-only") as caught:
                superuser.execute(change.format(table).encode())
            assert caught.value.sqlstate == "SL002"
    assert log_rows(log_database) == before


async def test_without_always_the_replica_role_gets_past(store: EventStore, log_database: LogDatabase) -> None:
    """The control: an ordinary trigger would not have been enough."""
    await filled(store)
    with log_database.connect(superuser=True) as superuser:
        superuser.execute("ALTER TABLE events ENABLE TRIGGER append_only")
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("DELETE FROM events")
    assert log_rows(log_database) == []


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO events VALUES (1, gen_random_uuid(), 1, 't', '{}', '{}', now())",
        "INSERT INTO receipts VALUES (gen_random_uuid(), 1, NULL, now())",
        "INSERT INTO guards VALUES ('k', 1, 1)",
        "UPDATE log_head SET epoch = gen_random_uuid()",
        "COPY events FROM STDIN",
        "SELECT move_guards('{}', '{}', '{}', '{}', '{}')",
    ],
)
def test_the_function_is_the_only_way_in(log_database: LogDatabase, statement: str) -> None:
    with log_database.connect() as owner, pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute(statement.encode())


def test_a_stranger_may_not_even_append(log_database: LogDatabase) -> None:
    with log_database.connect(superuser=True) as superuser:
        superuser.execute("CREATE ROLE stranger")
        try:
            superuser.execute("SET ROLE stranger")
            for query in ("SELECT append_batch" + str(("",) * 18).replace("''", "NULL"), "SELECT FROM events"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    superuser.execute(query.encode())
        finally:
            superuser.execute("RESET ROLE")
            superuser.execute("DROP ROLE stranger")


# Migrations


def run(database: LogDatabase, revision: str, *, down: bool = False) -> None:
    engine = sa.create_engine(postgres.sqlalchemy_url(database.dsn))
    try:
        with engine.connect() as connection:
            config = configuration(connection)
            (alembic.downgrade if down else alembic.upgrade)(config, revision)
    finally:
        engine.dispose()


def configuration(connection: sa.Connection) -> Config:
    config = postgres.migrations()
    config.attributes["connection"] = connection
    return config


async def test_a_downgrade_is_refused_while_there_are_events(store: EventStore, log_database: LogDatabase) -> None:
    await filled(store)
    with pytest.raises(RuntimeError, match="the log has events"):
        run(log_database, "base", down=True)
    assert len(log_rows(log_database)) == 3
    with log_database.connect() as connection:  # nothing of it happened, the read models' tables included
        connection.execute("SELECT FROM jobs")
    assert isinstance(await store.append(command((uuid4(), 0))), Appended)


def test_up_down_up_on_an_empty_log(empty_database: LogDatabase) -> None:
    run(empty_database, "head")
    first = declared(empty_database)
    run(empty_database, "base", down=True)
    with empty_database.connect() as connection:
        left = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchall()
        functions = connection.execute(f"SELECT proname FROM pg_proc WHERE {OURS}".encode()).fetchall()
    assert {name for (name,) in left} == {"alembic_version", "alembic_version_pkc"}
    assert functions == []
    run(empty_database, "head")
    assert declared(empty_database) == first
    postgres.migrate(empty_database.dsn)  # again, by a process that starts later: nothing to do
    with empty_database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM log_head").fetchone() == (1,)


def declared(database: LogDatabase) -> list[tuple[str, ...]]:
    """Columns, indexes, constraints, triggers, functions and rights, as the catalogue has them."""
    queries = [
        "SELECT attrelid::regclass::text, attname, atttypid::regtype::text, attnotnull FROM pg_attribute",
        "SELECT tablename, indexdef FROM pg_indexes",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint",
        "SELECT tgrelid::regclass::text, tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal",
        f"SELECT proname, proowner::regrole::text, proacl::text, proconfig::text, prosrc FROM pg_proc WHERE {OURS}",
        "SELECT relname, relkind, relacl::text FROM pg_class WHERE relkind NOT IN ('t', 'i')",
    ]
    with database.connect() as connection:
        found = [row for query in queries for row in connection.execute(query.encode()) if TOAST not in row[0]]
    return sorted(found, key=repr)


def test_what_is_declared_is_what_is_migrated(log_database: LogDatabase) -> None:
    engine = sa.create_engine(postgres.sqlalchemy_url(log_database.dsn))
    try:
        with engine.connect() as connection:
            alembic.check(configuration(connection))
            connection.execute(sa.text("ALTER TABLE events ADD COLUMN drifted text"))
            connection.commit()
            with pytest.raises(Exception, match="drifted"):  # the control; Alembic's own AutogenerateDiffsDetected
                alembic.check(configuration(connection))
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    ("words", "expected"), [("history", "head"), ("current", "(head)"), ("check", "No new upgrade")]
)
def test_the_alembic_command_works_as_it_is(log_database: LogDatabase, words: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", words],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": log_database.dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout + done.stderr
    newest = ScriptDirectory.from_config(postgres.migrations()).get_current_head()
    assert words == "check" or str(newest) in done.stdout
