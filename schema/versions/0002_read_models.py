"""The first read models, each table behind a view; the checkpoint; and the leases of workers.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = (
    "projection_checkpoints",
    "assets_v1",
    "sessions_v1",
    "models_v1",
    "model_slots_v1",
    "jobs_v1",
    "lineage_edges_v1",
    "worker_leases",
)

CREATE = """
CREATE TABLE projection_checkpoints (
    name TEXT NOT NULL,
    position BIGINT NOT NULL,
    moved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT projection_checkpoints_pkey PRIMARY KEY (name),
    CONSTRAINT projection_checkpoints_position_not_negative CHECK (position >= 0)
);

CREATE TABLE assets_v1 (
    asset_id UUID NOT NULL,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    object_key TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    sha256 TEXT,
    width_px INTEGER,
    height_px INTEGER,
    quarantine_code TEXT,
    quarantine_detail TEXT,
    CONSTRAINT assets_v1_pkey PRIMARY KEY (asset_id),
    CONSTRAINT assets_v1_status_known CHECK (status IN ('requested', 'uploaded', 'clean', 'quarantined', 'deleted')),
    CONSTRAINT assets_v1_quarantine_has_code CHECK ((status = 'quarantined') <= (quarantine_code IS NOT NULL)),
    CONSTRAINT assets_v1_clean_has_digest CHECK (status <> 'clean' OR sha256 IS NOT NULL)
);

CREATE TABLE sessions_v1 (
    session_id UUID NOT NULL,
    owner TEXT NOT NULL,
    user_id TEXT,
    status TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    last_activity_at TIMESTAMP WITH TIME ZONE NOT NULL,
    asset_ids UUID[] NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    CONSTRAINT sessions_v1_pkey PRIMARY KEY (session_id),
    CONSTRAINT sessions_v1_status_known CHECK (status IN ('active', 'expired', 'closed')),
    CONSTRAINT sessions_v1_expires_after_creation CHECK (expires_at > created_at)
);

CREATE INDEX sessions_v1_due ON sessions_v1 (expires_at) WHERE status = 'active';

CREATE TABLE models_v1 (
    model_id UUID NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    framework TEXT NOT NULL,
    task TEXT NOT NULL,
    hf_repo TEXT,
    hf_revision TEXT,
    uri TEXT,
    status TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    sha256 TEXT,
    path TEXT,
    size_bytes BIGINT,
    origin TEXT,
    synced_at TIMESTAMP WITH TIME ZONE,
    last_sync_error TEXT,
    CONSTRAINT models_v1_pkey PRIMARY KEY (model_id),
    CONSTRAINT models_v1_status_known CHECK (status IN ('registered', 'syncing', 'synced', 'failed', 'archived')),
    CONSTRAINT models_v1_synced_has_digest CHECK (status <> 'synced' OR sha256 IS NOT NULL)
);

CREATE TABLE model_slots_v1 (
    slot_id UUID NOT NULL,
    task TEXT NOT NULL,
    active UUID NOT NULL,
    previous UUID[] NOT NULL,
    activated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    CONSTRAINT model_slots_v1_pkey PRIMARY KEY (slot_id),
    CONSTRAINT model_slots_v1_task_key UNIQUE (task)
);

