-- What analysts may read, every column by name: a column that a read model gains is not shown until somebody decides
-- so. All are owned by sightline_analytics, whom row security binds as it binds no table's owner, and are barriers: no
-- condition of the analyst's own sees a row before it was allowed.

CREATE VIEW analytics.jobs WITH (security_barrier) AS SELECT
    t.job_id, t.position, t.kind, t.owner, t.status, t.priority, t.inputs, t.params, t.timeout_s, t.attempts_max,
    t.created_at, t.updated_at, t.version, t.session_id, t.project_id, t.batch_id, t.model_version_id,
    t.model_sha256, t.attempt, t.worker, t.progress AS progress_percent, t.message, t.not_before,
    t.cancel_requested, t.outputs, t.manifest, t.timings, t.receipt, t.error_code, t.error_message, t.dead_letter,
    t.late_results, t.started_at, t.finished_at, extract(epoch FROM t.finished_at - t.started_at)::double precision
    AS duration_s
FROM analytics_source.jobs AS t;

-- Every state that a row was in. A clock that was set back must not make a range whose end lies before its begin,
-- which would be an error of the whole query.
CREATE VIEW analytics.jobs_history WITH (security_barrier) AS SELECT
    h.job_id, h.position, h.next_position, int8range(h.position, h.next_position) AS valid_positions,
    tstzrange(h.at, CASE WHEN h.next_at IS NOT NULL THEN greatest(h.at, h.next_at) END) AS valid_times,
    r.kind, r.owner, r.status, r.priority, r.inputs, r.params, r.timeout_s, r.attempts_max, r.created_at,
    r.updated_at, r.version, r.session_id, r.project_id, r.batch_id, r.model_version_id, r.model_sha256, r.attempt,
    r.worker, r.progress AS progress_percent, r.message, r.not_before, r.cancel_requested, r.outputs, r.manifest,
    r.timings, r.receipt, r.error_code, r.error_message, r.dead_letter, r.late_results, r.started_at, r.finished_at,
    extract(epoch FROM r.finished_at - r.started_at)::double precision AS duration_s
FROM (
    SELECT job_id, position, at, row, lead(position) OVER next AS next_position, lead(at) OVER next AS next_at
    FROM analytics_source.jobs_history WINDOW next AS (PARTITION BY job_id ORDER BY position)
) AS h, LATERAL json_populate_record(NULL::analytics_source.jobs, h.row) AS r;

CREATE VIEW analytics.sessions WITH (security_barrier) AS SELECT
    t.session_id, t.position, t.owner, t.status, t.created_at, t.expires_at, t.last_activity_at, t.asset_ids,
    t.version
FROM analytics_source.sessions AS t;

CREATE VIEW analytics.sessions_history WITH (security_barrier) AS SELECT
    h.session_id, h.position, h.next_position, int8range(h.position, h.next_position) AS valid_positions,
    tstzrange(h.at, CASE WHEN h.next_at IS NOT NULL THEN greatest(h.at, h.next_at) END) AS valid_times,
    r.owner, r.status, r.created_at, r.expires_at, r.last_activity_at, r.asset_ids, r.version
FROM (
    SELECT session_id, position, at, row, lead(position) OVER next AS next_position, lead(at) OVER next AS next_at
    FROM analytics_source.sessions_history WINDOW next AS (PARTITION BY session_id ORDER BY position)
) AS h, LATERAL json_populate_record(NULL::analytics_source.sessions, h.row) AS r;

CREATE VIEW analytics.models WITH (security_barrier) AS SELECT
    t.model_id, t.position, t.owner, t.name, t.framework, t.task, t.hf_repo, t.hf_revision, t.uri, t.status,
    t.created_at, t.updated_at, t.version, t.sha256, t.path, t.size_bytes, t.origin, t.synced_at, t.last_sync_error
FROM analytics_source.models AS t;

