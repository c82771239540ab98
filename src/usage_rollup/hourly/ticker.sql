-- Who ticks the hourly rollup, as far as this database tells this role.

-- name: seen
-- pg_cron's tables belong to a superuser: functions of anybody else's would run with our rights.
SELECT
    EXISTS (
        SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'cron' AND c.relname = 'job'
            AND n.nspowner IN (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolsuper)
            AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) AS cron,
    COALESCE(has_table_privilege(to_regclass('public.schema_migrations'), 'SELECT'), false) AND EXISTS (
        SELECT FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = to_regclass('public.schema_migrations') AND a.attname = 'version'
            AND a.atttypid = 'text'::regtype) AS ledger,
    COALESCE(has_table_privilege(to_regclass('public.task_usage_hourly_rollup_state'), 'SELECT'), false) AS state,
    num_nonnulls(to_regclass('public.task_usage_daily'), to_regclass('public.task_usage_dashboard_daily')) = 0
        AS needed;

-- name: job
-- Whatever the job is called; the one of the contract's name first.
SELECT COALESCE(jobname, 'number ' || jobid) AS name, schedule FROM cron.job
WHERE database = current_database() AND active
    AND (jobname = CAST(:job AS text) OR command ~* '\mrollup_task_usage_hourly\s*\(')
ORDER BY (jobname = CAST(:job AS text)) IS TRUE DESC, jobid LIMIT 1;

-- name: scheduler
SELECT EXISTS (SELECT FROM public.schema_migrations WHERE version = :stem);

-- name: last_run
-- A server whose clock was set back may have finished a run in the future.
SELECT date_trunc('second', last_run_finished_at)::text AS at,
    GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - last_run_finished_at))::float8 AS idle_seconds
FROM public.task_usage_hourly_rollup_state WHERE id = 1 AND isfinite(last_run_finished_at);
