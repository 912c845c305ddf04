"""Every table, as SQLAlchemy Core declares it: the ground that migrations lead to and `alembic check` compares.

Used at migration time alone; at run time queries are SQL. Invariants are CHECKs: no floor above can forget them.
"""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB, TIMESTAMP, UUID

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ck": "%(table_name)s_%(constraint_name)s",
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
    }
)

Instant = TIMESTAMP(timezone=True)

# The event store. No foreign keys here: the log refers to nothing, everything refers to the log.

events = sa.Table(
    "events",
    metadata,
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stream_id", UUID, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("data", JSON, nullable=False),
    sa.Column("metadata", JSON, nullable=False),
    sa.Column("recorded_at", Instant, nullable=False),
    sa.CheckConstraint("position >= 1", name="position_from_one"),
    sa.CheckConstraint("version >= 1", name="version_from_one"),
    sa.Index("events_stream_id_version", "stream_id", "version", unique=True),
)

receipts = sa.Table(
    "receipts",
    metadata,
    sa.Column("command_id", UUID, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("result", JSON),
    sa.Column("recorded_at", Instant, nullable=False),
)

guards = sa.Table(
    "guards",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("move", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.CheckConstraint("value >= 0", name="value_not_negative"),
)

log_head = sa.Table(
    "log_head",
    metadata,
    sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("epoch", UUID, nullable=False),
    sa.CheckConstraint("one", name="only_one"),
)

# Read models. Each table is `<name>_v<version>` behind a view of explicit columns; all of them can be rebuilt.

projection_checkpoints = sa.Table(
    "projection_checkpoints",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("moved_at", Instant, nullable=False),
    sa.CheckConstraint("position >= 0", name="position_not_negative"),
)

assets = sa.Table(
    "assets_v1",
    metadata,
    sa.Column("asset_id", UUID, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("content_type", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("object_key", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text),
    sa.Column("width_px", sa.Integer),
    sa.Column("height_px", sa.Integer),
    sa.Column("quarantine_code", sa.Text),
    sa.Column("quarantine_detail", sa.Text),
    sa.CheckConstraint("status IN ('requested', 'uploaded', 'clean', 'quarantined', 'deleted')", name="status_known"),
    sa.CheckConstraint("(status = 'quarantined') <= (quarantine_code IS NOT NULL)", name="quarantine_has_code"),
    sa.CheckConstraint("status <> 'clean' OR sha256 IS NOT NULL", name="clean_has_digest"),
)

sessions = sa.Table(
    "sessions_v2",
    metadata,
    sa.Column("session_id", UUID, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("user_id", JSONB),  # sealed: {subject, box}
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    sa.Column("last_activity_at", Instant, nullable=False),
    sa.Column("asset_ids", ARRAY(UUID), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.CheckConstraint("status IN ('active', 'expired', 'closed')", name="status_known"),
    sa.CheckConstraint("expires_at > created_at", name="expires_after_creation"),
    sa.Index("sessions_v2_due", "expires_at", postgresql_where=sa.text("status = 'active'")),
)

models = sa.Table(
    "models_v1",
    metadata,
    sa.Column("model_id", UUID, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("framework", sa.Text, nullable=False),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("hf_repo", sa.Text),
    sa.Column("hf_revision", sa.Text),
    sa.Column("uri", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text),
    sa.Column("path", sa.Text),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("origin", sa.Text),
    sa.Column("synced_at", Instant),
    sa.Column("last_sync_error", sa.Text),
    sa.CheckConstraint("status IN ('registered', 'syncing', 'synced', 'failed', 'archived')", name="status_known"),
    sa.CheckConstraint("status <> 'synced' OR sha256 IS NOT NULL", name="synced_has_digest"),
)

model_slots = sa.Table(
    "model_slots_v1",
    metadata,
    sa.Column("slot_id", UUID, primary_key=True),
    sa.Column("task", sa.Text, nullable=False, unique=True),
    sa.Column("active", UUID, nullable=False),
    sa.Column("previous", ARRAY(UUID), nullable=False),
    sa.Column("activated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
)

jobs = sa.Table(
    "jobs_v1",
    metadata,
    sa.Column("job_id", UUID, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("inputs", ARRAY(UUID), nullable=False),
    sa.Column("params", JSONB, nullable=False),
    sa.Column("timeout_s", sa.Integer, nullable=False),
    sa.Column("attempts_max", sa.Integer, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("session_id", UUID),
    sa.Column("project_id", UUID),
    sa.Column("batch_id", UUID),
    sa.Column("model_version_id", UUID),
    sa.Column("model_sha256", sa.Text),
    sa.Column("callback_url", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("worker", sa.Text),
    sa.Column("progress", sa.SmallInteger, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("not_before", Instant),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("outputs", JSONB, nullable=False),
    sa.Column("manifest", JSONB, nullable=False),
    sa.Column("timings", JSONB, nullable=False),
    sa.Column("receipt", JSONB, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text, nullable=False),
    sa.Column("dead_letter", sa.Boolean, nullable=False),
    sa.Column("late_results", sa.Integer, nullable=False),
    sa.Column("started_at", Instant),
    sa.Column("finished_at", Instant),
    sa.Column("unique_key", sa.Text),
    sa.Column("ref", sa.Text),
    sa.CheckConstraint(
        "status IN ('pending', 'processing', 'completed', 'failed', 'cancelled', 'expired', 'deleted')",
        name="status_known",
    ),
    sa.CheckConstraint("progress BETWEEN 0 AND 100", name="progress_percent"),
    sa.CheckConstraint("priority BETWEEN 0 AND 9", name="priority_known"),
    sa.CheckConstraint("status <> 'processing' OR worker IS NOT NULL", name="processing_has_worker"),
    sa.CheckConstraint(
        "(status IN ('completed', 'failed', 'cancelled', 'expired')) <= (finished_at IS NOT NULL)",
        name="over_has_finished_at",
    ),
    sa.CheckConstraint("NOT dead_letter OR status IN ('failed', 'deleted')", name="dead_letter_failed"),
    sa.Index(
        "jobs_v1_lines",
        "kind",
        "owner",
        "priority",
        sa.text("COALESCE(not_before, created_at)"),
        postgresql_where=sa.text("status = 'pending'"),
    ),
    sa.Index("jobs_v1_ended", "kind", "finished_at", postgresql_where=sa.text("status IN ('completed', 'failed')")),
    sa.Index("jobs_v1_dead", "job_id", postgresql_where=sa.text("dead_letter")),
    sa.Index("jobs_v1_running", "started_at", postgresql_where=sa.text("status = 'processing'")),
    sa.Index("jobs_v1_session", "session_id", postgresql_where=sa.text("session_id IS NOT NULL")),
    sa.Index("jobs_v1_newest", "created_at", "job_id"),
    sa.Index("jobs_v1_batch", "batch_id", "status", "job_id", postgresql_where=sa.text("batch_id IS NOT NULL")),
)

lineage_edges = sa.Table(
    "lineage_edges_v1",
    metadata,
    sa.Column("src", UUID, primary_key=True),
    sa.Column("dst", UUID, primary_key=True),
    sa.Column("relation", sa.Text, primary_key=True),
    sa.Column("src_kind", sa.Text, nullable=False),
    sa.Column("dst_kind", sa.Text, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.CheckConstraint("relation IN ('used', 'generated', 'belongs_to')", name="relation_known"),
    sa.Index("lineage_edges_v1_ancestors", "dst", "src"),
)

# Not a read model: a lease is about now. One row per worker process, renewed by itself, judged by this server's clock.

worker_leases = sa.Table(
    "worker_leases",
    metadata,
    sa.Column("worker", sa.Text, primary_key=True),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
)
