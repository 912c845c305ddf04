"""Read models of who may ask: users, whose names and emails stay sealed, and API keys."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID

metadata = sa.MetaData()

Instant = TIMESTAMP(timezone=True)
ROLES = "role IN ('ADMIN', 'MANAGER', 'AUDITOR', 'OPERATOR', 'VIEWER')"

users = sa.Table(
    "users_v1",
    metadata,
    sa.Column("user_id", UUID, nullable=False),
    sa.Column("email", JSONB, nullable=False),  # sealed: {subject, box}, as the next one
    sa.Column("full_name", JSONB, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("last_login_at", Instant),
    sa.PrimaryKeyConstraint("user_id", name="users_v1_pkey"),
    sa.CheckConstraint(ROLES, name="users_v1_role_known"),
    sa.CheckConstraint("status IN ('active', 'deactivated')", name="users_v1_status_known"),
)

api_keys = sa.Table(
    "api_keys_v1",
    metadata,
    sa.Column("key_id", UUID, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("owner", UUID, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("scopes", JSONB),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", Instant),
    sa.PrimaryKeyConstraint("key_id", name="api_keys_v1_pkey"),
    sa.CheckConstraint(ROLES, name="api_keys_v1_role_known"),
    sa.CheckConstraint("expires_at > created_at", name="api_keys_v1_expires_after_creation"),
)
