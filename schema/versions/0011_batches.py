"""Batches of jobs, the way from a batch to its jobs, and what their submitters call them.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

CREATE = """
CREATE TABLE batches_v1 (
    batch_id UUID NOT NULL,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    total INTEGER NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    cancelled_at TIMESTAMP WITH TIME ZONE,
    cancelled_by TEXT,
    told_at TIMESTAMP WITH TIME ZONE,
    outcome JSONB,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    CONSTRAINT batches_v1_pkey PRIMARY KEY (batch_id),
    CONSTRAINT batches_v1_total_bounded CHECK (total BETWEEN 1 AND 10000),
    CONSTRAINT batches_v1_cancelled_by_somebody CHECK ((cancelled_at IS NULL) = (cancelled_by IS NULL)),
    CONSTRAINT batches_v1_told_with_outcome CHECK ((told_at IS NULL) = (outcome IS NULL))
);

CREATE INDEX batches_v1_open ON batches_v1 (batch_id) WHERE told_at IS NULL;

CREATE VIEW batches WITH (security_invoker = true) AS SELECT
    batch_id, owner, kind, total, created_at, cancelled_at, cancelled_by, told_at, outcome, version, position
FROM batches_v1;

ALTER TABLE jobs_v1 ADD COLUMN ref TEXT;

CREATE INDEX jobs_v1_batch ON jobs_v1 (batch_id, status, job_id) WHERE batch_id IS NOT NULL;
"""

COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = 'jobs'::regclass AND attnum > 0 AND attname <> 'ref'
"""
JOBS = "CREATE OR REPLACE VIEW jobs WITH (security_invoker = true) AS SELECT {columns} FROM jobs_v1"


def upgrade() -> None:
    op.execute(CREATE)
    columns = op.get_bind().execute(sa.text(COLUMNS)).scalar_one()
    op.execute(JOBS.format(columns=f"{columns}, ref"))
    op.execute("GRANT SELECT (ref) ON jobs_v1 TO sightline_analytics")  # as a rebuilt table has it


def downgrade() -> None:
    # Nothing is lost: what goes is folded from the log again.
    columns = op.get_bind().execute(sa.text(COLUMNS)).scalar_one()
    op.execute("DROP VIEW jobs")
    op.execute("ALTER TABLE jobs_v1 DROP COLUMN ref")
    op.execute(JOBS.format(columns=columns))
    op.execute("DROP INDEX jobs_v1_batch")
    op.execute("DROP TABLE batches_v1 CASCADE")
