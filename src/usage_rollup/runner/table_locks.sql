-- Locks the tables of a step that exist, in the transaction that is open, giving way until all are free at once.
--
-- What: one attempt after another, with a growing, random pause, until the run's patience is over: the setting
--   usage_rollup.lock_timeout, or else the gap :patience.
-- Why so: all the waiting of one attempt together stays below deadlock_timeout, so this session is gone from the
--   queue before a deadlock check could choose a live server's transaction as its victim; then everything is
--   released, by the subtransaction, and live queries queue behind it no longer. An attempt also fails when we
--   were that victim, and when an old Go runner drops a table after we looked.
-- Says: who is in the way, as INFO, once everyday traffic no longer explains it, and again every minute; and when
--   it gives up, 55P03 with the holders in its detail.
-- Gaps: :locks are rows (number, mode, tables), which are locked in this order; :names are all the tables; :wanted
--   is the query below.

-- name: lock_tables
DO $lock$
DECLARE
    c_patience CONSTANT interval :=
        COALESCE(NULLIF(current_setting('usage_rollup.lock_timeout', true), ''), :patience)::interval;
    c_deadline CONSTANT timestamptz := clock_timestamp() + c_patience;
    c_lock_timeout CONSTANT text := current_setting('lock_timeout');
    c_names CONSTANT text[] := :names;
    v_say_at timestamptz := clock_timestamp() + interval '3 seconds';
    v_pause float8 := 0.1;
    v_lock record;
    v_blockers record;
BEGIN
    LOOP
        BEGIN
            FOR v_lock IN
                SELECT w.number, w.mode, string_agg(w.relation::text, ', ') AS tables, SUM(COUNT(*)) OVER () AS all_tables
                FROM (
                    :wanted
                ) AS w
                GROUP BY w.number, w.mode ORDER BY w.number
            LOOP
                PERFORM set_config('lock_timeout', ceil(EXTRACT(EPOCH FROM
                    current_setting('deadlock_timeout')::interval) * 800 / v_lock.all_tables)::text, true);
                EXECUTE format('LOCK TABLE %s IN %s MODE', v_lock.tables, v_lock.mode);
            END LOOP;
            PERFORM set_config('lock_timeout', c_lock_timeout, true);
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected OR undefined_table THEN
            NULL;
        END;

        IF clock_timestamp() >= LEAST(v_say_at, c_deadline) THEN
            -- Or it would show who was there when it was first asked in this transaction.
            PERFORM pg_stat_clear_snapshot();
            SELECT * INTO STRICT v_blockers FROM (
                :blockers
            ) AS b;
            IF clock_timestamp() >= c_deadline THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = format('could not lock %s within %s s',
                        CASE WHEN v_lock.number < 0 THEN replace(v_lock.tables, 'public.', '')
                            ELSE array_to_string(c_names, ', ') END, round(EXTRACT(EPOCH FROM c_patience))),
                    DETAIL = 'in the way: ' || v_blockers.who,
                    HINT = v_blockers.hint || '; then begin again';
            END IF;
            RAISE INFO 'waiting for table locks, % s more at most; in the way: %',
                ceil(EXTRACT(EPOCH FROM c_deadline - clock_timestamp())), v_blockers.who;
            v_say_at := clock_timestamp() + interval '1 minute';
        END IF;
        PERFORM pg_sleep(random() * v_pause);
        v_pause := LEAST(2 * v_pause, 3);
    END LOOP;
END
$lock$;

-- name: wanted
-- The tables that exist, with the modes in which they can be locked: who may only add to the ledger may not keep
-- others from doing so. A name with a dot is that of a table which 103 keeps, in any of its schemas.
SELECT w.number, c.oid::regclass AS relation, CASE
        WHEN w.number < 0 AND NOT has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') THEN 'ROW EXCLUSIVE'
        ELSE w.mode END AS mode
FROM (
    SELECT -1 AS number, :ledger_mode AS mode, unnest(:ledgers) AS name
    UNION ALL
    SELECT l.number, l.mode, string_to_table(l.tables, ' ')
    FROM (VALUES
        :locks
    ) AS l (number, mode, tables)
) AS w
JOIN pg_class c ON c.relname = regexp_replace(w.name, '^.*[.]', '') AND c.relkind IN ('r', 'p')
JOIN pg_namespace n ON n.oid = c.relnamespace AND has_schema_privilege(n.oid, 'USAGE')
WHERE CASE WHEN w.name LIKE '%.%' THEN regexp_replace(n.nspname, '_[0-9]+$', '') || '.' || c.relname = w.name
    ELSE n.nspname = 'public' END
