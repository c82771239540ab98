-- 101_task_usage_hourly_schema: the hourly rollup, its public queue and its state row.
--
-- Why now: one rollup by UTC hour replaces the daily one by runtime zone and the dashboard one by
--   UTC day; every viewer's day is a range of hours.
-- Assumes: the v0.3.4 baseline; none of the three tables exists.
-- Locks: none on existing tables.
-- Undone by: 101_task_usage_hourly_schema.down.sql.

-- No foreign keys in this family: a rollup must never make a product transaction wait or fail.
-- project_id is NULL for usage outside any project, and such rows must still be unique.
CREATE TABLE public.task_usage_hourly (
    bucket_hour timestamptz NOT NULL,
    workspace_id uuid NOT NULL,
    runtime_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    project_id uuid,
    provider text NOT NULL,
    model text NOT NULL,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cache_read_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    task_count bigint NOT NULL DEFAULT 0,
    event_count bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_task_usage_hourly_key UNIQUE NULLS NOT DISTINCT
    (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
);

COMMENT ON TABLE public.task_usage_hourly IS
    'task_usage summed by UTC hour of created_at and seven keys. Written only under advisory lock 4246.';

-- One index per way the dashboards read: by workspace, runtime, agent and project, newest first.
CREATE INDEX idx_task_usage_hourly_workspace_time
    ON public.task_usage_hourly (workspace_id, bucket_hour DESC);
CREATE INDEX idx_task_usage_hourly_runtime_time
    ON public.task_usage_hourly (runtime_id, bucket_hour DESC);
CREATE INDEX idx_task_usage_hourly_workspace_agent_time
    ON public.task_usage_hourly (workspace_id, agent_id, bucket_hour DESC);
CREATE INDEX idx_task_usage_hourly_workspace_project_time
    ON public.task_usage_hourly (workspace_id, project_id, bucket_hour DESC)
    WHERE project_id IS NOT NULL;

CREATE TABLE public.task_usage_hourly_dirty (
    bucket_hour timestamptz NOT NULL,
    workspace_id uuid NOT NULL,
    runtime_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    project_id uuid,
    provider text NOT NULL,
    model text NOT NULL,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_task_usage_hourly_dirty_key UNIQUE NULLS NOT DISTINCT
    (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
);

COMMENT ON TABLE public.task_usage_hourly_dirty IS
    'Public queue of buckets to recompute; a row leaves it only with the transaction that recomputed its bucket.';

CREATE INDEX idx_task_usage_hourly_dirty_enqueued_at
    ON public.task_usage_hourly_dirty (enqueued_at);

CREATE TABLE public.task_usage_hourly_rollup_state (
    id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    watermark_at timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
    last_run_started_at timestamptz,
    last_run_finished_at timestamptz,
    last_run_rows bigint NOT NULL DEFAULT 0,
    last_error text
);

COMMENT ON COLUMN public.task_usage_hourly_rollup_state.watermark_at IS
    'Every event before this instant is rolled up or queued. Moves only with the work that makes it true.';

-- The epoch says what is true: nothing has been rolled up yet.
INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1);
