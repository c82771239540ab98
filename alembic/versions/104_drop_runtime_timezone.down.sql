-- Undo 104_drop_runtime_timezone. The zones themselves are gone: every runtime restarts at 'UTC'.
-- Locks: ACCESS EXCLUSIVE on agent_runtime for a catalog change only (constant default: no rewrite).

DO $$
BEGIN
    IF EXISTS (SELECT FROM public.agent_runtime) AND NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'public.agent_runtime'::regclass AND attname = 'timezone' AND NOT attisdropped)
    THEN
        RAISE WARNING 'the time zone of every runtime is UTC again, until its daemon registers';
    END IF;
END
$$;

ALTER TABLE public.agent_runtime ADD COLUMN IF NOT EXISTS timezone text NOT NULL DEFAULT 'UTC';

COMMENT ON COLUMN public.agent_runtime.timezone IS
    'IANA zone that the daemon registered with. task_usage_daily takes its calendar days from it.';

-- As they were before 104, where 102 remembers it.
DO $$
BEGIN
    IF to_regprocedure('public.rollup_task_usage_hourly_restore_legacy(text)') IS NOT NULL THEN
        PERFORM public.rollup_task_usage_hourly_restore_legacy(text '104');
    END IF;
END
$$;
