-- Rows as they were once. Without settings of their own, so that the planner takes them apart and a condition on the
-- key reaches the index; the subquery is there to ask for the position once and not once a row.
CREATE FUNCTION analytics.jobs_as_of(as_of bigint) RETURNS SETOF analytics.jobs_history
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT * FROM analytics.jobs_history
    WHERE position <= (SELECT as_of) AND (next_position > (SELECT as_of) OR next_position IS NULL);
END;

CREATE FUNCTION analytics.sessions_as_of(as_of bigint) RETURNS SETOF analytics.sessions_history
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT * FROM analytics.sessions_history
    WHERE position <= (SELECT as_of) AND (next_position > (SELECT as_of) OR next_position IS NULL);
END;

CREATE FUNCTION analytics.models_as_of(as_of bigint) RETURNS SETOF analytics.models_history
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT * FROM analytics.models_history
    WHERE position <= (SELECT as_of) AND (next_position > (SELECT as_of) OR next_position IS NULL);
END;

CREATE FUNCTION analytics.model_slots_as_of(as_of bigint) RETURNS SETOF analytics.model_slots_history
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT * FROM analytics.model_slots_history
    WHERE position <= (SELECT as_of) AND (next_position > (SELECT as_of) OR next_position IS NULL);
END;

-- The last position recorded at or before a time, 0 before the first; the same whatever the analyst may see of the log.
CREATE FUNCTION analytics.position_at(moment timestamptz) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce(max(position), 0) FROM @schema@.events WHERE recorded_at <= moment;
END;

CREATE FUNCTION analytics.job_durations_between(since timestamptz, until timestamptz) RETURNS TABLE (
    model_version_id uuid, model_name text, model_sha256 text, kind text, count bigint,
    p50_s double precision, p95_s double precision, p99_s double precision
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT
        j.model_version_id, m.name, j.model_sha256, j.kind, count(*),
        percentile_cont(0.5) WITHIN GROUP (ORDER BY j.duration_s),
        percentile_cont(0.95) WITHIN GROUP (ORDER BY j.duration_s),
        percentile_cont(0.99) WITHIN GROUP (ORDER BY j.duration_s)
    FROM analytics.jobs AS j LEFT JOIN analytics.models AS m ON m.model_id = j.model_version_id
    WHERE j.status = 'completed' AND j.finished_at >= (SELECT since) AND j.finished_at < (SELECT until)
    GROUP BY 1, 2, 3, 4;
END;

CREATE VIEW analytics.job_durations_by_model_version WITH (security_barrier) AS SELECT
    model_version_id, model_name, model_sha256, kind, count, p50_s, p95_s, p99_s
FROM analytics.job_durations_between('-infinity', 'infinity');
