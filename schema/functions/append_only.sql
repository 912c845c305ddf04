-- What is in the log stays as it is: whoever tries otherwise is told so, the owner included.
CREATE FUNCTION append_only() RETURNS trigger
LANGUAGE plpgsql
AS $function$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'SL002';
END
$function$;
