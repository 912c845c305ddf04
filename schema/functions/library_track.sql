-- Record that an application's notification was processed, once and never backwards. A statement of its own holds the
-- head row, so that two who process the same application do not pass each other.
CREATE FUNCTION library_track(p_application text, p_notification bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp
AS $function$
BEGIN
    PERFORM FROM log_head AS h WHERE h.one FOR UPDATE;
    INSERT INTO tracking (application_name, notification_id)
    SELECT p_application, p_notification
    WHERE p_notification > coalesce((
        SELECT t.notification_id FROM tracking AS t
        WHERE t.application_name = p_application ORDER BY t.notification_id DESC LIMIT 1
    ), p_notification - 1);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'notification % of % was tracked before', p_notification, p_application
            USING ERRCODE = 'unique_violation';
    END IF;
END
$function$;
