-- Bring the hourly rollup up to date and prove it, in a script: what backfill_before_103() beside it does online.
--
-- What: the same lock, horizon, slices, watermark and proof in the same order, by the same functions of 102. It
--   goes around one loop, because a DO block has no functions of its own: each round takes the lock if it was
--   given up, reads the state, and does the next thing that is missing, in one transaction. What is done is
--   told when it is committed.
-- Assumes: 102. Runs outside a transaction, in the session that goes on to 103, which finds advisory lock 4246
--   held and the proof in a setting.
-- Locks: advisory :hourly_rollup, by polling; the session keeps it. For tables and rows that others have locked a
--   round waits as long as lock_timeout says, then names them.
-- Undone by: nothing. Killed at any moment, the next run goes on with the slices that are left.
-- Gaps are closed by IN_SCRIPT of backfill.py.

DO $backfill$
DECLARE
    c_rest CONSTANT interval := COALESCE(NULLIF(current_setting('usage_rollup.sleep_between_slices', true), ''), '0');
    c_again CONSTANT text := 'run a script made by `alembic upgrade 102:head --sql`; finished slices stay';
    v_has_lock boolean := false;
    v_phase text := 'history';
    v_state record;
    v_horizon timestamptz;
    v_analyzed boolean := false;
    v_has_walked boolean;
    v_planned boolean := false;
    v_left_out boolean;
    v_slice record;
    v_slices bigint := 0;
    v_repairs int := 0;
    v_count bigint;
    v_table text;
    v_said text;
    v_blockers record;
