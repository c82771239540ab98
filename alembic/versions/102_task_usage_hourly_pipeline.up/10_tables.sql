-- 102_task_usage_hourly_pipeline: what keeps task_usage_hourly equal to the aggregate of raw usage.
--
-- Why now: the tables of 101 exist and the history can be rolled up while a v0.3.4 server runs.
-- Assumes: 101, ours or the Go release's. The Go release's 102 may be installed: everything here
--   replaces it (CREATE OR REPLACE), which is how a database stuck at 103 receives this pipeline.
-- Locks: SHARE ROW EXCLUSIVE on agent, agent_task_queue, issue and task_usage for CREATE TRIGGER,
--   ACCESS EXCLUSIVE on the hourly tables. The first also waits for every open writer, so each row of
--   task_usage either was committed before the triggers existed, and any later snapshot sees it, or
--   passed through them.
-- Undone by: 102_task_usage_hourly_pipeline.down.sql.
--
-- How changes are seen. A row whose event, COALESCE(updated_at, created_at), is its transaction's
-- now() is found by time: the watermark never passes the horizon, which no open transaction has
-- passed. Every other change (moves, deletions, rows with another timestamp) is written down by a
-- trigger in the changing transaction itself, in task_usage_hourly_invalidation.
--
-- How changes are applied. Whole hours are recomputed from raw rows, never single keys, so what was
-- moved or deleted leaves no remains and nobody needs to know the old key.
--
-- Who is called. Whoever may create in public can put a function there that fits a call better than ours: so
-- arguments are written with their types and none is left to its default, pg_catalog comes before everything,
-- and where there is no SET clause, for speed or for the planner, operators are qualified or of one type.
-- row_security = off makes a policy an error: hidden rows would be taken for rows that are not there.
--
-- Parts. 10 and 20 to 35 hold what is queued or could not be stored, and read: to a session on a database
-- without this revision they are lent, whole, by hourly/pipeline.py. 40 to 65 write; the triggers come last.

-- Append-only and without a unique key: two writers never wait for each other here. A row names
-- what changed, not the buckets: those are looked up when it is drained, after the change committed.
CREATE TABLE IF NOT EXISTS public.task_usage_hourly_invalidation (
    bucket_hour timestamptz,
    task_id uuid,
    issue_id uuid,
    agent_id uuid,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_task_usage_hourly_invalidation_subject
    CHECK (
        num_nonnulls(task_id, issue_id, agent_id) <= 1
        AND (bucket_hour IS NULL OR num_nonnulls(issue_id, agent_id) = 0)
    )
);

COMMENT ON TABLE public.task_usage_hourly_invalidation IS
    'Private queue: an hour, task, issue or agent whose buckets must be recomputed; a row that names none means every hour.';
COMMENT ON COLUMN public.task_usage_hourly_invalidation.bucket_hour IS
    'With a task besides: the buckets of that task in this hour.';

-- Buckets that could not be written, so that one absurd row stops nobody else: the bucket's key (model
-- and provider by digest, since their length may be the reason), and why. Recomputing an hour begins
-- with taking its rows out, so that a bucket leaves when it is mended.
CREATE TABLE IF NOT EXISTS public.task_usage_hourly_set_aside (
    bucket_hour timestamptz NOT NULL,
    workspace_id uuid NOT NULL,
    runtime_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    project_id uuid,
    label_digest text NOT NULL,
    label_start text NOT NULL,
    sqlstate text NOT NULL,
    error text NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_task_usage_hourly_set_aside_key UNIQUE NULLS NOT DISTINCT
    (bucket_hour, workspace_id, runtime_id, agent_id, project_id, label_digest)
);

COMMENT ON TABLE public.task_usage_hourly_set_aside IS
    'Buckets of task_usage_hourly that PostgreSQL refused, and why; label is provider and model.';

-- A table without replica identity refuses UPDATE and DELETE as soon as a publication FOR ALL TABLES
-- exists. It costs nothing unpublished. Where they were there already nobody is kept out to set it again.
DO $$
DECLARE
    v_table regclass;
BEGIN
    FOR v_table IN
        SELECT c.oid FROM pg_class c
        WHERE c.relreplident <> 'f' AND c.oid IN (
            'public.task_usage_hourly_invalidation'::regclass, 'public.task_usage_hourly_set_aside'::regclass)
    LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', v_table);
    END LOOP;
END
$$;
