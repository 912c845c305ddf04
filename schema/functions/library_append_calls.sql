-- The calls of library_append all together, or none; the position before the first event of each.
--
-- An id names a call, not its content: sent again after a lost answer it finds its receipt and changes nothing. The
-- head row is locked before anything is looked up, so a first attempt that still runs is waited for, and seen.
--
-- Raises unique_violation where a stream already has such a version, and where a notification is not beyond what was
-- tracked. The versions of a call may start anywhere and leave out some: that is the application's own affair.
CREATE FUNCTION library_append_calls(
    p_epoch uuid,
    c_id uuid[], c_events integer[], c_application text[], c_notification bigint[],
    e_n integer[], e_stream @originator_id@[], e_version bigint[], e_topic text[], e_data bytea[]
)
RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp
SET plan_cache_mode = force_generic_plan
SET jit = off
AS $function$
DECLARE
    v_lone boolean := cardinality(c_id) = 1 AND cardinality(e_n) = 1;
    v_version bigint;
    v_before bigint[];
BEGIN
    PERFORM FROM log_head AS h WHERE h.one FOR UPDATE;

    IF array_remove(c_application, NULL) <> '{}' THEN
        FOR n IN 1 .. cardinality(c_id) LOOP
            IF c_application[n] IS NOT NULL AND NOT EXISTS (SELECT FROM receipts AS r WHERE r.command_id = c_id[n]) THEN
                PERFORM library_track(c_application[n], c_notification[n]);
            END IF;
        END LOOP;
    END IF;

    -- No expectations: what the unique index refuses is a conflict. A lone event comes with one that always holds,
    -- for the sake of append_batch's shorter way.
    IF v_lone THEN
        SELECT e.version INTO v_version FROM events AS e
        WHERE e.stream_id = e_stream[1] ORDER BY e.version DESC LIMIT 1;
    END IF;

    WITH outcomes AS MATERIALIZED (
        SELECT a.n, a."position" FROM append_batch(
            p_epoch, c_id, c_events, array_fill(NULL::json, ARRAY[cardinality(c_id)]),
            CASE WHEN v_lone THEN ARRAY[1] ELSE '{}' END, CASE WHEN v_lone THEN e_stream ELSE '{}' END,
            CASE WHEN v_lone THEN ARRAY[coalesce(v_version, 0)] ELSE '{}' END,
            CASE WHEN v_lone THEN ARRAY[true] ELSE '{}' END,
            '{}', '{}', '{}', '{}',
            e_n, e_stream, e_version, e_topic, e_data, array_fill(NULL::json, ARRAY[cardinality(e_n)])
        ) AS a
    )
    -- n = 0 is where the batch began; a repeat has a row of its own with its last position.
    SELECT array_agg(coalesce(c.repeated, c.up_to) - c.events ORDER BY c.n) INTO v_before
    FROM (
        SELECT c.n, c.events, r."position" AS repeated, began."position"
            + sum(CASE WHEN r.n IS NULL THEN c.events ELSE 0 END) OVER (ORDER BY c.n) AS up_to
        FROM unnest(c_events) WITH ORDINALITY AS c (events, n)
        JOIN outcomes AS began ON began.n = 0
        LEFT JOIN outcomes AS r ON r.n = c.n
    ) AS c;
    RETURN v_before;
END
$function$;
