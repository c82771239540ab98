-- 103_drop_legacy_daily_rollups: the hourly rollup serves every report, so both daily ones go.
--
-- Why now: only after the hourly rollup is proven to hold the history. The guard below fails closed;
--   the runner's hook before this revision is what makes it pass.
-- Assumes: 102, and the table locks named under Locks, which the runner takes in one statement.
-- Locks: ACCESS EXCLUSIVE on agent_task_queue, issue, task_usage and the six legacy tables;
--   advisory 4246 until commit.
-- Undone by: 103_drop_legacy_daily_rollups.down.sql, which rebuilds both rollups from raw rows.

-- The guard. Every refusal starts with the same words and changes nothing.
DO $guard$
DECLARE
    v_refusal CONSTANT text := 'refusing to drop legacy daily rollups: ';
    v_again CONSTANT text := 'Run `alembic upgrade head` again: it backfills before this step, and resumes where it stopped.';
    v_usage boolean := EXISTS (SELECT FROM public.task_usage);
    v_watermark timestamptz;
    v_latest timestamptz;
    v_hours bigint;
    v_first timestamptz;
    v_last timestamptz;
BEGIN
    -- The product's own runner may have been here since the hook: nothing left to guard.
    IF num_nonnulls(
        to_regclass('public.task_usage_daily'), to_regclass('public.task_usage_daily_dirty'),
        to_regclass('public.task_usage_rollup_state'), to_regclass('public.task_usage_dashboard_daily'),
        to_regclass('public.task_usage_dashboard_dirty'),
        to_regclass('public.task_usage_dashboard_rollup_state')) = 0
    THEN
        RETURN;
    END IF;

    -- Without usage there is no history to lose.
    IF NOT v_usage AND to_regclass('public.task_usage_hourly_rollup_state') IS NULL THEN
        RETURN;
    END IF;

    IF NOT pg_try_advisory_xact_lock(4246) THEN
        RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
            MESSAGE = v_refusal || 'another session is writing the hourly rollup',
            DETAIL = 'Advisory lock 4246 is held.', HINT = v_again;
    END IF;

    IF to_regclass('public.task_usage_hourly_rollup_state') IS NULL
        OR to_regprocedure('public.task_usage_hourly_differences(timestamptz,timestamptz)') IS NULL
    THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = v_refusal || 'the hourly pipeline is not installed',
            DETAIL = 'public.task_usage_hourly_rollup_state or public.task_usage_hourly_differences() is missing.',
            HINT = 'Put 101 and 102 back: `alembic stamp 100`, drop what is left of the hourly tables, `alembic upgrade head`.';
    END IF;

    -- By lag.
    SELECT watermark_at INTO v_watermark FROM public.task_usage_hourly_rollup_state WHERE id = 1;
    IF v_usage THEN
        v_latest := public.task_usage_hourly_latest_event();
        IF v_watermark IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the state row of the hourly rollup is missing',
                DETAIL = format('Latest usage event: %s.', v_latest), HINT = v_again;
        ELSIF v_watermark > clock_timestamp() THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the watermark of the hourly rollup lies in the future',
                DETAIL = format('Watermark: %s; now: %s.', v_watermark, clock_timestamp()),
                HINT = 'UPDATE public.task_usage_hourly_rollup_state SET watermark_at = ''epoch'' WHERE id = 1; then run `alembic upgrade head` again.';
        ELSIF v_latest - v_watermark > interval '1 hour' THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the hourly rollup trails usage by more than one hour',
                DETAIL = format('Watermark: %s; latest usage event: %s; lag: %s.',
                    v_watermark, v_latest, v_latest - v_watermark),
                HINT = v_again;
        END IF;
    END IF;

    -- By content. A proof made by this very session for this watermark, under 4246, still holds: what
    -- was written since is queued or above the watermark. Anyone else pays for the whole comparison.
    IF current_setting('usage_rollup.proof', true) IS DISTINCT FROM v_watermark::text THEN
        SELECT COUNT(*), MIN(d), MAX(d) INTO v_hours, v_first, v_last
        FROM public.task_usage_hourly_differences() AS d;
        IF v_hours > 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the hourly rollup does not match raw usage',
                DETAIL = format('Hours that differ: %s, from %s to %s.', v_hours, v_first, v_last),
                HINT = v_again;
        END IF;
    END IF;
END
$guard$;

-- A job whose function is gone fails every few minutes for ever. cron.job shows a role its own jobs only.
DO $$
DECLARE
    v_role CONSTANT text := current_user;
BEGIN
    -- As the session's own role: it may see more of cron.job than the owner of task_usage.
    PERFORM set_config('role', 'none', true);
    IF EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'cron' AND c.relname = 'job' AND has_schema_privilege(n.oid, 'USAGE')
    ) THEN
        EXECUTE $cron$
            SELECT cron.unschedule(jobid) FROM cron.job
            WHERE database = current_database() AND jobname IN ('rollup_task_usage_daily', 'rollup_task_usage_dashboard_daily')
        $cron$;
    END IF;
    PERFORM set_config('role', v_role, true);
END
$$;

-- IF EXISTS throughout: an old Go runner takes no lock and may have dropped some or all of it.
DROP TRIGGER IF EXISTS trg_atq_dirty_rollup ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_tu_dirty_rollup ON public.task_usage;
DROP TRIGGER IF EXISTS trg_atq_dirty_dashboard ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_tu_dirty_dashboard ON public.task_usage;
DROP TRIGGER IF EXISTS trg_issue_delete_dirty_dashboard ON public.issue;
DROP TRIGGER IF EXISTS trg_issue_project_dirty_dashboard ON public.issue;

DROP FUNCTION IF EXISTS public.rollup_task_usage_daily();
DROP FUNCTION IF EXISTS public.rollup_task_usage_daily_window(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_rollup_lag_seconds();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_daily_dirty_for_atq();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_daily_dirty_for_tu();
DROP FUNCTION IF EXISTS public.rollup_task_usage_dashboard_daily();
DROP FUNCTION IF EXISTS public.rollup_task_usage_dashboard_daily_window(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_dashboard_rollup_lag_seconds();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_atq();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_tu();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_issue_delete();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_issue_project();

DROP TABLE IF EXISTS public.task_usage_daily;
DROP TABLE IF EXISTS public.task_usage_daily_dirty;
DROP TABLE IF EXISTS public.task_usage_rollup_state;
DROP TABLE IF EXISTS public.task_usage_dashboard_daily;
DROP TABLE IF EXISTS public.task_usage_dashboard_dirty;
DROP TABLE IF EXISTS public.task_usage_dashboard_rollup_state;
