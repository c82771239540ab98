-- 097_autopilot_project_id: remove the v0.3.4 baseline.
--
-- What      Drops the 14 relations, 12 functions and 6 triggers of the up file.
-- Why now   A chain that builds a database from nothing must be able to take it back to nothing.
-- Assumes   No ledger: a database the product's own runner made is not this chain's to take down. The eight product tables are empty, and nothing else was built on them: no CASCADE, so that a table of the
--           product this file does not know stops it instead of going with it.
-- Locks     ACCESS EXCLUSIVE on all 14 relations, taken together before the first look.
-- Undone    By 097_autopilot_project_id.up.sql, which brings back the schema; there was no data.


-- Locked first: a row that arrived between the check and the drop would be lost without a word.

DO $$
DECLARE
    v_filled text;
BEGIN
    LOCK TABLE public."user", public.workspace, public.agent_runtime, public.agent, public.project, public.issue,
        public.agent_task_queue, public.task_usage,
        public.task_usage_daily, public.task_usage_daily_dirty, public.task_usage_rollup_state,
        public.task_usage_dashboard_daily, public.task_usage_dashboard_dirty, public.task_usage_dashboard_rollup_state
        IN ACCESS EXCLUSIVE MODE;

    SELECT string_agg(t.name, ', ' ORDER BY t.ord) INTO v_filled
    FROM (VALUES (1, 'user', EXISTS (SELECT FROM public."user")),
                 (2, 'workspace', EXISTS (SELECT FROM public.workspace)),
                 (3, 'agent_runtime', EXISTS (SELECT FROM public.agent_runtime)),
                 (4, 'agent', EXISTS (SELECT FROM public.agent)),
                 (5, 'project', EXISTS (SELECT FROM public.project)),
                 (6, 'issue', EXISTS (SELECT FROM public.issue)),
                 (7, 'agent_task_queue', EXISTS (SELECT FROM public.agent_task_queue)),
                 (8, 'task_usage', EXISTS (SELECT FROM public.task_usage))) AS t (ord, name, filled)
    WHERE t.filled;

    IF to_regclass('public.schema_migrations') IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'refusing to remove the v0.3.4 baseline: the product''s own runner made this database',
            DETAIL = 'Its ledger, public.schema_migrations, exists.',
            HINT = 'To keep the data, stay on the chain: alembic upgrade head. '
                || 'To discard it, drop the whole database instead.';
    END IF;

    IF v_filled IS NOT NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'refusing to remove the v0.3.4 baseline: the product tables are not empty',
            DETAIL = 'These tables hold rows: ' || v_filled || '.',
            HINT = 'To keep the data, stay on the chain: alembic upgrade head. '
                || 'To discard it, drop the whole database instead.';
    END IF;
END;
$$;


-- The triggers go with their tables, and must go before the functions they call. One statement for all tables, because
-- they refer to each other.

DROP TABLE
    public.task_usage_daily,
    public.task_usage_daily_dirty,
    public.task_usage_rollup_state,
    public.task_usage_dashboard_daily,
    public.task_usage_dashboard_dirty,
    public.task_usage_dashboard_rollup_state,
    public.task_usage,
    public.agent_task_queue,
    public.issue,
    public.project,
    public.agent,
    public.agent_runtime,
    public.workspace,
    public."user";

DROP FUNCTION
    public.rollup_task_usage_daily_window(timestamptz, timestamptz),
    public.rollup_task_usage_daily(),
    public.task_usage_rollup_lag_seconds(),
    public.enqueue_task_usage_daily_dirty_for_atq(),
    public.enqueue_task_usage_daily_dirty_for_tu(),
    public.rollup_task_usage_dashboard_daily_window(timestamptz, timestamptz),
    public.rollup_task_usage_dashboard_daily(),
    public.task_usage_dashboard_rollup_lag_seconds(),
    public.enqueue_task_usage_dashboard_dirty_for_atq(),
    public.enqueue_task_usage_dashboard_dirty_for_tu(),
    public.enqueue_task_usage_dashboard_dirty_for_issue_delete(),
    public.enqueue_task_usage_dashboard_dirty_for_issue_project();
