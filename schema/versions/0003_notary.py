"""The notary's tree and its signed checkpoints.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = ("notary_tiles", "notary_checkpoints")

CREATE = """
CREATE TABLE notary_tiles (
    level SMALLINT NOT NULL,
    index BIGINT NOT NULL,
    root BYTEA NOT NULL,
    hashes BYTEA NOT NULL,
    CONSTRAINT notary_tiles_pkey PRIMARY KEY (level, index),
    CONSTRAINT notary_tiles_in_the_tree CHECK (level BETWEEN 0 AND 7 AND index >= 0),
    CONSTRAINT notary_tiles_complete CHECK (octet_length(root) = 32 AND octet_length(hashes) = 8192)
);

-- Hashes do not compress; trying would cost more than all else about a tile. Out of line, they are not read with roots.
ALTER TABLE notary_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

CREATE TABLE notary_checkpoints (
    tree_size BIGINT NOT NULL,
    root BYTEA NOT NULL,
    note TEXT NOT NULL,
    signed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    epoch UUID NOT NULL,
    lsn PG_LSN NOT NULL,
    CONSTRAINT notary_checkpoints_pkey PRIMARY KEY (tree_size),
    CONSTRAINT notary_checkpoints_size_from_one CHECK (tree_size >= 1),
    CONSTRAINT notary_checkpoints_root_whole CHECK (octet_length(root) = 32)
);
"""


def upgrade() -> None:
    op.execute(CREATE)
    for table in TABLES:
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION append_only()"
        )
        op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only")
        op.execute(f"REVOKE UPDATE, DELETE, TRUNCATE ON {table} FROM PUBLIC, CURRENT_USER")


def downgrade() -> None:
    if op.get_bind().scalar(sa.text("SELECT EXISTS (SELECT FROM notary_checkpoints)")):
        raise RuntimeError("checkpoints were signed: a downgrade would lose them and is refused")
    for table in TABLES:
        op.drop_table(table)
