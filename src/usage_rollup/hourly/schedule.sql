-- Jobs of pg_cron in this database, as far as this role sees them.

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