CREATE VIEW analytics.models_history WITH (security_barrier) AS SELECT
    h.model_id, h.position, h.next_position, int8range(h.position, h.next_position) AS valid_positions,
    tstzrange(h.at, CASE WHEN h.next_at IS NOT NULL THEN greatest(h.at, h.next_at) END) AS valid_times,
    r.owner, r.name, r.framework, r.task, r.hf_repo, r.hf_revision, r.uri, r.status, r.created_at, r.updated_at,
    r.version, r.sha256, r.path, r.size_bytes, r.origin, r.synced_at, r.last_sync_error
FROM (
    SELECT model_id, position, at, row, lead(position) OVER next AS next_position, lead(at) OVER next AS next_at
    FROM analytics_source.models_history WINDOW next AS (PARTITION BY model_id ORDER BY position)
) AS h, LATERAL json_populate_record(NULL::analytics_source.models, h.row) AS r;

CREATE VIEW analytics.model_slots WITH (security_barrier) AS SELECT
    t.slot_id, t.position, t.task, t.active AS active_model_id, t.previous AS previous_model_ids, t.activated_at,
    t.version
FROM analytics_source.model_slots AS t;

CREATE VIEW analytics.model_slots_history WITH (security_barrier) AS SELECT
    h.slot_id, h.position, h.next_position, int8range(h.position, h.next_position) AS valid_positions,
    tstzrange(h.at, CASE WHEN h.next_at IS NOT NULL THEN greatest(h.at, h.next_at) END) AS valid_times,
    r.task, r.active AS active_model_id, r.previous AS previous_model_ids, r.activated_at, r.version
FROM (
    SELECT slot_id, position, at, row, lead(position) OVER next AS next_position, lead(at) OVER next AS next_at
    FROM analytics_source.model_slots_history WINDOW next AS (PARTITION BY slot_id ORDER BY position)
) AS h, LATERAL json_populate_record(NULL::analytics_source.model_slots, h.row) AS r;

CREATE VIEW analytics.model_activations WITH (security_barrier) AS SELECT
    h.task, h.active_model_id AS model_id, m.name AS model_name, m.sha256 AS model_sha256, h.activated_at, h.position,
    h.next_position, h.valid_positions, h.valid_times
FROM analytics.model_slots_history AS h LEFT JOIN analytics.models AS m ON m.model_id = h.active_model_id;

CREATE VIEW analytics.jobs_by_state_per_day WITH (security_barrier) AS SELECT
    (created_at AT TIME ZONE 'UTC')::date AS day, kind, status, count(*) AS count,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY duration_s) AS p95_s
FROM analytics.jobs GROUP BY 1, 2, 3;

CREATE VIEW analytics.lineage_edges WITH (security_barrier) AS SELECT
    src, dst, relation, src_kind, dst_kind, position, at
FROM analytics_source.lineage_edges;

-- The log itself carries no row security: its writer, whose every insert would pay for it, is the one who needs none.
-- Sealed data is withheld by its shape at any depth, and by name where it was stored before there was sealing; so are
-- addresses that may hold a secret.
CREATE VIEW analytics.events WITH (security_barrier) AS SELECT
    e.position, e.stream_id, e.version, e.topic AS type, e.recorded_at, e.metadata ->> 'actor' AS actor,
    e.metadata ->> 'correlation_id' AS correlation_id, e.metadata ->> 'causation_id' AS causation_id,
    e.metadata ->> 'request_id' AS request_id,
    (
        SELECT coalesce(jsonb_object_agg(field.key, field.value), '{}')
        FROM jsonb_each(e.data::jsonb) AS field
        WHERE field.key <> ALL ('{user_id,callback_url}'::text[])
        AND NOT jsonb_path_exists(field.value, '$.** ? (exists (@.subject) && exists (@.box))')
    ) AS data
FROM @schema@.events AS e
WHERE (SELECT analytics_source.sees_all()) OR e.stream_id IN (SELECT analytics_source.my_streams());

CREATE VIEW analytics.projections WITH (security_barrier) AS SELECT
    c.name, c.position, c.moved_at,
    coalesce((SELECT e.position FROM @schema@.events AS e ORDER BY e.position DESC LIMIT 1), 0) - c.position
        AS lag_events
FROM @schema@.projection_checkpoints AS c;
