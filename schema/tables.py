"""Every table, as SQLAlchemy Core declares it: the ground that migrations lead to and `alembic check` compares.

Used at migration time alone; at run time queries are SQL. Invariants are CHECKs, so that no floor above can forget them.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSON, TIMESTAMP, UUID

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ck": "%(table_name)s_%(constraint_name)s",
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
    }
)

Instant = TIMESTAMP(timezone=True)

# The event store. No foreign keys here: the log refers to nothing, everything refers to the log.

events = sa.Table(
    "events",
    metadata,
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stream_id", UUID, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("data", JSON, nullable=False),
    sa.Column("metadata", JSON, nullable=False),
    sa.Column("recorded_at", Instant, nullable=False),
    sa.CheckConstraint("position >= 1", name="position_from_one"),
    sa.CheckConstraint("version >= 1", name="version_from_one"),
    sa.Index("events_stream_id_version", "stream_id", "version", unique=True),
)

receipts = sa.Table(
    "receipts",
    metadata,
    sa.Column("command_id", UUID, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("result", JSON),
    sa.Column("recorded_at", Instant, nullable=False),
)

guards = sa.Table(
    "guards",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("move", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.CheckConstraint("value >= 0", name="value_not_negative"),
)

log_head = sa.Table(
    "log_head",
    metadata,
    sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("epoch", UUID, nullable=False),
    sa.CheckConstraint("one", name="only_one"),
)
