"""Read model of quotas: limits of principals, and each reservation against them."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TIMESTAMP, UUID

metadata = sa.MetaData()

Instant = TIMESTAMP(timezone=True)

# A row with a day is a reservation, one without says limits.
quotas = sa.Table(
    "quotas_v1",
    metadata,
    sa.Column("quota_id", UUID, nullable=False),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("day", sa.Date),
    sa.Column("reserved_for", UUID),
    sa.Column("jobs", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("compute_ms", sa.BigInteger, nullable=False),
    sa.Column("held", sa.Boolean, nullable=False),
    sa.Column("jobs_per_day", sa.BigInteger),
    sa.Column("bytes_per_day", sa.BigInteger),
    sa.Column("compute_s_per_day", sa.BigInteger),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("quota_id", name="quotas_v1_pkey"),
    sa.CheckConstraint("(day IS NULL) = (reserved_for IS NULL)", name="quotas_v1_reserved_for_something"),
    sa.CheckConstraint("jobs >= 0 AND size_bytes >= 0 AND compute_ms >= 0", name="quotas_v1_amounts_not_negative"),
    sa.Index("quotas_v1_day", "principal", "day"),
)
