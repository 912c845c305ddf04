"""Read models of comparisons: jobs that were run again, and shadows of candidates over many of them."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, UUID

metadata = sa.MetaData()

Instant = TIMESTAMP(timezone=True)

comparisons = sa.Table(
    "comparisons_v1",
    metadata,
    sa.Column("comparison_id", UUID, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("of_job", UUID, nullable=False),
    sa.Column("rerun_job", UUID),
    sa.Column("model_version_id", UUID),
    sa.Column("tolerance", JSONB, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("verdict", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("differences", JSONB, nullable=False),
    sa.Column("first", JSONB),
    sa.Column("second", JSONB),
    sa.Column("judged_at", Instant),
    sa.PrimaryKeyConstraint("comparison_id", name="comparisons_v1_pkey"),
    sa.CheckConstraint("(status = 'judged') = (verdict IS NOT NULL)", name="comparisons_v1_judged_has_verdict"),
    sa.Index("comparisons_v1_of_job", "of_job"),
    sa.Index("comparisons_v1_running", "rerun_job", postgresql_where=sa.text("status = 'running'")),
)

shadows = sa.Table(
    "shadows_v1",
    metadata,
    sa.Column("shadow_id", UUID, nullable=False),
    sa.Column("started_by", sa.Text, nullable=False),
    sa.Column("model_version_id", UUID, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("kinds", JSONB, nullable=False),
    sa.Column("since", Instant, nullable=False),
    sa.Column("until", Instant, nullable=False),
    sa.Column("sample", ARRAY(UUID), nullable=False),
    sa.Column("tolerance", JSONB, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("identical", sa.Integer, nullable=False),
    sa.Column("equivalent", sa.Integer, nullable=False),
    sa.Column("different", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("latency_ratio_p50", sa.Double),
    sa.Column("latency_ratio_p95", sa.Double),
    sa.Column("worst", JSONB, nullable=False),
    sa.Column("judged_at", Instant),
    sa.PrimaryKeyConstraint("shadow_id", name="shadows_v1_pkey"),
    sa.CheckConstraint("total = identical + equivalent + different + failed", name="shadows_v1_total_is_the_sum"),
    sa.Index("shadows_v1_model", "model_version_id", "position"),
    sa.Index("shadows_v1_running", "created_at", postgresql_where=sa.text("status = 'running'")),
)
