"""Read model of queues: what was said of all jobs of a kind."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TIMESTAMP, UUID

metadata = sa.MetaData()

Instant = TIMESTAMP(timezone=True)

queues = sa.Table(
    "queues_v1",
    metadata,
    sa.Column("queue_id", UUID, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("paused_at", Instant),
    sa.Column("running_max", sa.Integer),
    sa.Column("starts_per_minute_max", sa.Integer),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("queue_id", name="queues_v1_pkey"),
    sa.UniqueConstraint("kind", name="queues_v1_kind_key"),
    sa.CheckConstraint("paused = (paused_at IS NOT NULL)", name="queues_v1_paused_since_some_time"),
    sa.CheckConstraint("running_max > 0 AND starts_per_minute_max > 0", name="queues_v1_limits_positive"),
)
