-- The calls that the threads of one process made together, each all or nothing; a refused one leaves its neighbours be.
--
--   c_*  calls   id; number of its events; the notification that it tracks, or null
--   e_*  events  of call n, in order of n: stream, version, topic, state
--
-- Returns one row per call: the position before its first event, or why it was refused.
CREATE FUNCTION library_append(
    p_epoch uuid,
    c_id uuid[], c_events integer[], c_application text[], c_notification bigint[],
    e_n integer[], e_stream @originator_id@[], e_version bigint[], e_topic text[], e_data bytea[]
)
RETURNS TABLE (before bigint, refused text)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp
SET plan_cache_mode = force_generic_plan
SET jit = off
AS $function$
DECLARE
    v_from integer := 1;
    v_to integer;
BEGIN
    BEGIN
        RETURN QUERY SELECT b, NULL::text FROM unnest(library_append_calls(
            p_epoch, c_id, c_events, c_application, c_notification, e_n, e_stream, e_version, e_topic, e_data
        )) AS b;
        RETURN;
    EXCEPTION WHEN unique_violation THEN
        IF cardinality(c_id) = 1 THEN
            refused := SQLERRM;
            RETURN NEXT;
            RETURN;
        END IF;
    END;

    -- One of them conflicts: each by itself.
    FOR n IN 1 .. cardinality(c_id) LOOP
        v_to := v_from + c_events[n] - 1;
        SELECT a.before, a.refused INTO STRICT before, refused FROM library_append(
            p_epoch, c_id[n:n], c_events[n:n], c_application[n:n], c_notification[n:n],
            array_fill(1, c_events[n:n]), e_stream[v_from:v_to], e_version[v_from:v_to], e_topic[v_from:v_to],
            e_data[v_from:v_to]
        ) AS a;
        RETURN NEXT;
        v_from := v_to + 1;
    END LOOP;
END
$function$;
