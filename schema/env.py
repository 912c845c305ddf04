"""Alembic's way in: which database, which tables, and the rules that every migration runs under.

`sightline migrate` hands its connection over; the plain `alembic` command reads the same settings as every process,
and so works on `DATABASE_URL` as well as on an embedded data directory.
"""

import runpy
from pathlib import Path

import sqlalchemy as sa
from alembic import context

from sightline.adapters import settings
from sightline.adapters.embedded.parts import Parts
from sightline.adapters.postgres import sqlalchemy_url

LOCK_TIMEOUT_MS = 5_000  # a migration that cannot have its lock gives up instead of queueing everybody behind it

# tables.py, and beside it one file per room that keeps tables of its own.
metadata = [runpy.run_path(str(path))["metadata"] for path in sorted(Path(__file__).parent.glob("tables*.py"))]


def migrate(connection: sa.Connection) -> None:
    connection.execute(sa.text(f"SET lock_timeout = {LOCK_TIMEOUT_MS}"))
    connection.commit()
    context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with Parts(settings.read()) as ready:
        engine = sa.create_engine(sqlalchemy_url(ready.database_url))
        with engine.connect() as opened:
            migrate(opened)
        engine.dispose()
