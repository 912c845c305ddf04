-- Who asks, and what of it they may see. session_user is what the server checked when the session began: SET ROLE does
-- not change it, and SET SESSION AUTHORIZATION is the superuser's. An analyst of another database of this server has
-- no row in `analysts` here and sees nothing; whoever owns the schema (the service) sees all.
CREATE FUNCTION analytics_source.sees_all() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM @schema@.analysts WHERE role = session_user AND owners IS NULL)
        OR pg_has_role(
            session_user, (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'analytics_source'), 'MEMBER'
        );
END;

CREATE FUNCTION analytics_source.is_known() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM @schema@.analysts WHERE role = session_user) OR analytics_source.sees_all();
END;

CREATE FUNCTION analytics_source.my_owners() RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT owners FROM @schema@.analysts WHERE role = session_user;
END;

-- The streams of those owners, for what names no owner itself: edges and events. Its text is read when it is called,
-- since the views that it names stand on tables whose row security names it.
CREATE FUNCTION analytics_source.my_streams() RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN QUERY
    SELECT job_id FROM analytics_source.jobs WHERE owner = ANY (analytics_source.my_owners())
    UNION ALL
    SELECT session_id FROM analytics_source.sessions WHERE owner = ANY (analytics_source.my_owners())
    UNION ALL
    SELECT model_id FROM analytics_source.models WHERE owner = ANY (analytics_source.my_owners())
    UNION ALL
    SELECT asset_id FROM analytics_source.assets WHERE owner = ANY (analytics_source.my_owners());
END
$function$;
