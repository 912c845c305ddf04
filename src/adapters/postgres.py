"""PostgreSQL as every floor above meets it: connections, JSON as bytes, LISTEN, migrations."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.engine import URL

SOURCE = Path(__file__).resolve().parents[1]
CONNECT_TIMEOUT_S = 5
PREPARE_AFTER_USES = 5
MIGRATOR_WAIT_S = 60


class JsonBytes(Loader):
    """A `json` column as the exact bytes that are stored; whoever needs a value decodes it into its struct."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


def adapt(context: AdaptContext | None) -> None:
    if context is not None:
        context.adapters.register_loader("json", JsonBytes)


async def connect(dsn: str, *, prepare: bool = True) -> psycopg.AsyncConnection:
    """One autocommit connection.

    Args:
        dsn: a URL or conninfo.
        prepare: prepared statements; off behind a PgBouncer that cannot keep them.

    Raises:
        psycopg.OperationalError: nobody answered within CONNECT_TIMEOUT_S.
    """
    connection = await psycopg.AsyncConnection.connect(
        dsn,
        autocommit=True,
        prepare_threshold=0 if prepare else None,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="sightline",
    )
    adapt(connection)
    return connection


async def _configure(connection: psycopg.AsyncConnection) -> None:
    adapt(connection)
    if connection.prepare_threshold is not None:
        # A prepared plan outlives the table that it was made for: scanning was right while that fitted on a page.
        await connection.execute("SET enable_seqscan = off")


@asynccontextmanager
async def pool(dsn: str, *, connections_max: int = 8, prepare: bool = True) -> AsyncIterator[AsyncConnectionPool]:
    """Autocommit connections for queries, each checked before it is lent, so that a restarted server costs no error.

    Without `prepare` (see connect) a query that asks to be prepared is not, either.
    """
    opened = AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=connections_max,
        timeout=CONNECT_TIMEOUT_S,
        kwargs={
            "autocommit": True,
            "application_name": "sightline",
            "connect_timeout": CONNECT_TIMEOUT_S,
            "prepare_threshold": PREPARE_AFTER_USES if prepare else None,
        },
        configure=_configure,
        check=AsyncConnectionPool.check_connection,
        open=False,
    )
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


def sqlalchemy_url(dsn: str) -> "URL":
    """The same database for SQLAlchemy, which alone at migration time speaks to it."""
    from sqlalchemy.engine import URL  # noqa: PLC0415  # a third of a second that only migrations need

    parts = conninfo_to_dict(dsn)
    query = {"host": str(parts["host"])} if str(parts.get("host", "")).startswith("/") else {}
    return URL.create(
        "postgresql+psycopg",
        username=_text(parts.get("user")),
        password=_text(parts.get("password")),
        host=None if query else _text(parts.get("host")),
        port=int(str(parts["port"])) if parts.get("port") else None,
        database=_text(parts.get("dbname")),
        query=query,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def migrations() -> "Config":
    """Alembic's configuration, wherever the package lies: beside `schema/` in a checkout, around it in a wheel."""
    from alembic.config import Config  # noqa: PLC0415  # as above

    inside = SOURCE / "schema"
    config = Config()
    config.set_main_option("script_location", str(inside if inside.is_dir() else SOURCE.parent / "schema"))
    return config


def migrate(dsn: str, revision: str = "head") -> None:
    """Bring the database's schema to `revision`, one migrator at a time.

    Raises:
        sqlalchemy.exc.OperationalError: no connection, or a lock was not to be had in time.
    """
    import sqlalchemy as sa  # noqa: PLC0415  # as above
    from alembic import command as alembic  # noqa: PLC0415  # as above

    engine = sa.create_engine(sqlalchemy_url(dsn))
    try:
        with engine.connect() as connection:
            # Two processes that start together must not both create the tables; nor may whoever else takes this lock
            # keep a start waiting for ever.
            connection.execute(sa.text(f"SET lock_timeout = '{MIGRATOR_WAIT_S}s'"))
            connection.execute(sa.text("SELECT pg_advisory_lock(hashtext('sightline.migrate'))"))
            connection.commit()
            config = migrations()
            config.attributes["connection"] = connection
            alembic.upgrade(config, revision)
    finally:
        engine.dispose()
