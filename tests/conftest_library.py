"""The log of the library face, for its tests: where it is, and no schema left from the test before."""

from collections.abc import Iterator

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from tests.conftest_log import LogDatabase, database

from sightline.adapters.embedded.postgres import PostgresServer

MODULE = "sightline.adapters.event_store.library"


def environment(dsn: str, **more: str) -> dict[str, str]:
    parts = conninfo_to_dict(dsn)
    return {
        "PERSISTENCE_MODULE": MODULE,
        "POSTGRES_DBNAME": str(parts["dbname"]),
        "POSTGRES_HOST": str(parts["host"]),
        "POSTGRES_PORT": str(parts.get("port", 5432)),
        "POSTGRES_USER": str(parts["user"]),
        "POSTGRES_PASSWORD": str(parts.get("password") or ""),
        **more,
    }


def drop_schemas(made: LogDatabase) -> None:
    with made.connect() as connection:
        schemas = connection.execute("SELECT table_schema FROM information_schema.tables WHERE table_name = 'face'")
        for (schema,) in schemas.fetchall():
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


@pytest.fixture(scope="module")
def library_database(postgres_server: PostgresServer) -> Iterator[LogDatabase]:
    with database(postgres_server, "library", "template1") as made:
        yield made


@pytest.fixture
def variables(library_database: LogDatabase) -> Iterator[dict[str, str]]:
    yield environment(library_database.dsn)
    drop_schemas(library_database)
