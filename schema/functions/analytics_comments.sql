-- What every view and every column means. The data dictionary is made from here, and `\d+` in psql shows it too.
COMMENT ON VIEW analytics.jobs IS 'Every job as it is now, deleted ones too.';
COMMENT ON VIEW analytics.jobs_history IS 'Every state that a job was in, and from when until when.';
COMMENT ON VIEW analytics.sessions IS 'Every session as it is now. For whom it is, is sealed and not shown.';
COMMENT ON VIEW analytics.sessions_history IS 'Every state that a session was in, and from when until when.';
COMMENT ON VIEW analytics.models IS 'Every version of a model as it is now.';
COMMENT ON VIEW analytics.models_history IS 'Every state that a model version was in, and from when until when.';
COMMENT ON VIEW analytics.model_slots IS 'Which model version does a task''s work now.';
COMMENT ON VIEW analytics.model_slots_history IS 'Every state that a slot was in, and from when until when.';
COMMENT ON VIEW analytics.model_activations IS 'Which model version did a task''s work, and from when until when.';
COMMENT ON VIEW analytics.jobs_by_state_per_day IS
    'Jobs by the day of their submission, their kind and the state that they are in now.';
COMMENT ON VIEW analytics.job_durations_by_model_version IS
    'How long completed jobs took, by the model version that did them.';
COMMENT ON VIEW analytics.lineage_edges IS
    'What was made from what. An edge leads from what went in to what it went into, or from a job to what it made.';
COMMENT ON VIEW analytics.events IS 'The log, without what is sealed.';
COMMENT ON VIEW analytics.projections IS
    'How far the read models are, which everything here except events is made from.';

DO $$
DECLARE
    item record;
    one text;
