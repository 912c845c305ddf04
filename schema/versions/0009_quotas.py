"""Quotas, and the end of their counters.

Revision ID: 0009
Revises: 0008
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

FUNCTION = Path(__file__).parents[1] / "functions" / "prune_quota_counters.sql"

CREATE = """
CREATE TABLE quotas_v1 (
    quota_id UUID NOT NULL,
    principal TEXT NOT NULL,
    day DATE,
    reserved_for UUID,
    jobs BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    compute_ms BIGINT NOT NULL,
    held BOOLEAN NOT NULL,
    jobs_per_day BIGINT,
    bytes_per_day BIGINT,
    compute_s_per_day BIGINT,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    CONSTRAINT quotas_v1_pkey PRIMARY KEY (quota_id),
    CONSTRAINT quotas_v1_reserved_for_something CHECK ((day IS NULL) = (reserved_for IS NULL)),
    CONSTRAINT quotas_v1_amounts_not_negative CHECK (jobs >= 0 AND size_bytes >= 0 AND compute_ms >= 0)
);

CREATE INDEX quotas_v1_day ON quotas_v1 (principal, day);

CREATE VIEW quotas WITH (security_invoker = true) AS SELECT
    quota_id, principal, day, reserved_for, jobs, size_bytes, compute_ms, held, jobs_per_day, bytes_per_day,
    compute_s_per_day, updated_at, version, position
FROM quotas_v1;
"""


def upgrade() -> None:
    op.execute(CREATE)
    schema, login = (
        op.get_bind().execute(sa.text("SELECT quote_ident(current_schema()), quote_ident(current_user)")).one()
    )
    op.execute(FUNCTION.read_text().replace("@schema@", str(schema)).replace(":", "\\:"))
    # Of the one role that may remove counters, as prune_guards is (0001).
    op.execute(f"GRANT CREATE ON SCHEMA {schema} TO sightline_writer")
    op.execute("ALTER FUNCTION prune_quota_counters OWNER TO sightline_writer")
    op.execute("SET ROLE sightline_writer")
    op.execute("REVOKE ALL ON FUNCTION prune_quota_counters FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION prune_quota_counters TO {login}")
    op.execute("RESET ROLE")
    op.execute(f"REVOKE CREATE ON SCHEMA {schema} FROM sightline_writer")


def downgrade() -> None:
    # Nothing is lost: the table is folded from the log again.
    op.execute("DROP FUNCTION prune_quota_counters")
    op.execute("DROP TABLE quotas_v1 CASCADE")
