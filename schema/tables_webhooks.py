"""Webhooks as readers see them, and the outbox of their deliveries."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID

metadata = sa.MetaData()

Instant = TIMESTAMP(timezone=True)

webhooks = sa.Table(
    "webhooks_v1",
    metadata,
    sa.Column("webhook_id", UUID, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("types", JSONB, nullable=False),
    sa.Column("kinds", JSONB),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("previous_until", Instant),
    sa.PrimaryKeyConstraint("webhook_id", name="webhooks_v1_pkey"),
    sa.CheckConstraint("status IN ('active', 'disabled', 'deleted')", name="webhooks_v1_status_known"),
)

# Where the outbox is in the log; one row.
outbox = sa.Table(
    "webhook_outbox",
    metadata,
    sa.Column("position", sa.BigInteger, nullable=False),
)

# Who wants to be told what, as of the outbox's position.
subscriptions = sa.Table(
    "webhook_subscriptions",
    metadata,
    sa.Column("webhook_id", UUID, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("types", JSONB, nullable=False),
    sa.Column("kinds", JSONB),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("failing_since", Instant),
    sa.PrimaryKeyConstraint("webhook_id", name="webhook_subscriptions_pkey"),
)

# A webhook's, or of a job's callback_url, which is then its url.
deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("delivery_id", UUID, nullable=False),
    sa.Column("webhook_id", UUID),
    sa.Column("job_id", UUID),
    sa.Column("url", sa.Text),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("message_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("event_position", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempts_made", sa.Integer, nullable=False),
    sa.Column("tries_left", sa.Integer, nullable=False),
    sa.Column("next_attempt_at", Instant, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("finished_at", Instant),
    sa.PrimaryKeyConstraint("delivery_id", name="webhook_deliveries_pkey"),
    sa.CheckConstraint(
        "status IN ('pending', 'delivered', 'failed', 'abandoned')", name="webhook_deliveries_status_known"
    ),
    sa.CheckConstraint("(webhook_id IS NULL) = (url IS NOT NULL)", name="webhook_deliveries_to_one_receiver"),
    sa.CheckConstraint("(status = 'pending') = (finished_at IS NULL)", name="webhook_deliveries_over_or_not"),
    sa.Index("webhook_deliveries_due", "host", "next_attempt_at", postgresql_where=sa.text("status = 'pending'")),
    sa.Index("webhook_deliveries_of_webhook", "webhook_id", "event_position"),
    sa.Index("webhook_deliveries_of_job", "job_id", postgresql_where=sa.text("job_id IS NOT NULL")),
    sa.Index("webhook_deliveries_finished", "finished_at", postgresql_where=sa.text("finished_at IS NOT NULL")),
)

attempts = sa.Table(
    "webhook_attempts",
    metadata,
    sa.Column("delivery_id", UUID, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("duration_ms", sa.Integer, nullable=False),
    sa.Column("status_code", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("answer", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("delivery_id", "number", name="webhook_attempts_pkey"),
    sa.ForeignKeyConstraint(
        ["delivery_id"],
        ["webhook_deliveries.delivery_id"],
        name="webhook_attempts_of_delivery",
        ondelete="CASCADE",
    ),
)