BEGIN
    FOR item IN SELECT * FROM (VALUES
        -- of every noun
        ('jobs jobs_history', 'job_id', 'Its id, and that of its stream.'),
        ('sessions sessions_history', 'session_id', 'Its id, and that of its stream.'),
        ('models models_history', 'model_id', 'Its id, and that of its stream.'),
        ('model_slots model_slots_history', 'slot_id', 'Its id, and that of its stream.'),
        ('jobs sessions models model_slots', 'position', 'Of the last event that changed it, in the log.'),
        ('jobs_history sessions_history models_history model_slots_history model_activations', 'position',
         'Of the event that made it so, in the log.'),
        ('jobs_history sessions_history models_history model_slots_history model_activations', 'next_position',
         'Of the event that ended it; null while it is still so.'),
        ('jobs_history sessions_history models_history model_slots_history model_activations', 'valid_positions',
         'Positions at which it was so: `@>` asks for one of them.'),
        ('jobs_history sessions_history models_history model_slots_history model_activations', 'valid_times',
         'The time in which it was so, by when the log recorded it; empty where a clock was set back meanwhile.'),
        ('jobs jobs_history sessions sessions_history models models_history', 'owner', 'The principal whose it is.'),
        ('jobs jobs_history sessions sessions_history models models_history model_slots model_slots_history',
         'version', 'Of its stream: how many events it has.'),
        ('jobs jobs_history sessions sessions_history models models_history', 'created_at', 'When it began.'),
        ('jobs jobs_history models models_history', 'updated_at', 'When it last changed.'),
        -- jobs
        ('jobs jobs_history jobs_by_state_per_day job_durations_by_model_version', 'kind',
         'What kind of work a job is.'),
        ('jobs jobs_history', 'status', 'pending, processing, completed, failed, cancelled, expired or deleted.'),
        ('jobs jobs_history', 'priority', '0, the most urgent, to 9.'),
        ('jobs jobs_history', 'inputs', 'Ids of the assets that it works on.'),
        ('jobs jobs_history', 'params', 'What was asked for, by the kind''s own names.'),
        ('jobs jobs_history', 'timeout_s', 'Seconds that one attempt may take.'),
        ('jobs jobs_history', 'attempts_max', 'Attempts that it may have.'),
        ('jobs jobs_history', 'session_id', 'The session that it belongs to, if any.'),
        ('jobs jobs_history', 'project_id', 'The project that it belongs to, if any.'),
        ('jobs jobs_history', 'batch_id', 'The batch that it belongs to, if any.'),
        ('jobs jobs_history', 'model_version_id', 'The model version that was pinned when it was submitted, if any.'),
        ('jobs jobs_history', 'model_sha256', 'SHA-256 of that model''s file.'),
        ('jobs jobs_history', 'attempt', 'Number of the current or last attempt; 0 before the first.'),
        ('jobs jobs_history', 'worker', 'Who holds it, or held it last.'),
        ('jobs jobs_history', 'progress_percent', 'Of the current attempt, 0 to 100.'),
        ('jobs jobs_history', 'message', 'What the attempt last said of itself.'),
        ('jobs jobs_history', 'not_before', 'When a retry that waits is due.'),
        ('jobs jobs_history', 'cancel_requested', 'Whether somebody asked to cancel it.'),
        ('jobs jobs_history', 'outputs', 'Files that it made: name, object key, SHA-256, size in bytes, type.'),
        ('jobs jobs_history', 'manifest', 'What it says of its outputs, by the kind''s own names.'),
        ('jobs jobs_history', 'timings', 'Seconds by step.'),
        ('jobs jobs_history', 'receipt', 'What made the outputs: inputs'' SHA-256, model, provider, runtime.'),
        ('jobs jobs_history', 'error_code', 'Why it failed, or its last attempt did.'),
        ('jobs jobs_history', 'error_message', 'The same in words.'),
        ('jobs jobs_history', 'dead_letter', 'Whether its attempts are used up, so that an operator must look.'),
        ('jobs jobs_history', 'late_results', 'Results refused because another attempt held it by then.'),
        ('jobs jobs_history', 'started_at', 'When the current or last attempt began.'),
        ('jobs jobs_history', 'finished_at', 'When it was over.'),
        ('jobs jobs_history', 'duration_s', 'Seconds from the start of the last attempt to the end; null before.'),
        -- sessions
        ('sessions sessions_history', 'status',
         'active, expired or closed, as the log says; expired only once the clock has said so.'),
        ('sessions sessions_history', 'expires_at', 'When its time is over.'),
        ('sessions sessions_history', 'last_activity_at', 'When somebody last changed something in it.'),
        ('sessions sessions_history', 'asset_ids', 'Assets attached to it, in order.'),
        -- models
        ('models models_history', 'name', 'As it was registered.'),
        ('models models_history', 'framework', 'onnx, transformers or torch.'),
        ('models models_history model_slots model_slots_history model_activations', 'task', 'What work it is for.'),
        ('models models_history', 'hf_repo', 'Repository of the model hub, if it comes from there.'),
        ('models models_history', 'hf_revision', 'Revision of that repository.'),
        ('models models_history', 'uri', 'Where else it comes from.'),
        ('models models_history', 'status', 'registered, syncing, synced, failed or archived.'),
        ('models models_history', 'sha256', 'SHA-256 of its file, once synced.'),
        ('models models_history', 'path', 'Of its file below the model cache.'),
        ('models models_history', 'size_bytes', 'Bytes of its file.'),
        ('models models_history', 'origin', 'Where the bytes came from: builtin, hub, s3 or cache.'),
        ('models models_history', 'synced_at', 'When its file was there and checked.'),
        ('models models_history', 'last_sync_error', 'Why the last sync failed.'),
        ('model_slots model_slots_history', 'active_model_id', 'The model version that does the work.'),
        ('model_slots model_slots_history', 'previous_model_ids', 'Those before it, oldest first.'),
        ('model_slots model_slots_history model_activations', 'activated_at', 'When the active one became so.'),
        ('model_activations', 'model_id', 'The model version that was active.'),
        ('model_activations job_durations_by_model_version', 'model_name', 'Name of that model version.'),
        ('model_activations job_durations_by_model_version', 'model_sha256', 'SHA-256 of its file.'),
        -- figures
        ('jobs_by_state_per_day', 'day', 'Day of submission, in UTC.'),
        ('jobs_by_state_per_day', 'status', 'The state that they are in now.'),
        ('jobs_by_state_per_day job_durations_by_model_version', 'count', 'How many jobs.'),
        ('job_durations_by_model_version', 'model_version_id', 'The model version; null for kinds without one.'),
        ('job_durations_by_model_version', 'p50_s', 'Seconds that half of them took at most.'),
        ('jobs_by_state_per_day job_durations_by_model_version', 'p95_s',
         'Seconds that 95 % of those that are over took at most.'),
        ('job_durations_by_model_version', 'p99_s', 'Seconds that 99 % of them took at most.'),
        -- edges
        ('lineage_edges', 'src', 'Id of where it leads from.'),
        ('lineage_edges', 'dst', 'Id of where it leads to.'),
        ('lineage_edges', 'relation', 'used, generated or belongs_to.'),
        ('lineage_edges', 'src_kind', 'asset, session, job, model or artifact.'),
        ('lineage_edges', 'dst_kind', 'asset, session, job, model or artifact.'),
        ('lineage_edges', 'position', 'Of the event that said so, in the log.'),
        ('lineage_edges', 'at', 'When the log recorded that event.'),
        -- the log
        ('events', 'position', 'In the log, from 1, without a gap.'),
        ('events', 'stream_id', 'Whose event it is.'),
        ('events', 'version', 'In its stream, from 1, without a gap.'),
        ('events', 'type', 'The stored tag.'),
        ('events', 'recorded_at', 'When it was appended, by the database''s clock.'),
        ('events', 'actor', 'Who did it.'),
        ('events', 'correlation_id', 'One id from the first request to the last effect.'),
        ('events', 'causation_id', 'The command or the event (`event:` and its position) that led to it.'),
        ('events', 'request_id', 'Of the request, where there was one.'),
        ('events', 'data', 'What it says, without sealed fields, `user_id` and `callback_url`.'),
        ('projections', 'name', 'Of the checkpoint.'),
        ('projections', 'position', 'The last event that the read models reflect.'),
        ('projections', 'moved_at', 'When that was reached.'),
        ('projections', 'lag_events', 'Events in the log past it.')
    ) AS given (views, name, meaning) LOOP
        FOREACH one IN ARRAY string_to_array(item.views, ' ') LOOP
            EXECUTE format('COMMENT ON COLUMN analytics.%I.%I IS %L', one, item.name, item.meaning);
        END LOOP;
    END LOOP;
END $$;

DO $$
DECLARE noun text;
BEGIN
    FOREACH noun IN ARRAY '{jobs,sessions,models,model_slots}'::text[] LOOP
        EXECUTE format('COMMENT ON FUNCTION analytics.%I(bigint) IS %L', noun || '_as_of',
                       format('Rows of %s_history as they were at a position.', noun));
    END LOOP;
END $$;
COMMENT ON FUNCTION analytics.position_at(timestamptz) IS
    'The last position that was recorded at or before a time; 0 before the first.';
COMMENT ON FUNCTION analytics.job_durations_between(timestamptz, timestamptz) IS
    'As job_durations_by_model_version, of jobs that finished from the first time on and before the second.';
