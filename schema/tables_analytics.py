"""Who of the analysts may see what; the views of schema `analytics` and their rights are in its migration."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

metadata = sa.MetaData()

# A role without a row sees nothing here, also where another database of the same server made it. No owners: all rows.

analysts = sa.Table(
    "analysts",
    metadata,
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("owners", ARRAY(sa.Text)),
    sa.Column("created_at", TIMESTAMP(timezone=True), server_default=sa.func.clock_timestamp(), nullable=False),
    sa.PrimaryKeyConstraint("role", name="analysts_pkey"),
    sa.CheckConstraint("cardinality(owners) > 0", name="analysts_owners_not_empty"),
)
