"""Comparisons of a job's outputs with those of a later run.

Revision ID: 0013
Revises: 0012
"""

from alembic import op

revision = "0013"
down_revision = "0012"

CREATE = """
CREATE TABLE comparisons_v1 (
    comparison_id UUID NOT NULL,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    status TEXT NOT NULL,
    of_job UUID NOT NULL,
    rerun_job UUID,
    model_version_id UUID,
    tolerance JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    verdict TEXT,
    reason TEXT NOT NULL,
    differences JSONB NOT NULL,
    first JSONB,
    second JSONB,
    judged_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT comparisons_v1_pkey PRIMARY KEY (comparison_id),
    CONSTRAINT comparisons_v1_judged_has_verdict CHECK ((status = 'judged') = (verdict IS NOT NULL))
);

CREATE INDEX comparisons_v1_of_job ON comparisons_v1 (of_job);

CREATE INDEX comparisons_v1_running ON comparisons_v1 (rerun_job) WHERE status = 'running';

CREATE VIEW comparisons WITH (security_invoker = true) AS SELECT
    comparison_id, owner, purpose, status, of_job, rerun_job, model_version_id, tolerance, created_at, updated_at,
    version, position, verdict, reason, differences, first, second, judged_at
FROM comparisons_v1;

CREATE TABLE shadows_v1 (
    shadow_id UUID NOT NULL,
    started_by TEXT NOT NULL,
    model_version_id UUID NOT NULL,
    task TEXT NOT NULL,
    kinds JSONB NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    sample UUID[] NOT NULL,
    tolerance JSONB NOT NULL,
    status TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    total INTEGER NOT NULL,
    identical INTEGER NOT NULL,
    equivalent INTEGER NOT NULL,
    different INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    latency_ratio_p50 DOUBLE PRECISION,
    latency_ratio_p95 DOUBLE PRECISION,
    worst JSONB NOT NULL,
    judged_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT shadows_v1_pkey PRIMARY KEY (shadow_id),
    CONSTRAINT shadows_v1_total_is_the_sum CHECK (total = identical + equivalent + different + failed)
);

CREATE INDEX shadows_v1_model ON shadows_v1 (model_version_id, position);

CREATE INDEX shadows_v1_running ON shadows_v1 (created_at) WHERE status = 'running';

CREATE VIEW shadows WITH (security_invoker = true) AS SELECT
    shadow_id, started_by, model_version_id, task, kinds, since, until, sample, tolerance, status, created_at,
    updated_at, version, position, total, identical, equivalent, different, failed, latency_ratio_p50,
    latency_ratio_p95, worst, judged_at
FROM shadows_v1;
"""

# Figures about work: without what a shadow had done, whose jobs the candidate itself owns (domain/shadows.py).
FIGURES = """
CREATE OR REPLACE FUNCTION analytics.job_durations_between(since timestamptz, until timestamptz) RETURNS TABLE (
    model_version_id uuid, model_name text, model_sha256 text, kind text, count bigint,
    p50_s double precision, p95_s double precision, p99_s double precision
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        j.model_version_id, m.name, j.model_sha256, j.kind, count(*),
        percentile_cont(0.5) WITHIN GROUP (ORDER BY j.duration_s),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY j.duration_s),
        percentile_cont(0.99) WITHIN GROUP (ORDER BY j.duration_s)
    FROM analytics.jobs AS j LEFT JOIN analytics.models AS m ON m.model_id = j.model_version_id
    WHERE j.status = 'completed' AND j.finished_at >= (SELECT since) AND j.finished_at < (SELECT until) {and_real}
    GROUP BY 1, 2, 3, 4;
END;

CREATE OR REPLACE VIEW analytics.jobs_by_state_per_day WITH (security_barrier) AS SELECT
    (created_at AT TIME ZONE 'UTC')::date AS day, kind, status, count(*) AS count,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_s) AS p95_s
FROM analytics.jobs {where_real} GROUP BY 1, 2, 3;
"""
NOT_A_SHADOWS = "NOT starts_with({table}.owner, 'shadow:')"


def upgrade() -> None:
    op.execute(CREATE)
    real, day = NOT_A_SHADOWS.format(table="j"), NOT_A_SHADOWS.format(table="jobs")
    _replace(FIGURES.format(and_real=f"AND {real}", where_real=f"WHERE {day}"))


def downgrade() -> None:
    _replace(FIGURES.format(and_real="", where_real=""))
    # Nothing is lost: the tables are folded from the log again.
    op.execute("DROP TABLE comparisons_v1 CASCADE")
    op.execute("DROP TABLE shadows_v1 CASCADE")


def _replace(figures: str) -> None:
    """As the owner of the views, who may make none otherwise (0006)."""
    op.execute("GRANT CREATE ON SCHEMA analytics TO sightline_analytics")
    op.execute("SET ROLE sightline_analytics")
    op.execute(figures)
    op.execute("RESET ROLE")
    op.execute("REVOKE CREATE ON SCHEMA analytics FROM sightline_analytics")
