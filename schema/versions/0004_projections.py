"""History, quarantine and rebuilds of read models.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"

KEYS = {"jobs": "job_id", "sessions": "session_id", "models": "model_id", "model_slots": "slot_id"}

# The whole row as it was from a position on; only ever added to.
HISTORY = """
CREATE TABLE {name}_history_v1 (
    {key} UUID NOT NULL,
    position BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    row JSON NOT NULL,
    CONSTRAINT {name}_history_v1_pkey PRIMARY KEY ({key}, position)
);

CREATE VIEW {name}_history WITH (security_invoker = true) AS SELECT {key}, position, at, row FROM {name}_history_v1;
"""

CREATE = """
CREATE TABLE projection_quarantine (
    stream_id UUID NOT NULL,
    position BIGINT NOT NULL,
    topic TEXT NOT NULL,
    error TEXT NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT projection_quarantine_pkey PRIMARY KEY (stream_id),
    CONSTRAINT projection_quarantine_position_from_one CHECK (position >= 1)
);

CREATE TABLE projections (
    name TEXT NOT NULL,
    generation BIGINT DEFAULT 0 NOT NULL,
    rebuilt_at TIMESTAMP WITH TIME ZONE,
    rebuilt_position BIGINT,
    verified_at TIMESTAMP WITH TIME ZONE,
    verified_position BIGINT,
    equal BOOLEAN,
    digest TEXT,
    task TEXT,
    task_started_at TIMESTAMP WITH TIME ZONE,
    task_position BIGINT,
    task_error TEXT,
    CONSTRAINT projections_pkey PRIMARY KEY (name),
    CONSTRAINT projections_task_known CHECK (task IN ('rebuild', 'verify')),
    CONSTRAINT projections_task_started CHECK ((task IS NULL) = (task_started_at IS NULL))
);
"""


def upgrade() -> None:
    op.execute(CREATE)
    for name, key in KEYS.items():
        op.execute(HISTORY.format(name=name, key=key))


def downgrade() -> None:
    # Nothing is lost: all of it is folded from the log again.
    for name in KEYS:
        op.execute(f"DROP TABLE {name}_history_v1 CASCADE")
    op.execute("DROP TABLE projection_quarantine")
    op.execute("DROP TABLE projections")
