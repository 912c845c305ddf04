"""The event log: events, receipts, guards, the head, and the one function that appends.

Revision ID: 0001
Revises: nothing
"""

import uuid
from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

FUNCTIONS = Path(__file__).parents[1] / "functions"
INSTANT = postgresql.TIMESTAMP(timezone=True)
LOG_TABLES = ("events", "receipts", "guards", "log_head")

# The role that owns append_batch is the only one that may insert: the login role, though it owns the tables, takes
# the right from itself. Roles belong to the whole server, so another database may have made it already.
WRITER_ROLE = """
DO $$ BEGIN
    CREATE ROLE sightline_writer NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("position", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("stream_id", postgresql.UUID, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("data", postgresql.JSON, nullable=False),
        sa.Column("metadata", postgresql.JSON, nullable=False),
        sa.Column("recorded_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("position", name="events_pkey"),
        sa.CheckConstraint("position >= 1", name="position_from_one"),
        sa.CheckConstraint("version >= 1", name="version_from_one"),
    )
    op.create_index("events_stream_id_version", "events", ["stream_id", "version"], unique=True)
    op.create_table(
        "receipts",
        sa.Column("command_id", postgresql.UUID, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("result", postgresql.JSON),
        sa.Column("recorded_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("command_id", name="receipts_pkey"),
    )
    op.create_table(
        "guards",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("move", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", "move", name="guards_pkey"),
        sa.CheckConstraint("value >= 0", name="value_not_negative"),
    )
    op.create_table(
        "log_head",
        sa.Column("one", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("epoch", postgresql.UUID, nullable=False),
        sa.PrimaryKeyConstraint("one", name="log_head_pkey"),
        sa.CheckConstraint("one", name="only_one"),
    )
    # Whoever connects reads the log in UTC; a pooler between would lose a SET of ours.
    op.execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone TO ''UTC''', current_database()); END $$")
    op.execute(sa.text("INSERT INTO log_head (epoch) VALUES (:epoch)").bindparams(epoch=uuid.uuid4()))

    for name in ("append_only", "move_guards", "append_batch", "prune_guards"):
        op.execute(function(name))
    for table in ("events", "receipts"):
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION append_only()"
        )
        # ALWAYS: not even `SET session_replication_role = replica` gets past it.
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only")
    hand_to_writer()


def hand_to_writer() -> None:
    schema, login = (
        op.get_bind().execute(sa.text("SELECT quote_ident(current_schema()), quote_ident(current_user)")).one()
    )
    op.execute(WRITER_ROLE)
    op.execute("GRANT sightline_writer TO CURRENT_USER WITH INHERIT FALSE, SET TRUE")
    op.execute(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO sightline_writer")
    op.execute(f"GRANT SELECT, INSERT ON {', '.join(LOG_TABLES[:3])} TO sightline_writer")
    op.execute("GRANT DELETE ON guards TO sightline_writer")  # for prune_guards
    op.execute("GRANT SELECT, UPDATE ON log_head TO sightline_writer")  # UPDATE is what FOR UPDATE asks for
    for name in ("append_batch", "move_guards", "prune_guards"):
        op.execute(f"ALTER FUNCTION {name} OWNER TO sightline_writer")
    # Said by the new owner: from anybody else a REVOKE is a warning that changes nothing.
    op.execute("SET ROLE sightline_writer")
    op.execute("REVOKE ALL ON FUNCTION append_batch, move_guards, prune_guards FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION append_batch, prune_guards TO {login}")
    op.execute("RESET ROLE")
    op.execute(f"REVOKE CREATE ON SCHEMA {schema} FROM sightline_writer")
    op.execute(f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {', '.join(LOG_TABLES)} FROM PUBLIC, CURRENT_USER")


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM events)")):
        raise RuntimeError("the log has events: a downgrade would lose them and is refused")
    for name in ("append_batch", "move_guards", "prune_guards"):
        op.execute(f"DROP FUNCTION {name}")
    for table in LOG_TABLES:
        op.drop_table(table)
    op.execute("DROP FUNCTION append_only")


def function(name: str) -> str:
    """The text of one function, for the schema that this migration runs in."""
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    return (FUNCTIONS / f"{name}.sql").read_text().replace("@schema@", str(schema)).replace(":", "\\:")
