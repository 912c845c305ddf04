-- Counters that a rule over many streams rests on: how many jobs wait, how many administrators there are.
--
-- The newest row of a key is its value. Rows are added, never updated, so that an old snapshot held open by
-- somebody else does not make the lookup walk a chain; the clock worker removes all but the newest.
-- Called by append_batch alone, under its lock. Returns the commands that would pass a limit, and on which key;
-- those move nothing.
CREATE FUNCTION move_guards(
    p_losers integer[], g_n integer[], g_key text[], g_delta bigint[], g_limit bigint[]
)
RETURNS TABLE (n integer, key text)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp
AS $function$
#variable_conflict use_column
DECLARE
    v_fits boolean;
    v_command record;
BEGIN
    -- Most often everything fits even if nobody gave anything back: then one row per key says it all.
    SELECT bool_and(coalesce(last.value, 0) + total.up <= total.tightest) INTO v_fits
    FROM (
        SELECT g.key, sum(greatest(g.delta, 0)) AS up, min(g."limit") FILTER (WHERE g.delta > 0) AS tightest
        FROM unnest(g_n, g_key, g_delta, g_limit) AS g (n, key, delta, "limit")
        WHERE g.n <> ALL (p_losers)
        GROUP BY g.key
    ) AS total
    LEFT JOIN LATERAL (
        SELECT w.value FROM guards AS w WHERE w.key = total.key ORDER BY w.move DESC LIMIT 1
    ) AS last ON true;

    FOR v_command IN
        SELECT CASE WHEN coalesce(v_fits, true) THEN 0 ELSE g.n END AS n, array_agg(g.n) AS members
        FROM unnest(g_n) AS g (n) WHERE g.n <> ALL (p_losers)
        GROUP BY 1 ORDER BY 1
    LOOP
        SELECT g.key INTO key
        FROM (
            SELECT g.key, sum(g.delta) AS delta, min(g."limit") FILTER (WHERE g.delta > 0) AS "limit"
            FROM unnest(g_n, g_key, g_delta, g_limit) AS g (n, key, delta, "limit")
            WHERE v_command.n > 0 AND g.n = v_command.n
            GROUP BY g.key
        ) AS g
        LEFT JOIN LATERAL (
            SELECT w.value FROM guards AS w WHERE w.key = g.key ORDER BY w.move DESC LIMIT 1
        ) AS last ON true
        WHERE g.delta > 0 AND coalesce(last.value, 0) + g.delta > g."limit"
        ORDER BY g.key LIMIT 1;
        IF FOUND THEN
            n := v_command.n;
            RETURN NEXT;
            CONTINUE;
        END IF;

        INSERT INTO guards (key, move, value)
        SELECT g.key, coalesce(last.move, 0) + 1, greatest(coalesce(last.value, 0) + g.delta, 0)
        FROM (
            SELECT g.key, sum(g.delta) AS delta
            FROM unnest(g_n, g_key, g_delta) AS g (n, key, delta) WHERE g.n = ANY (v_command.members)
            GROUP BY g.key
        ) AS g
        LEFT JOIN LATERAL (
            SELECT w.move, w.value FROM guards AS w WHERE w.key = g.key ORDER BY w.move DESC LIMIT 1
        ) AS last ON true;
    END LOOP;
END
$function$;
