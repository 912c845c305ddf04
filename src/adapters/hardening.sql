-- What PostgreSQL lets everybody do and an analyst must not: leave large objects or WAL on the disk, loop in a language
-- and so outlive a cancelled query, take the locks that migrations wait for, and wake every process ten thousand times a
-- second. Said by a superuser, once in each database; {login} is the role of the service, which needs some of it.
DO $harden$
DECLARE
    taken regprocedure;
BEGIN
    FOR taken IN
        SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND (
            proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'pg_logical_emit_message', 'pg_notify')
            OR proname ~ '^pg_(try_)?advisory_(xact_)?lock(_shared)?$'
        )
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', taken);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {login}', taken);
    END LOOP;
    REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;
    GRANT USAGE ON LANGUAGE plpgsql TO {login} WITH GRANT OPTION;
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$harden$;
