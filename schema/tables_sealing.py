"""What the vault keeps: one key per person, each wrapped by a key that is not in this database."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP, UUID

metadata = sa.MetaData()

subject_keys = sa.Table(
    "subject_keys",
    metadata,
    sa.Column("subject", UUID, nullable=False),
    sa.Column("lookup", BYTEA, nullable=False),
    sa.Column("key_id", BYTEA, nullable=False),
    sa.Column("wrapped_key", BYTEA, nullable=False),
    sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint("subject", name="subject_keys_pkey"),
    sa.UniqueConstraint("lookup", name="subject_keys_lookup_key"),
    sa.CheckConstraint("octet_length(lookup) = 32", name="subject_keys_lookup_is_digest"),
)

sealing_secret = sa.Table(
    "sealing_secret",
    metadata,
    sa.Column("one", sa.Boolean, server_default=sa.true(), nullable=False),
    sa.Column("key_id", BYTEA, nullable=False),
    sa.Column("wrapped_secret", BYTEA, nullable=False),
    sa.PrimaryKeyConstraint("one", name="sealing_secret_pkey"),
    sa.CheckConstraint("one", name="sealing_secret_only_one"),
)
