-- 104_drop_runtime_timezone: days belong to the viewer now (100), not to the runtime.
--
-- Why now: 103 dropped the last reader of the column.
-- Assumes: no v0.3.4 server is running: it writes the column when a daemon registers.
-- Locks: ACCESS EXCLUSIVE on agent_runtime for a catalog change only.
-- Undone by: 104_drop_runtime_timezone.down.sql, with every runtime back at 'UTC'.

-- For the way back: the column's comment and grants.
DO $$
BEGIN
    IF to_regprocedure('public.rollup_task_usage_hourly_remember_legacy(text)') IS NOT NULL THEN
        PERFORM public.rollup_task_usage_hourly_remember_legacy(text '104');
    END IF;
EXCEPTION WHEN insufficient_privilege OR undefined_table THEN
    RAISE WARNING 'comment and grants of agent_runtime.timezone are not remembered for the way back: %', SQLERRM;
END
$$;

-- IF EXISTS: the product's own runner, which takes no lock before v0.3.15, may have been here first.
ALTER TABLE public.agent_runtime DROP COLUMN IF EXISTS timezone;
