-- The one way into the log. A batch of commands becomes events, receipts and guard moves, or rows that say why not.
--
-- Each step is a statement of its own: under READ COMMITTED every statement sees what was committed before it
-- began, so all that follows the lock sees every earlier batch. Folding the lock and the checks into one
-- statement was tried and let contended commands skew.
--
-- The batch comes as parallel arrays, one element per row, commands numbered from 1:
--   c_*  commands       id; number of its events; what its receipt keeps, or null
--   x_*  expectations   command n holds that stream is at version (0: absent), and writes it or merely looked
--   g_*  guards         command n moves counter key by delta, which must not pass limit (null: none)
--   e_*  events         of command n, in order of n: stream, version, topic, data, metadata
--
-- Returns one row per command that was not appended now, and a last row (n = 0) for those that were:
--   appended (n = 0)  position: the one before the batch's first event; events follow without a gap, in order of n
--   repeat            this command id has a receipt: its position and result are returned, nothing is appended
--   stale             an expectation does not hold, or a neighbour in this batch came first: read, decide again
--   guard             the counter named in `result` would pass its limit
--
-- Two commands of one batch that write the same stream break the unique index, and the whole batch with it; a
-- caller keeps them apart (the writer does), or sends the halves again.
CREATE FUNCTION append_batch(
    p_epoch uuid,
    c_id uuid[], c_events integer[], c_result json[],
    x_n integer[], x_stream uuid[], x_version bigint[], x_writes boolean[],
    g_n integer[], g_key text[], g_delta bigint[], g_limit bigint[],
    e_n integer[], e_stream uuid[], e_version bigint[], e_topic text[], e_data json[], e_metadata json[]
)
RETURNS TABLE (n integer, outcome text, "position" bigint, result json, recorded_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = @schema@, pg_temp
SET enable_seqscan = off                     -- a plan made while the tables were empty must not
SET plan_cache_mode = force_generic_plan     -- scan them when they are full
SET jit = off
AS $function$
#variable_conflict use_column
DECLARE
    v_epoch uuid;
    v_now timestamptz;
    v_base bigint;
    v_repeats integer[];
    v_stale integer[];
    v_skewed integer[];
    v_losers integer[] := '{}';
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'append_batch needs READ COMMITTED, not %', current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- Locked, never updated: an updated row grows a chain that every append walks while an old snapshot lives.
    SELECT h.epoch INTO STRICT v_epoch FROM log_head AS h WHERE h.one FOR UPDATE;
    IF v_epoch <> p_epoch THEN
        RAISE EXCEPTION 'the log is at epoch %, not %', v_epoch, p_epoch USING ERRCODE = 'SL001';
    END IF;
    v_now := clock_timestamp();

    -- A lone command that finds everything as it expects, the usual case at rest, needs no sets: the same steps on
    -- scalars take a third of the time. Whatever else it finds is said below.
    IF cardinality(c_id) = 1 AND cardinality(x_n) = 1 AND cardinality(e_n) = 1 AND cardinality(g_n) = 0 THEN
        IF NOT EXISTS (SELECT FROM receipts AS r WHERE r.command_id = c_id[1]) AND x_version[1] = coalesce(
            (SELECT e.version FROM events AS e WHERE e.stream_id = x_stream[1] ORDER BY e.version DESC LIMIT 1), 0
        ) THEN
            v_base := coalesce((SELECT e.position FROM events AS e ORDER BY e.position DESC LIMIT 1), 0);
            INSERT INTO receipts (command_id, position, result, recorded_at)
            VALUES (c_id[1], v_base + 1, c_result[1], v_now);
            INSERT INTO events (position, stream_id, version, topic, data, metadata, recorded_at)
            VALUES (v_base + 1, e_stream[1], e_version[1], e_topic[1], e_data[1], e_metadata[1], v_now);
            n := 0;
            outcome := 'appended';
            "position" := v_base;
            recorded_at := v_now;
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;

    SELECT array_agg(c.n) INTO v_repeats
    FROM unnest(c_id) WITH ORDINALITY AS c (id, n),
         LATERAL (SELECT 1 FROM receipts AS r WHERE r.command_id = c.id LIMIT 1) AS seen;

    IF v_repeats IS NOT NULL THEN
        RETURN QUERY
        SELECT c.n::integer, 'repeat', r.position, r.result, r.recorded_at
        FROM unnest(c_id) WITH ORDINALITY AS c (id, n),
             LATERAL (SELECT * FROM receipts AS r WHERE r.command_id = c.id LIMIT 1) AS r;
        v_losers := v_repeats;
    END IF;

    SELECT array_agg(DISTINCT x.n) INTO v_stale
    FROM unnest(x_n, x_stream, x_version) AS x (n, stream, version)
    LEFT JOIN LATERAL (
        SELECT e.version FROM events AS e WHERE e.stream_id = x.stream ORDER BY e.version DESC LIMIT 1
    ) AS head ON true
    WHERE coalesce(head.version, 0) <> x.version;

    IF false = ANY (x_writes) THEN
        -- What a command looked at, an earlier neighbour writes: it loses even if that neighbour loses too,
        -- for no decision may rest on what is not committed.
        SELECT array_agg(DISTINCT x.n) INTO v_skewed
        FROM unnest(x_n, x_stream, x_writes) AS x (n, stream, writes)
        JOIN unnest(x_n, x_stream, x_writes) AS w (n, stream, writes)
          ON w.stream = x.stream AND w.writes AND w.n < x.n;
        v_stale := v_stale || v_skewed;
    END IF;

    IF v_stale IS NOT NULL THEN
        RETURN QUERY
        SELECT s.n, 'stale', NULL::bigint, NULL::json, v_now
        FROM (SELECT DISTINCT n FROM unnest(v_stale) AS u (n)) AS s WHERE s.n <> ALL (v_losers);
        v_losers := v_losers || v_stale;
    END IF;

    IF cardinality(g_n) > 0 THEN
        FOR n, result IN
            SELECT b.n, to_json(b.key) FROM move_guards(v_losers, g_n, g_key, g_delta, g_limit) AS b
        LOOP
            outcome := 'guard';
            recorded_at := v_now;
            v_losers := v_losers || n;
            RETURN NEXT;
        END LOOP;
    END IF;

    SELECT coalesce((SELECT e.position FROM events AS e ORDER BY e.position DESC LIMIT 1), 0) INTO v_base;

    -- A command with no events still leaves its receipt, at the position where it found nothing to say.
    INSERT INTO receipts (command_id, position, result, recorded_at)
    SELECT c.id, v_base + sum(c.events) OVER (ROWS UNBOUNDED PRECEDING), c.result, v_now
    FROM unnest(c_id, c_events, c_result) WITH ORDINALITY AS c (id, events, result, n)
    WHERE c.n <> ALL (v_losers);

    INSERT INTO events (position, stream_id, version, topic, data, metadata, recorded_at)
    SELECT v_base + row_number() OVER (), e.stream, e.version, e.topic, e.data, e.metadata, v_now
    FROM unnest(e_n, e_stream, e_version, e_topic, e_data, e_metadata) AS e (n, stream, version, topic, data, metadata)
    WHERE e.n <> ALL (v_losers);

    RETURN QUERY SELECT 0, 'appended', v_base, NULL::json, v_now;
END
$function$;
