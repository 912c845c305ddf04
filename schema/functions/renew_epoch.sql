-- The log goes on as another one: after a restore or a promotion, positions past its end may have meant something else.
--
-- Whoever appends under the old epoch is told so (SL001), drops what it remembers and decides again. Every worker's
-- lease ends: whatever it was doing for the old log is given to another attempt. A running service survives that, at
-- the price of those attempts. The head row is locked, so that an append under way ends first.
CREATE FUNCTION renew_epoch()
RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = @schema@, pg_temp
AS $function$
DECLARE
    v_epoch uuid := gen_random_uuid();
BEGIN
    UPDATE log_head SET epoch = v_epoch;
    DELETE FROM worker_leases;
    RETURN v_epoch;
END
$function$;
