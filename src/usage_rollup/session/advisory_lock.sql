-- name: may_be_taken
SELECT has_function_privilege('pg_catalog.pg_try_advisory_lock(bigint)', 'EXECUTE')
    AND has_function_privilege('pg_catalog.pg_advisory_unlock(bigint)', 'EXECUTE');

-- name: in_script
-- Ask again and again: pg_advisory_lock() has no deadline and deadlocks with CREATE INDEX CONCURRENTLY while it
-- waits. Between two attempts no transaction is open, so no snapshot is held. Said is who holds it, after a few
-- seconds and again every minute.
DECLARE
    c_patience CONSTANT interval :=
        COALESCE(NULLIF(current_setting('usage_rollup.lock_timeout', true), ''), :patience)::interval;
    c_deadline CONSTANT timestamptz := clock_timestamp() + c_patience;
    v_say_at timestamptz := clock_timestamp() + interval '3 seconds';
    v_blockers record;
BEGIN
    WHILE NOT pg_try_advisory_lock(:key) LOOP
        IF clock_timestamp() >= LEAST(v_say_at, c_deadline) THEN
            SELECT * INTO STRICT v_blockers FROM (
                :blockers
            ) AS b;
            IF clock_timestamp() >= c_deadline THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = format('advisory lock :key (:name) was not free within %s s; held by %s',
                        round(EXTRACT(EPOCH FROM c_patience)), v_blockers.who),
                    HINT = v_blockers.hint;
            END IF;
            RAISE INFO 'waiting for advisory lock :key (:name), % s more at most; held by %',
                ceil(EXTRACT(EPOCH FROM c_deadline - clock_timestamp())), v_blockers.who;
            v_say_at := clock_timestamp() + interval '1 minute';
        END IF;
        COMMIT;
        PERFORM pg_sleep(0.1);
    END LOOP;
END;
