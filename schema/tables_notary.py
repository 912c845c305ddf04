"""What the notary keeps: the inner nodes of the log's Merkle tree, and every head of it that was signed."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, TIMESTAMP, UUID
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

metadata = sa.MetaData()


class PgLsn(UserDefinedType[str]):
    """A place in the write-ahead log."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "PG_LSN"


ischema_names["pg_lsn"] = PgLsn  # so that `alembic check` knows it when it meets it

# A tile is 256 neighbouring nodes of one level, all of them complete: at tile level 0 leaf hashes, at level n + 1 the
# roots of tiles of level n. Incomplete tiles are not stored; they are computed from what is below them.

notary_tiles = sa.Table(
    "notary_tiles",
    metadata,
    sa.Column("level", sa.SmallInteger, nullable=False, autoincrement=False),
    sa.Column("index", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("root", BYTEA, nullable=False),
    sa.Column("hashes", BYTEA, nullable=False),
    sa.PrimaryKeyConstraint("level", "index", name="notary_tiles_pkey"),
    sa.CheckConstraint("level BETWEEN 0 AND 7 AND index >= 0", name="notary_tiles_in_the_tree"),
    sa.CheckConstraint("octet_length(root) = 32 AND octet_length(hashes) = 8192", name="notary_tiles_complete"),
)

# Each row says: the first `tree_size` events had this root. `lsn` is past all of them, for a restore to that moment.

notary_checkpoints = sa.Table(
    "notary_checkpoints",
    metadata,
    sa.Column("tree_size", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("root", BYTEA, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("signed_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("epoch", UUID, nullable=False),
    sa.Column("lsn", PgLsn, nullable=False),
    sa.PrimaryKeyConstraint("tree_size", name="notary_checkpoints_pkey"),
    sa.CheckConstraint("tree_size >= 1", name="notary_checkpoints_size_from_one"),
    sa.CheckConstraint("octet_length(root) = 32", name="notary_checkpoints_root_whole"),
)
