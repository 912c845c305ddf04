-- Remove the counters of starts within minutes before p_minute (`2026-03-01T12:05`), whose names begin with `job_starts:`
-- and the minute; how many rows went.
CREATE FUNCTION prune_start_counters(p_minute text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = @schema@, pg_temp
AS $function$
    WITH removed AS (
        DELETE FROM guards WHERE key >= 'job_starts:' AND key < 'job_starts:' || p_minute RETURNING 1
    )
    SELECT count(*) FROM removed
$function$;
