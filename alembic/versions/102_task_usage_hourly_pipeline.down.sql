-- Undo 102_task_usage_hourly_pipeline. The hourly tables stay; nothing keeps them current any more, and
-- their watermark says so. What is still queued is lost with its queue.
-- Locks: ACCESS EXCLUSIVE on agent, agent_task_queue, issue and task_usage for DROP TRIGGER, and on the
--   hourly tables.

-- A scheduled tick would fail every minute once its function is gone, whatever its job is called. A job that does
-- something else besides is named instead. cron.job shows a role its own jobs only.
DO $$
DECLARE
    v_role CONSTANT text := current_user;
    v_row_security CONSTANT text := current_setting('row_security');
    v_job record;
    v_left text[] := '{}';
BEGIN
    -- As the session's own role: it may see more of cron.job than the owner of task_usage. pg_cron's own policy
    -- is meant to hide the jobs of others.
    PERFORM set_config('role', COALESCE(NULLIF(current_setting('usage_rollup.began_as', true), ''), 'none'), true),
        set_config('row_security', 'on', true);
    IF EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'cron' AND c.relname = 'job' AND has_schema_privilege(n.oid, 'USAGE')
            -- The extension's: functions of anybody else's would run with our rights.
            AND n.nspowner IN (SELECT r.oid FROM pg_roles r WHERE r.rolsuper)
    ) THEN
        -- Jobs have names since pg_cron 1.3.
        FOR v_job IN EXECUTE $cron$
            SELECT j.jobid, COALESCE(n.name, 'number ' || j.jobid) AS name,
                n.name = 'rollup_task_usage_hourly'
                    OR regexp_replace(j.command, $1 || '[^()]*\)|select|from|[\s,;*]', '', 'gi') = '' AS ends
            FROM cron.job AS j CROSS JOIN LATERAL (SELECT to_jsonb(j) ->> 'jobname') AS n (name)
            WHERE j.database = current_database() AND (n.name = 'rollup_task_usage_hourly' OR j.command ~* $1)
            ORDER BY j.jobid
        $cron$ USING '(public\s*\.\s*)?rollup_task_usage_hourly(_window)?\s*\('
        LOOP
            BEGIN
                IF v_job.ends IS NOT TRUE THEN
                    v_left := v_left || format('%s, which does something else besides', v_job.name);
                    CONTINUE;
                END IF;
                EXECUTE 'SELECT cron.unschedule($1)' USING v_job.jobid;
            EXCEPTION WHEN OTHERS THEN
                v_left := v_left || format('%s (%s)', v_job.name, SQLERRM);
            END;
        END LOOP;
    END IF;
    PERFORM set_config('role', v_role, true), set_config('row_security', v_row_security, true);
    IF v_left <> '{}' THEN
        RAISE WARNING 'pg_cron jobs that call the hourly rollup will fail from now on: %; change or unschedule them',
            array_to_string(v_left, '; ');
    END IF;
END
$$;

-- A walk that was killed has left the indexes of 101 to its last slice.
DO $$
BEGIN
    IF to_regprocedure('public.rollup_task_usage_hourly_build_indexes()') IS NOT NULL
        AND to_regclass('public.task_usage_hourly') IS NOT NULL
    THEN
        PERFORM public.rollup_task_usage_hourly_build_indexes();
    END IF;
END
$$;

-- What comes from here on is neither rolled up nor queued, so the watermark may claim nothing.
DO $$
BEGIN
    IF to_regclass('public.task_usage_hourly_rollup_state') IS NOT NULL THEN
        UPDATE public.task_usage_hourly_rollup_state SET watermark_at = '1970-01-01 00:00:00+00' WHERE id = 1;
    END IF;
END
$$;

-- Replica identity and comments as 102 found them.
ALTER TABLE IF EXISTS public.task_usage_hourly REPLICA IDENTITY DEFAULT;
ALTER TABLE IF EXISTS public.task_usage_hourly_dirty REPLICA IDENTITY DEFAULT;
DO $$
BEGIN
    IF to_regprocedure('public.rollup_task_usage_hourly_restore_legacy(text)') IS NOT NULL THEN
        PERFORM public.rollup_task_usage_hourly_restore_legacy(text '102');
    END IF;
END
$$;

