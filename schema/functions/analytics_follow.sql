-- Lets analysts follow where the read models' own views lead. For each whose table is another one than before: row
-- security on that table, then the right to read it, what is sealed or may hold a secret aside, then the view.
-- A rebuild calls it between its switch and the end of the old table, and so waits for the analysts' queries that run.
CREATE FUNCTION analytics_source.follow() RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    -- Row by row these would cost a call each: as subqueries without reference to the row they are asked once.
    owned constant text := '(SELECT analytics_source.sees_all())'
        ' OR %s = ANY ((SELECT analytics_source.my_owners())::text[])';
    linked constant text := '(SELECT analytics_source.sees_all())'
        ' OR src IN (SELECT analytics_source.my_streams()) OR dst IN (SELECT analytics_source.my_streams())';
    known constant text := '(SELECT analytics_source.is_known())';
    item record;
    columns text;
BEGIN
    FOR item IN
        SELECT given.model, given.visible,
            analytics_source.table_behind(to_regclass('@schema@.' || given.model)) AS target,
            analytics_source.table_behind(to_regclass('analytics_source.' || given.model)) AS served
        FROM (VALUES
            ('assets', format(owned, 'owner')),
            ('sessions', format(owned, 'owner')),
            ('models', format(owned, 'owner')),
            ('model_slots', known),
            ('jobs', format(owned, 'owner')),
            ('lineage_edges', linked),
            ('sessions_history', format(owned, '("row" ->> ''owner'')')),
            ('models_history', format(owned, '("row" ->> ''owner'')')),
            ('model_slots_history', known),
            ('jobs_history', format(owned, '("row" ->> ''owner'')'))
        ) AS given (model, visible)
    LOOP
        CONTINUE WHEN item.target = item.served;
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns FROM pg_attribute
        WHERE attrelid = to_regclass('@schema@.' || item.model) AND attnum > 0 AND NOT attisdropped
        AND attname <> ALL ('{user_id,callback_url}');
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', item.target);
        EXECUTE format('DROP POLICY IF EXISTS analysts ON %s', item.target);
        EXECUTE format(
            'CREATE POLICY analysts ON %s FOR SELECT TO sightline_analytics USING (%s)', item.target, item.visible
        );
        EXECUTE format('GRANT SELECT (%s) ON %s TO sightline_analytics', columns, item.target);
        PERFORM analytics_source.point(item.model, item.target, columns);
        RETURN NEXT item.model;
    END LOOP;
END
$function$;

-- The table that a view is on; null where there is no such view yet.
CREATE FUNCTION analytics_source.table_behind(view regclass) RETURNS regclass
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT relation.oid::regclass FROM pg_catalog.pg_rewrite AS rule
    JOIN pg_catalog.pg_depend AS needs
        ON needs.classid = 'pg_catalog.pg_rewrite'::regclass AND needs.objid = rule.oid
    JOIN pg_catalog.pg_class AS relation
        ON needs.refclassid = 'pg_catalog.pg_class'::regclass AND needs.refobjid = relation.oid
    WHERE rule.ev_class = view AND relation.relkind = 'r' LIMIT 1;
END;

-- Rights on the database itself, which neither a copy of it nor a dump carries along: said again for every new analyst.
-- Whoever may make temporary tables may fill the disk and has functions of his own.
CREATE FUNCTION analytics_source.protect_database() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO sightline_analyst', current_database());
END
$function$;
