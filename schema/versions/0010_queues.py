"""Queues of kinds, and what a job waits for.

Revision ID: 0010
Revises: 0009
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

FUNCTION = Path(__file__).parents[1] / "functions" / "prune_start_counters.sql"

CREATE = """
CREATE TABLE queues_v1 (
    queue_id UUID NOT NULL,
    kind TEXT NOT NULL,
    paused BOOLEAN NOT NULL,
    reason TEXT NOT NULL,
    paused_at TIMESTAMP WITH TIME ZONE,
    running_max INTEGER,
    starts_per_minute_max INTEGER,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    CONSTRAINT queues_v1_pkey PRIMARY KEY (queue_id),
    CONSTRAINT queues_v1_kind_key UNIQUE (kind),
    CONSTRAINT queues_v1_paused_since_some_time CHECK (paused = (paused_at IS NOT NULL)),
    CONSTRAINT queues_v1_limits_positive CHECK (running_max > 0 AND starts_per_minute_max > 0)
);

CREATE VIEW queues WITH (security_invoker = true) AS SELECT
    queue_id, kind, paused, reason, paused_at, running_max, starts_per_minute_max, updated_at, version, position
FROM queues_v1;

ALTER TABLE jobs_v1 ADD COLUMN unique_key TEXT;

CREATE INDEX jobs_v1_lines ON jobs_v1 (kind, owner, priority, COALESCE(not_before, created_at))
WHERE status = 'pending';

DROP INDEX jobs_v1_waiting;

CREATE INDEX jobs_v1_ended ON jobs_v1 (kind, finished_at) WHERE status IN ('completed', 'failed');

CREATE INDEX jobs_v1_dead ON jobs_v1 (job_id) WHERE dead_letter;
"""

DROP = """
CREATE INDEX jobs_v1_waiting ON jobs_v1 (kind, created_at) WHERE status = 'pending';
DROP INDEX jobs_v1_lines, jobs_v1_ended, jobs_v1_dead;
DROP TABLE queues_v1 CASCADE;
"""


COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = 'jobs'::regclass AND attnum > 0 AND attname <> 'unique_key'
"""
JOBS = "CREATE OR REPLACE VIEW jobs WITH (security_invoker = true) AS SELECT {columns} FROM jobs_v1"


def upgrade() -> None:
    op.execute(CREATE)
    columns = op.get_bind().execute(sa.text(COLUMNS)).scalar_one()
    op.execute(JOBS.format(columns=f"{columns}, unique_key"))
    op.execute("GRANT SELECT (unique_key) ON jobs_v1 TO sightline_analytics")  # as a rebuilt table has it
    schema, login = (
        op.get_bind().execute(sa.text("SELECT quote_ident(current_schema()), quote_ident(current_user)")).one()
    )
    op.execute(FUNCTION.read_text().replace("@schema@", str(schema)).replace(":", "\\:"))
    # Of the one role that may remove counters, as prune_guards is (0001).
    op.execute(f"GRANT CREATE ON SCHEMA {schema} TO sightline_writer")
    op.execute("ALTER FUNCTION prune_start_counters OWNER TO sightline_writer")
    op.execute("SET ROLE sightline_writer")
    op.execute("REVOKE ALL ON FUNCTION prune_start_counters FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION prune_start_counters TO {login}")
    op.execute("RESET ROLE")
    op.execute(f"REVOKE CREATE ON SCHEMA {schema} FROM sightline_writer")


def downgrade() -> None:
    # Nothing is lost: the table is folded from the log again.
    op.execute("DROP FUNCTION prune_start_counters")
    columns = op.get_bind().execute(sa.text(COLUMNS)).scalar_one()
    op.execute("DROP VIEW jobs")
    op.execute("ALTER TABLE jobs_v1 DROP COLUMN unique_key")
    op.execute(JOBS.format(columns=columns))
    op.execute(DROP)
