"""What the projector keeps beside the read models: their history, streams set aside, and what was done to each."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSON, TIMESTAMP, UUID

metadata = sa.MetaData()

Instant = TIMESTAMP(timezone=True)

# Each row as it was from a position on. Filled by the projector together with the row itself.

for name, key in (("jobs", "job_id"), ("sessions", "session_id"), ("models", "model_id"), ("model_slots", "slot_id")):
    sa.Table(
        f"{name}_history_v1",
        metadata,
        sa.Column(key, UUID, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("at", Instant, nullable=False),
        sa.Column("row", JSON, nullable=False),
        sa.PrimaryKeyConstraint(key, "position", name=f"{name}_history_v1_pkey"),
    )

projection_quarantine = sa.Table(
    "projection_quarantine",
    metadata,
    sa.Column("stream_id", UUID, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("since", Instant, nullable=False),
    sa.PrimaryKeyConstraint("stream_id", name="projection_quarantine_pkey"),
    sa.CheckConstraint("position >= 1", name="projection_quarantine_position_from_one"),
)

# What was last done to each read model, and what is being done now. A model of which nothing was ever asked has no row.

projections = sa.Table(
    "projections",
    metadata,
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("rebuilt_at", Instant),
    sa.Column("rebuilt_position", sa.BigInteger),
    sa.Column("verified_at", Instant),
    sa.Column("verified_position", sa.BigInteger),
    sa.Column("equal", sa.Boolean),
    sa.Column("digest", sa.Text),
    sa.Column("task", sa.Text),
    sa.Column("task_started_at", Instant),
    sa.Column("task_position", sa.BigInteger),
    sa.Column("task_error", sa.Text),
    sa.PrimaryKeyConstraint("name", name="projections_pkey"),
    sa.CheckConstraint("task IN ('rebuild', 'verify')", name="projections_task_known"),
    sa.CheckConstraint("(task IS NULL) = (task_started_at IS NULL)", name="projections_task_started"),
)
