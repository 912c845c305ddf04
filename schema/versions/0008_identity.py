"""Users and API keys.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"

CREATE = """
CREATE TABLE users_v1 (
    user_id UUID NOT NULL,
    email JSONB NOT NULL,
    full_name JSONB NOT NULL,
    role TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    last_login_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT users_v1_pkey PRIMARY KEY (user_id),
    CONSTRAINT users_v1_role_known CHECK (role IN ('ADMIN', 'MANAGER', 'AUDITOR', 'OPERATOR', 'VIEWER')),
    CONSTRAINT users_v1_status_known CHECK (status IN ('active', 'deactivated'))
);

CREATE VIEW users WITH (security_invoker = true) AS SELECT
    user_id, email, full_name, role, status, created_at, updated_at, version, position, last_login_at
FROM users_v1;

CREATE TABLE api_keys_v1 (
    key_id UUID NOT NULL,
    name TEXT NOT NULL,
    owner UUID NOT NULL,
    role TEXT NOT NULL,
    scopes JSONB,
    prefix TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT api_keys_v1_pkey PRIMARY KEY (key_id),
    CONSTRAINT api_keys_v1_role_known CHECK (role IN ('ADMIN', 'MANAGER', 'AUDITOR', 'OPERATOR', 'VIEWER')),
    CONSTRAINT api_keys_v1_expires_after_creation CHECK (expires_at > created_at)
);

CREATE VIEW api_keys WITH (security_invoker = true) AS SELECT
    key_id, name, owner, role, scopes, prefix, created_at, expires_at, version, position, revoked_at
FROM api_keys_v1;
"""


def upgrade() -> None:
    op.execute(CREATE)


def downgrade() -> None:
    # Nothing is lost: all of it is folded from the log again.
    op.execute("DROP TABLE users_v1, api_keys_v1 CASCADE")
