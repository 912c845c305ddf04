-- Remove the counters of days before p_day, whose names begin with `quota:` and the day; how many rows went. A job that
-- is taken back so late moves a counter that nobody asks any more.
CREATE FUNCTION prune_quota_counters(p_day date) RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = @schema@, pg_temp
AS $function$
    WITH removed AS (
        DELETE FROM guards WHERE key >= 'quota:' AND key < 'quota:' || p_day RETURNING 1
    )
    SELECT count(*) FROM removed
$function$;