BEGIN
    -- The guard of 103 decides.
    IF num_nulls(to_regclass('public.task_usage_hourly'), to_regclass('public.task_usage_hourly_dirty'),
        to_regclass('public.task_usage_hourly_rollup_state')) > 0
    THEN
        RAISE INFO 'nothing to roll up: there is no hourly rollup yet, and the guard of 103 decides';
        RETURN;
    END IF;

    WHILE v_phase <> 'done' LOOP
        IF NOT v_has_lock THEN
            :take_lock;
            v_has_lock := true;
            COMMIT;
        END IF;
        v_said := NULL;
        v_has_walked := false;

        BEGIN
            INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO NOTHING;
            SELECT s.watermark_at, NOT EXISTS (SELECT FROM public.task_usage) AS no_usage,
                EXISTS (SELECT FROM public.task_usage_hourly_backfill) AS unfinished,
                make_interval(secs => public.task_usage_hourly_rollup_lag_seconds()) AS lag,
                (
                    :left_out
                ) IS NOT NULL AS left_out
            INTO STRICT v_state FROM public.task_usage_hourly_rollup_state s WHERE s.id = 1;
            IF v_state.watermark_at > clock_timestamp() THEN
                RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                    MESSAGE = format('the watermark of the hourly rollup lies in the future: %s', v_state.watermark_at),
                    HINT = 'UPDATE public.task_usage_hourly_rollup_state SET watermark_at = ''epoch'' WHERE id = 1; then '
                        || c_again;
            END IF;

            -- Before the plan is gone that tells whether it reaches there.
            v_left_out := COALESCE(v_left_out, v_state.left_out);

            -- Without statistics, as after a restore, the planner guesses. What is being vacuumed is left out.
            IF v_phase = 'history' AND NOT v_analyzed AND NOT v_state.no_usage
                AND (v_state.unfinished OR v_left_out OR v_state.lag > :lag_threshold)
            THEN
                v_analyzed := true;
                FOR v_table IN
                    SELECT t FROM unnest(:analyzed) AS t
                    WHERE NOT EXISTS (SELECT FROM pg_stats s WHERE s.schemaname = 'public' AND s.tablename = t)
                LOOP
                    EXECUTE format('ANALYZE (SKIP_LOCKED) public.%I', v_table);
                END LOOP;

            -- What is planned, a slice a transaction.
            ELSIF v_state.unfinished AND NOT (v_phase = 'history' AND v_state.no_usage) THEN
                SELECT * INTO v_slice FROM public.rollup_task_usage_hourly_slice();
                v_has_walked := FOUND;
                IF v_has_walked THEN
                    v_slices := v_slices + 1;
                    v_said := format('slice %s: %s to %s, %s rows, %s buckets',
                        v_slices, v_slice.slice_from, v_slice.slice_to, v_slice.usage_rows, v_slice.buckets);
                ELSE
                    PERFORM public.rollup_task_usage_hourly_finish();
                END IF;

            ELSIF v_phase = 'history' AND v_left_out THEN
                :plan_left_out;
                v_left_out := false;
                v_said := 'rolling up what a partial backfill left out';

            ELSIF v_phase = 'history' AND (v_state.no_usage OR v_state.lag > :lag_threshold AND NOT v_planned) THEN
                IF v_horizon IS NULL THEN
                    -- In a transaction of its own, before any snapshot that relies on it.
                    v_horizon := public.task_usage_hourly_horizon(interval :horizon_wait);
                    IF v_horizon = '-infinity' AND NOT v_state.no_usage THEN
                        SELECT * INTO STRICT v_blockers FROM (
                            :held_back_by
                        ) AS b;
                        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                            MESSAGE = 'no safe horizon: transactions are open whose start this role cannot see, or that'
                                ' were prepared and left: ' || v_blockers.who,
                            HINT = v_blockers.hint || '; then ' || c_again;
                    END IF;
                ELSE
                    PERFORM public.rollup_task_usage_hourly_plan(
                        v_horizon, bigint ':slice_rows', timestamptz '-infinity');
                    v_planned := true;
                    IF v_state.no_usage THEN
                        v_said := 'nothing to roll up: there is no usage yet';
                        v_phase := 'drain';
                    END IF;
                END IF;

            ELSIF v_phase = 'history' AND v_state.lag > :lag_threshold THEN
                SELECT * INTO STRICT v_blockers FROM (
                    :held_back_by
                ) AS b;
                RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                    MESSAGE = format('the history is rolled up, but the watermark cannot follow: it trails by %s, held'
                        ' back by %s', v_state.lag, v_blockers.who),
                    HINT = v_blockers.hint || '; then ' || c_again;

            ELSIF v_phase = 'history' THEN
                v_phase := 'drain';
                IF v_analyzed THEN
                    -- The proof and the dashboards plan their queries minutes before autovacuum would come by.
                    ANALYZE (SKIP_LOCKED) public.task_usage_hourly
                        (bucket_hour, workspace_id, runtime_id, agent_id, project_id);
                ELSE
                    v_said := 'nothing to roll up: the hourly rollup is up to date';
                END IF;

            ELSIF v_phase = 'drain' THEN
                PERFORM public.rollup_task_usage_hourly_window(timestamptz '-infinity', timestamptz '-infinity');
                v_phase := 'proof';

            -- Compare in one snapshot, recompute what differs, compare again.
            ELSIF v_phase = 'proof' AND v_repairs < :repairs THEN
                v_count := public.rollup_task_usage_hourly_plan_repair(bigint ':slice_rows');
                IF v_count = 0 THEN
                    v_phase := 'proven';
                ELSE
                    v_repairs := v_repairs + 1;
                    RAISE WARNING 'hours of the rollup that differ from raw usage: %; recomputing them', v_count;
                END IF;
            ELSIF v_phase = 'proof' THEN
                SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_differences(
                    timestamptz '-infinity', timestamptz 'infinity', false);
                IF v_count > 0 THEN
                    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                        MESSAGE = format('hours of the hourly rollup that still differ from raw usage after'
                            ' recomputing: %s', v_count),
                        HINT = 'SELECT public.task_usage_hourly_differences() names them';
                END IF;
                v_phase := 'proven';

            ELSIF v_phase = 'proven' THEN
                PERFORM set_config('usage_rollup.proof', s.watermark_at::text, false)
                FROM public.task_usage_hourly_rollup_state s WHERE s.id = 1;
                -- Whatever was left out once is in now.
                DELETE FROM public.task_usage_hourly_left_out;
                v_said := 'the hourly rollup matches raw usage';
                v_phase := 'losses';

            -- What the rollup cannot show, and what only the legacy rollups hold: 103 keeps that.
            ELSE
                SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_set_aside;
                IF v_count > 0 THEN
                    RAISE WARNING 'buckets that are set aside, see task_usage_hourly_set_aside: %', v_count;
                END IF;
                SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_undated();
                IF v_count > 0 THEN
                    RAISE WARNING 'usage rows dated outside years 1-9998, see task_usage_hourly_undated(): %', v_count;
                END IF;
                SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_legacy_excess();
                PERFORM set_config('usage_rollup.legacy_excess', v_count::text, false);
                IF v_count > 0 THEN
                    RAISE WARNING 'daily totals that exist only in the legacy rollups: %', v_count;
                END IF;
                v_phase := 'done';
            END IF;
        :name_the_holder;
        COMMIT;
        IF v_said IS NOT NULL THEN
            RAISE INFO '%', v_said;
        END IF;

        -- Workspace deletion waits ten seconds for this lock.
        IF v_has_walked AND (c_rest > interval '0' OR EXISTS (
            SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND NOT l.granted
                AND (l.classid::bigint << 32 | l.objid::bigint) = :hourly_rollup
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())))
        THEN
            PERFORM pg_advisory_unlock(:hourly_rollup);
            v_has_lock := false;
            COMMIT;
            PERFORM pg_sleep_for(c_rest);
        END IF;
    END LOOP;
END
$backfill$;
