"""As much of the extension pg_cron as a job needs."""

from __future__ import annotations

from usage_rollup.contract import TICK_JOB as JOB

# pg_cron 1.4 as far as jobs go, its upsert and row security included. It can live in one database of
# a server only, and needs the server's configuration, so that tests cannot have the real one each.
PG_CRON = """
CREATE SCHEMA cron;
CREATE TABLE cron.job (
    jobid bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    schedule text NOT NULL, command text NOT NULL,
    database text NOT NULL DEFAULT current_database(), username text NOT NULL DEFAULT current_user,
    active boolean NOT NULL DEFAULT true, jobname name,
    CONSTRAINT jobname_username_uniq UNIQUE (jobname, username));
ALTER TABLE cron.job ENABLE ROW LEVEL SECURITY;
CREATE POLICY cron_job_policy ON cron.job USING (username = current_user);
GRANT SELECT ON cron.job TO public;
CREATE FUNCTION cron.schedule(schedule text, command text) RETURNS bigint LANGUAGE sql AS
    $$ SELECT 1 / 0 $$;
CREATE FUNCTION cron.schedule(job_name text, schedule text, command text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    INSERT INTO cron.job (jobname, schedule, command, username) VALUES ($1, $2, $3, session_user)
    ON CONFLICT ON CONSTRAINT jobname_username_uniq
    DO UPDATE SET schedule = EXCLUDED.schedule, command = EXCLUDED.command RETURNING jobid $$;
CREATE FUNCTION cron.unschedule(job_id bigint) RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$
    DELETE FROM cron.job WHERE jobid = $1 RETURNING true $$;
"""

JOBS = "SELECT jobname, schedule, command, active FROM cron.job ORDER BY jobid"
OURS = [(JOB, "*/5 * * * *", "SELECT public.rollup_task_usage_hourly()", True)]