CREATE TABLE jobs_v1 (
    job_id UUID NOT NULL,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    inputs UUID[] NOT NULL,
    params JSONB NOT NULL,
    timeout_s INTEGER NOT NULL,
    attempts_max INTEGER NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    version BIGINT NOT NULL,
    position BIGINT NOT NULL,
    session_id UUID,
    project_id UUID,
    batch_id UUID,
    model_version_id UUID,
    model_sha256 TEXT,
    callback_url TEXT,
    attempt INTEGER NOT NULL,
    worker TEXT,
    progress SMALLINT NOT NULL,
    message TEXT NOT NULL,
    not_before TIMESTAMP WITH TIME ZONE,
    cancel_requested BOOLEAN NOT NULL,
    outputs JSONB NOT NULL,
    manifest JSONB NOT NULL,
    timings JSONB NOT NULL,
    receipt JSONB NOT NULL,
    error_code TEXT,
    error_message TEXT NOT NULL,
    dead_letter BOOLEAN NOT NULL,
    late_results INTEGER NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT jobs_v1_pkey PRIMARY KEY (job_id),
    CONSTRAINT jobs_v1_status_known CHECK (
        status IN ('pending', 'processing', 'completed', 'failed', 'cancelled', 'expired', 'deleted')
    ),
    CONSTRAINT jobs_v1_progress_percent CHECK (progress BETWEEN 0 AND 100),
    CONSTRAINT jobs_v1_priority_known CHECK (priority BETWEEN 0 AND 9),
    CONSTRAINT jobs_v1_processing_has_worker CHECK (status <> 'processing' OR worker IS NOT NULL),
    CONSTRAINT jobs_v1_over_has_finished_at CHECK (
        (status IN ('completed', 'failed', 'cancelled', 'expired')) <= (finished_at IS NOT NULL)
    ),
    CONSTRAINT jobs_v1_dead_letter_failed CHECK (NOT dead_letter OR status IN ('failed', 'deleted'))
);

CREATE INDEX jobs_v1_newest ON jobs_v1 (created_at, job_id);

CREATE INDEX jobs_v1_running ON jobs_v1 (started_at) WHERE status = 'processing';

CREATE INDEX jobs_v1_session ON jobs_v1 (session_id) WHERE session_id IS NOT NULL;

CREATE INDEX jobs_v1_waiting ON jobs_v1 (kind, created_at) WHERE status = 'pending';

CREATE TABLE lineage_edges_v1 (
    src UUID NOT NULL,
    dst UUID NOT NULL,
    relation TEXT NOT NULL,
    src_kind TEXT NOT NULL,
    dst_kind TEXT NOT NULL,
    position BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT lineage_edges_v1_pkey PRIMARY KEY (src, dst, relation),
    CONSTRAINT lineage_edges_v1_relation_known CHECK (relation IN ('used', 'generated', 'belongs_to'))
);

CREATE INDEX lineage_edges_v1_ancestors ON lineage_edges_v1 (dst, src);

CREATE TABLE worker_leases (
    worker TEXT NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT worker_leases_pkey PRIMARY KEY (worker)
);

CREATE VIEW assets WITH (security_invoker = true) AS SELECT
    asset_id, owner, purpose, filename, content_type, size_bytes, object_key, status, created_at, updated_at,
    version, position, sha256, width_px, height_px, quarantine_code, quarantine_detail
FROM assets_v1;

CREATE VIEW sessions WITH (security_invoker = true) AS SELECT
    session_id, owner, user_id, status, created_at, expires_at, last_activity_at, asset_ids, version, position
FROM sessions_v1;

CREATE VIEW models WITH (security_invoker = true) AS SELECT
    model_id, owner, name, framework, task, hf_repo, hf_revision, uri, status, created_at, updated_at, version,
    position, sha256, path, size_bytes, origin, synced_at, last_sync_error
FROM models_v1;

CREATE VIEW model_slots WITH (security_invoker = true) AS SELECT
    slot_id, task, active, previous, activated_at, version, position
FROM model_slots_v1;

CREATE VIEW jobs WITH (security_invoker = true) AS SELECT
    job_id, kind, owner, status, priority, inputs, params, timeout_s, attempts_max, created_at, updated_at,
    version, position, session_id, project_id, batch_id, model_version_id, model_sha256, callback_url, attempt,
    worker, progress, message, not_before, cancel_requested, outputs, manifest, timings, receipt, error_code,
    error_message, dead_letter, late_results, started_at, finished_at
FROM jobs_v1;

CREATE VIEW lineage_edges WITH (security_invoker = true) AS SELECT
    src, dst, relation, src_kind, dst_kind, position, at
FROM lineage_edges_v1;

INSERT INTO projection_checkpoints (name, position, moved_at) VALUES ('read_models', 0, clock_timestamp());
"""


def upgrade() -> None:
    op.execute(CREATE)


def downgrade() -> None:
    # Nothing is lost: read models are folded from the log again.
    for table in TABLES:
        op.execute(f"DROP TABLE {table} CASCADE")
