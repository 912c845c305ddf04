"""Keys of the people whose data is sealed, and sessions whose user_id is.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

COLUMNS = "session_id, owner, user_id, status, created_at, expires_at, last_activity_at, asset_ids, version, position"

KEYS = """
CREATE TABLE subject_keys (
    subject UUID NOT NULL,
    lookup BYTEA NOT NULL,
    key_id BYTEA NOT NULL,
    wrapped_key BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT subject_keys_pkey PRIMARY KEY (subject),
    CONSTRAINT subject_keys_lookup_key UNIQUE (lookup),
    CONSTRAINT subject_keys_lookup_is_digest CHECK (octet_length(lookup) = 32)
);

CREATE TABLE sealing_secret (
    one BOOLEAN DEFAULT true NOT NULL,
    key_id BYTEA NOT NULL,
    wrapped_secret BYTEA NOT NULL,
    CONSTRAINT sealing_secret_pkey PRIMARY KEY (one),
    CONSTRAINT sealing_secret_only_one CHECK (one)
);
"""

SESSIONS = """
CREATE TABLE sessions_{version} (
    session_id UUID NOT NULL,
    owner TEXT NOT NULL,
    user_id {type},
    status TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_activity_at TIMESTAMP WITH TIME ZONE NOT NULL,
    asset_ids UUID[] NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    CONSTRAINT sessions_{version}_pkey PRIMARY KEY (session_id),
    CONSTRAINT sessions_{version}_status_known CHECK (status IN ('active', 'expired', 'closed')),
    CONSTRAINT sessions_{version}_expires_after_creation CHECK (expires_at > created_at)
);

INSERT INTO sessions_{version} ({columns})
SELECT {columns_before} FROM sessions_{before};

CREATE INDEX sessions_{version}_due ON sessions_{version} (expires_at) WHERE status = 'active';

-- A view cannot be replaced by one with another type of column.
DROP VIEW sessions;

CREATE VIEW sessions WITH (security_invoker = true) AS SELECT {columns} FROM sessions_{version};

-- Plain text is not kept beside what is sealed.
DROP TABLE sessions_{before};
"""

# What was stored before sealing says so: it has no subject.
UNSEALED = """
CASE WHEN user_id IS NOT NULL THEN jsonb_build_object('subject', NULL, 'box', user_id) END
"""
BARE = "CASE WHEN user_id ->> 'subject' IS NULL THEN user_id ->> 'box' END"


def upgrade() -> None:
    op.execute(KEYS)
    move_sessions("v1", "v2", "JSONB", UNSEALED)


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM subject_keys)")):
        raise RuntimeError("data is sealed: a downgrade would lose the keys, which erases it, and is refused")
    move_sessions("v2", "v1", "TEXT", BARE)
    op.execute("DROP TABLE subject_keys, sealing_secret")


def move_sessions(before: str, version: str, type_: str, user_id: str) -> None:
    columns_before = COLUMNS.replace("user_id", user_id.strip())
    op.execute(
        SESSIONS.format(version=version, before=before, type=type_, columns=COLUMNS, columns_before=columns_before)
    )
