-- Remove all but the newest p_keep rows of each counter; how many went. Only the newest counts, the others are for
-- whoever wonders. Runs beside append_batch without its lock: it never touches a row that a lookup still needs.
CREATE FUNCTION prune_guards(p_keep integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = @schema@, pg_temp
AS $function$
    WITH removed AS (
        DELETE FROM guards AS g
        USING (SELECT key, max(move) AS newest FROM guards GROUP BY key) AS last
        WHERE g.key = last.key AND g.move <= last.newest - greatest(p_keep, 1)
        RETURNING 1
    )
    SELECT count(*) FROM removed
$function$;
