"""Webhooks and their deliveries.

Revision ID: 0012
Revises: 0011
"""

from alembic import op

revision = "0012"
down_revision = "0011"

CREATE = """
CREATE TABLE webhooks_v1 (
    webhook_id UUID NOT NULL,
    owner TEXT NOT NULL,
    url TEXT NOT NULL,
    types JSONB NOT NULL,
    kinds JSONB,
    status TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    disabled_reason TEXT,
    previous_until TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhooks_v1_pkey PRIMARY KEY (webhook_id),
    CONSTRAINT webhooks_v1_status_known CHECK (status IN ('active', 'disabled', 'deleted'))
);

CREATE VIEW webhooks WITH (security_invoker = true) AS SELECT
    webhook_id, owner, url, types, kinds, status, created_at, updated_at, version, position, disabled_reason,
    previous_until
FROM webhooks_v1;

CREATE TABLE webhook_outbox (position BIGINT NOT NULL);

-- What is in the log by now was nobody's to be told.
INSERT INTO webhook_outbox SELECT coalesce(max(position), 0) FROM events;

CREATE TABLE webhook_subscriptions (
    webhook_id UUID NOT NULL,
    owner TEXT NOT NULL,
    url TEXT NOT NULL,
    types JSONB NOT NULL,
    kinds JSONB,
    active BOOLEAN NOT NULL,
    failing_since TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhook_subscriptions_pkey PRIMARY KEY (webhook_id)
);

CREATE TABLE webhook_deliveries (
    delivery_id UUID NOT NULL,
    webhook_id UUID,
    job_id UUID,
    url TEXT,
    host TEXT NOT NULL,
    message_id TEXT NOT NULL,
    type TEXT NOT NULL,
    body TEXT NOT NULL,
    event_position BIGINT NOT NULL,
    status TEXT NOT NULL,
    attempts_made INTEGER NOT NULL,
    tries_left INTEGER NOT NULL,
    next_attempt_at TIMESTAMP WITH TIME ZONE NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (delivery_id),
    CONSTRAINT webhook_deliveries_status_known CHECK (status IN ('pending', 'delivered', 'failed', 'abandoned')),
    CONSTRAINT webhook_deliveries_to_one_receiver CHECK ((webhook_id IS NULL) = (url IS NOT NULL)),
    CONSTRAINT webhook_deliveries_over_or_not CHECK ((status = 'pending') = (finished_at IS NULL))
);

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (host, next_attempt_at) WHERE status = 'pending';
CREATE INDEX webhook_deliveries_of_webhook ON webhook_deliveries (webhook_id, event_position);
CREATE INDEX webhook_deliveries_of_job ON webhook_deliveries (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE webhook_attempts (
    delivery_id UUID NOT NULL,
    number INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    duration_ms INTEGER NOT NULL,
    status_code INTEGER,
    error TEXT,
    answer TEXT NOT NULL,
    CONSTRAINT webhook_attempts_pkey PRIMARY KEY (delivery_id, number),
    CONSTRAINT webhook_attempts_of_delivery FOREIGN KEY (delivery_id)
        REFERENCES webhook_deliveries (delivery_id) ON DELETE CASCADE
);
"""


def upgrade() -> None:
    op.execute(CREATE)


def downgrade() -> None:
    # Who wants to be told is in the log; what was told so far, and how often it was tried, goes.
    op.execute(
        "DROP TABLE webhook_attempts, webhook_deliveries, webhook_subscriptions, webhook_outbox, webhooks_v1 CASCADE"
    )
