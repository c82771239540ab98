-- 103_drop_legacy_daily_rollups, before it: bring the hourly rollup up to date and prove it.
--
-- What: what the runner's hook does (usage_rollup.backfill), for the script that `alembic upgrade --sql`
--   writes: the same lock, horizon, slices, watermark and proof, by the same functions of 102.
-- Why now: 103 drops what the hourly rollup must hold by then.
-- Assumes: 102. Runs outside a transaction, since it commits every slice, and in the session that goes on
--   to 103, which finds advisory lock 4246 held and the proof in a setting.
-- Locks: advisory 4246, by polling; the session keeps it.
-- Undone by: nothing. Killed at any moment, the next run goes on with the slices that are left.

DO $backfill$
DECLARE
    c_slice_rows CONSTANT bigint := 200000;
    c_patience CONSTANT interval := COALESCE(NULLIF(current_setting('usage_rollup.lock_timeout', true), ''), '10min');
    c_rest CONSTANT interval := COALESCE(NULLIF(current_setting('usage_rollup.sleep_between_slices', true), ''), '0');
    c_again CONSTANT text := 'run a script made by `alembic upgrade 102:head --sql`; finished slices stay.';
    v_locked boolean := false;
    v_deadline timestamptz;
    v_state record;
    v_horizon timestamptz;
    v_planned boolean := false;
    v_slice record;
    v_slices bigint := 0;
    v_drained boolean := false;
    v_differing bigint;
    v_repairs int := 0;
    v_count bigint;
