-- pg_cron's jobs of this database, as far as this role sees them, and the last run that ticked.

-- name: cron_readable
-- The extension's, which a superuser made: functions of anybody else's would run with our rights.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'cron' AND c.relname = 'job'
        AND n.nspowner IN (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolsuper)
        AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'));

-- name: state_readable
SELECT COALESCE(has_table_privilege(to_regclass('public.task_usage_hourly_rollup_state'), 'SELECT'), false);

-- name: its_schedule
-- Whatever the job is called; the one of the contract's name first.
SELECT COALESCE(jobname, 'number ' || jobid) AS name, schedule FROM cron.job
WHERE database = current_database() AND active
    AND (jobname = CAST(:job AS text) OR command ~* '\mrollup_task_usage_hourly\s*\(')
ORDER BY (jobname = CAST(:job AS text)) IS TRUE DESC, jobid LIMIT 1;

-- name: recent_run
-- A server whose clock was set back may have finished a run in the future.
SELECT GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - last_run_finished_at))::int / 60
FROM public.task_usage_hourly_rollup_state
WHERE id = 1 AND isfinite(last_run_finished_at) AND last_run_finished_at >= clock_timestamp() - :recent;

-- name: unschedule
SELECT cron.unschedule(jobid) FROM cron.job WHERE database = current_database() AND jobname = :job;

-- name: schedule
-- Cast, because the two-argument form takes a schedule and a command.
SELECT cron.schedule(CAST(:job AS text), CAST(:period AS text), CAST(:command AS text));

-- name: pg_cron
-- Others may not ask which database pg_cron's jobs live in.
SELECT
    current_database() AS database, quote_literal(current_database()) AS database_literal,
    current_user AS role, quote_ident(current_user) AS quoted_role,
    c.oid IS NOT NULL AS here,
    has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS usable,
    CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN
        NULLIF(current_setting('cron.database_name', true), '') END AS lives_in
FROM (SELECT) AS always
LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace)
    ON n.nspname = 'cron' AND c.relname = 'job'
        AND n.nspowner IN (SELECT r.oid FROM pg_roles r WHERE r.rolsuper);
