-- Locks the tables of a step that exist, in the transaction that is open, giving way until all are free at once.
--
-- What: one attempt after another, with a growing, random pause, until the run's patience is over: the setting
--   usage_rollup.lock_timeout, or else the gap :patience.
-- Why so: all the waiting of one attempt together stays below deadlock_timeout, so this session is gone from the
--   queue before a deadlock check could choose a live server's transaction as its victim; then everything is
--   released, by the subtransaction, and live queries queue behind it no longer. An attempt also fails when we
--   were that victim, and when an old Go runner drops a table after we looked.
-- Says: who is in the way, as INFO, once everyday traffic no longer explains it; and when it gives up, 55P03 with
--   the holders in its detail.
-- Gaps: :locks are rows (number, mode, tables), which are locked in this order; :names are all the tables.

-- name: lock_tables
DO $lock$
DECLARE
    c_patience CONSTANT interval :=
        COALESCE(NULLIF(current_setting('usage_rollup.lock_timeout', true), ''), :patience)::interval;
    c_deadline CONSTANT timestamptz := clock_timestamp() + c_patience;
    c_names CONSTANT text[] := :names;
    v_attempt int := 0;
    v_pause float8 := 0.1;
    v_lock record;
    v_blockers record;
BEGIN
    LOOP
        BEGIN
            FOR v_lock IN
                SELECT l.mode, string_agg(t.name::text, ', ') AS tables, SUM(COUNT(*)) OVER () AS all_tables
                FROM (VALUES
                    :locks
                ) AS l (number, mode, tables)
                CROSS JOIN LATERAL (
                    SELECT to_regclass(format('public.%I', n)) AS name FROM string_to_table(l.tables, ' ') AS n)
                    AS t
                WHERE t.name IS NOT NULL GROUP BY l.number, l.mode ORDER BY l.number
            LOOP
                PERFORM set_config('lock_timeout', ceil(EXTRACT(EPOCH FROM
                    current_setting('deadlock_timeout')::interval) * 800 / v_lock.all_tables)::text, true);
                EXECUTE format('LOCK TABLE %s IN %s MODE', v_lock.tables, v_lock.mode);
            END LOOP;
            SET LOCAL lock_timeout = 0;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR undefined_table THEN
            NULL;
        END;

        v_attempt := v_attempt + 1;
        IF v_attempt = 5 OR clock_timestamp() >= c_deadline THEN
            -- Or it would show who was there when it was first asked in this transaction.
            PERFORM pg_stat_clear_snapshot();
            SELECT * INTO STRICT v_blockers FROM (
                :blockers
            ) AS b;
            IF clock_timestamp() >= c_deadline THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = format('could not lock %s within %s s', array_to_string(c_names, ', '),
                        round(EXTRACT(EPOCH FROM c_patience))),
                    DETAIL = 'in the way: ' || v_blockers.who,
                    HINT = v_blockers.hint || '; then begin again';
            END IF;
            RAISE INFO 'waiting for table locks; in the way: %', v_blockers.who;
        END IF;
        PERFORM pg_sleep(random() * v_pause);
        v_pause := LEAST(2 * v_pause, 3);
    END LOOP;
END
$lock$;