BEGIN
    -- The guard of 103 decides.
    IF to_regclass('public.task_usage_hourly_rollup_state') IS NULL
        OR to_regclass('public.task_usage_hourly') IS NULL
    THEN
        RETURN;
    END IF;

    LOOP
        -- pg_advisory_lock() has no deadline and deadlocks with CREATE INDEX CONCURRENTLY while it waits.
        v_deadline := clock_timestamp() + c_patience;
        WHILE NOT v_locked LOOP
            v_locked := pg_try_advisory_lock(4246);
            COMMIT;
            EXIT WHEN v_locked;
            IF clock_timestamp() >= v_deadline THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = format('advisory lock 4246 (hourly rollup) was not free within %s', c_patience),
                    DETAIL = concat('held by ', (
                        SELECT string_agg(format('pid %s (%s, %s since %s)',
                            a.pid, a.application_name, a.state, a.state_change), '; ')
                        FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                        WHERE l.locktype = 'advisory' AND l.granted AND l.classid = 0 AND l.objid = 4246
                            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))),
                    HINT = 'end the session that holds it: SELECT pg_terminate_backend(pid); then ' || c_again;
            END IF;
            PERFORM pg_sleep(0.1);
        END LOOP;

        INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO NOTHING;
        SELECT
            s.watermark_at, NOT EXISTS (SELECT FROM public.task_usage) AS no_usage,
            EXISTS (SELECT FROM public.task_usage_hourly_backfill) AS unfinished,
            make_interval(secs => public.task_usage_hourly_rollup_lag_seconds()) AS lag
        INTO v_state FROM public.task_usage_hourly_rollup_state s WHERE s.id = 1;
        COMMIT;
        IF v_state.watermark_at > clock_timestamp() THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('the watermark of the hourly rollup lies in the future: %s', v_state.watermark_at),
                HINT = 'UPDATE public.task_usage_hourly_rollup_state SET watermark_at = ''epoch'' WHERE id = 1; then ' || c_again;
        END IF;

        -- What is planned, a slice a transaction.
        IF v_state.unfinished THEN
            SELECT * INTO v_slice FROM public.rollup_task_usage_hourly_slice();
            IF FOUND THEN
                COMMIT;
                v_slices := v_slices + 1;
                RAISE INFO 'slice %: % to %, % rows, % buckets',
                    v_slices, v_slice.slice_from, v_slice.slice_to, v_slice.usage_rows, v_slice.buckets;
                -- Workspace deletion waits ten seconds for this lock.
                IF c_rest > interval '0' OR EXISTS (
                    SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND NOT granted
                        AND classid = 0 AND objid = 4246
                        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
                THEN
                    PERFORM pg_advisory_unlock(4246);
                    v_locked := false;
                    COMMIT;
                    PERFORM pg_sleep_for(c_rest);
                END IF;
            ELSE
                PERFORM public.rollup_task_usage_hourly_finish();
            END IF;
            COMMIT;
            CONTINUE;
        END IF;

        -- The horizon in a statement and transaction of its own, before any snapshot that relies on it.
        IF v_state.lag > interval '1 hour' AND v_planned THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('the history is rolled up, but the watermark cannot follow: it trails by %s', v_state.lag),
                DETAIL = concat('held back by ', (
                    SELECT format('pid %s (%s, %s since %s)', a.pid, a.application_name, a.state, a.xact_start)
                    FROM pg_stat_activity a
                    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
                    ORDER BY a.xact_start LIMIT 1)),
                HINT = 'end that transaction, then ' || c_again;
        ELSIF (v_state.lag > interval '1 hour' OR v_state.no_usage) AND NOT v_planned THEN
            v_horizon := public.task_usage_hourly_horizon('10 seconds');
            COMMIT;
            IF v_horizon = '-infinity' AND NOT v_state.no_usage THEN
                RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                    MESSAGE = 'no safe horizon: transactions are open whose start this role cannot see, or that were prepared and left',
                    DETAIL = concat('prepared: ', (
                        SELECT string_agg(format('%s since %s', p.gid, p.prepared), '; ')
                        FROM pg_prepared_xacts p WHERE p.database = current_database())),
                    HINT = 'end them (COMMIT PREPARED, ROLLBACK PREPARED), or GRANT pg_read_all_stats to the migrating role; then ' || c_again;
            END IF;
            PERFORM public.rollup_task_usage_hourly_plan(v_horizon, c_slice_rows);
            v_planned := true;
            COMMIT;
            CONTINUE;
        END IF;

        -- Level: drain, compare in one snapshot, recompute what differs, compare again.
        IF NOT v_drained THEN
            PERFORM public.rollup_task_usage_hourly_window('-infinity', '-infinity');
            v_drained := true;
            COMMIT;
        END IF;
        v_differing := public.rollup_task_usage_hourly_plan_repair(c_slice_rows);
        COMMIT;
        EXIT WHEN v_differing = 0;
        v_repairs := v_repairs + 1;
        IF v_repairs = 3 THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('%s hours of the hourly rollup still differ from raw usage after they were recomputed', v_differing),
                HINT = 'SELECT public.task_usage_hourly_differences() names them';
        END IF;
        RAISE WARNING '% hours of the rollup differ from raw usage; recomputing them', v_differing;
    END LOOP;

    PERFORM
        set_config('usage_rollup.proof', s.watermark_at::text, false),
        set_config('usage_rollup.legacy_excess',
            (SELECT COUNT(*)::text FROM public.task_usage_hourly_legacy_excess()), false)
    FROM public.task_usage_hourly_rollup_state s WHERE s.id = 1;
    DELETE FROM public.task_usage_hourly_left_out;
    COMMIT;
    RAISE INFO 'the hourly rollup matches raw usage';

    -- The dashboards plan their queries minutes before autovacuum would come by.
    IF v_slices > 0 THEN
        ANALYZE (SKIP_LOCKED) public.task_usage_hourly
            (bucket_hour, workspace_id, runtime_id, agent_id, project_id);
    END IF;

    IF current_setting('usage_rollup.legacy_excess') <> '0' THEN
        RAISE WARNING '% daily totals exist only in the legacy rollups', current_setting('usage_rollup.legacy_excess');
    END IF;
    SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_set_aside;
    IF v_count > 0 THEN
        RAISE WARNING '% buckets are set aside, see task_usage_hourly_set_aside', v_count;
    END IF;
    SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_undated();
    IF v_count > 0 THEN
        RAISE WARNING '% usage rows are dated outside years 1-9998: task_usage_hourly_undated()', v_count;
    END IF;
END
$backfill$;
