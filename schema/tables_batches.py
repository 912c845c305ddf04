"""Read model of batches, as each one's own stream tells it; how many of its jobs are where is counted from the jobs."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID

metadata = sa.MetaData()

Instant = TIMESTAMP(timezone=True)

batches = sa.Table(
    "batches_v1",
    metadata,
    sa.Column("batch_id", UUID, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("cancelled_at", Instant),
    sa.Column("cancelled_by", sa.Text),
    sa.Column("told_at", Instant),
    sa.Column("outcome", JSONB),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("batch_id", name="batches_v1_pkey"),
    sa.CheckConstraint("total BETWEEN 1 AND 10000", name="batches_v1_total_bounded"),
    sa.CheckConstraint("(cancelled_at IS NULL) = (cancelled_by IS NULL)", name="batches_v1_cancelled_by_somebody"),
    sa.CheckConstraint("(told_at IS NULL) = (outcome IS NULL)", name="batches_v1_told_with_outcome"),
    sa.Index("batches_v1_open", "batch_id", postgresql_where=sa.text("told_at IS NULL")),
)
