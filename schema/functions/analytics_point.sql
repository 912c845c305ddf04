-- The views of `analytics` stand on views of `analytics_source`, one for each read model, whose schema is closed to
-- analysts, and these on the tables. (On the read models' own views they would ask the analyst for rights on the
-- tables.) This is the only way to write one of them.
CREATE FUNCTION analytics_source.point(model text, target regclass, columns text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    EXECUTE format('CREATE OR REPLACE VIEW analytics_source.%I AS SELECT %s FROM %s', model, columns, target);
END
$function$;