DROP TRIGGER IF EXISTS trg_agent_dirty_hourly ON public.agent;
DROP TRIGGER IF EXISTS trg_agent_dirty_hourly_gone ON public.agent;
DROP TRIGGER IF EXISTS trg_agent_dirty_hourly_truncate ON public.agent;
DROP TRIGGER IF EXISTS trg_atq_dirty_hourly ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_atq_dirty_hourly_move ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_atq_dirty_hourly_gone ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_atq_dirty_hourly_truncate ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_issue_delete_dirty_hourly ON public.issue;
DROP TRIGGER IF EXISTS trg_issue_project_dirty_hourly ON public.issue;
DROP TRIGGER IF EXISTS trg_issue_dirty_hourly_move ON public.issue;
DROP TRIGGER IF EXISTS trg_issue_dirty_hourly_gone ON public.issue;
DROP TRIGGER IF EXISTS trg_issue_dirty_hourly_truncate ON public.issue;
DROP TRIGGER IF EXISTS trg_tu_dirty_hourly ON public.task_usage;
DROP TRIGGER IF EXISTS trg_tu_dirty_hourly_write ON public.task_usage;
DROP TRIGGER IF EXISTS trg_tu_dirty_hourly_gone ON public.task_usage;
DROP TRIGGER IF EXISTS trg_tu_dirty_hourly_truncate ON public.task_usage;

DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_atq();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_issue_delete();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_issue_project();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_tu();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_tu_write();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_tu_gone();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_truncate();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_move();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_hourly_dirty_for_gone();
DROP FUNCTION IF EXISTS public.task_usage_hourly_may_enqueue();

DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_finish();
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_slice();
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_plan_repair(bigint, timestamptz []);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_plan(timestamptz, bigint, timestamptz);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_build_indexes();
DROP FUNCTION IF EXISTS public.task_usage_hourly_slices(tstzmultirange, bigint);
DROP FUNCTION IF EXISTS public.task_usage_hourly_unwalked();
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly();
DROP FUNCTION IF EXISTS public.prune_task_usage_hourly_dirty(interval);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_hand_over(timestamptz, uuid []);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_oversized_keys(timestamptz);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_stale_keys(timestamptz, uuid []);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_pairs(public.task_usage_hourly_invalidation []);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_window(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_settle(timestamptz, timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_hourly_window_is_ours();
DROP FUNCTION IF EXISTS public.task_usage_hourly_tick_deadline();
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_drain_public(bigint);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_drain(bigint);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_hours(timestamptz [], timestamptz);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_remove_undated();
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_touch();
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_range(timestamptz, timestamptz, boolean);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_put_aside(
    timestamptz, uuid, uuid, uuid, uuid, text, text, text, text
);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_recompute(timestamptz, timestamptz, boolean);
DROP FUNCTION IF EXISTS public.task_usage_hourly_scan_pays(bigint);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_aggregate_by_scan(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_aggregate(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_hourly_rollup_lag_seconds();
DROP FUNCTION IF EXISTS public.task_usage_hourly_latest_event();
DROP FUNCTION IF EXISTS public.task_usage_hourly_held_back_by();
DROP FUNCTION IF EXISTS public.task_usage_hourly_horizon(interval);
DROP FUNCTION IF EXISTS public.task_usage_hourly_open_writers();
DROP FUNCTION IF EXISTS public.task_usage_hourly_legacy_excess();
DROP FUNCTION IF EXISTS public.task_usage_hourly_undated();
DROP FUNCTION IF EXISTS public.task_usage_hourly_differences(timestamptz, timestamptz, boolean);
DROP FUNCTION IF EXISTS public.task_usage_hourly_wrong_keys(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_hourly_pending_hours();
DROP FUNCTION IF EXISTS public.task_usage_hourly_invalidated_hours(public.task_usage_hourly_invalidation []);
DROP FUNCTION IF EXISTS public.task_usage_hourly_expected(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_hourly_label_digest(text, text);
DROP FUNCTION IF EXISTS public.task_usage_hourly_sum(numeric);
DROP FUNCTION IF EXISTS public.task_usage_hourly_dated(timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_hour_bucket(timestamptz);

DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_restore_legacy(text);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_restore_setting(text, text);
DROP FUNCTION IF EXISTS public.rollup_task_usage_hourly_remember_legacy(text);
DROP FUNCTION IF EXISTS public.task_usage_hourly_legacy_settings_now(text);
DROP FUNCTION IF EXISTS public.task_usage_hourly_acl(aclitem []);

DROP TABLE IF EXISTS public.task_usage_hourly_set_aside;
DROP TABLE IF EXISTS public.task_usage_hourly_backfill;
DROP TABLE IF EXISTS public.task_usage_hourly_left_out;
DROP TABLE IF EXISTS public.task_usage_hourly_invalidation;
DROP TABLE IF EXISTS public.task_usage_hourly_legacy_settings;
