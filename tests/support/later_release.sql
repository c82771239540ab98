-- What later releases of the product put on top of this project's schema, by the contract: names, signatures and
-- meanings are the field's, the text is ours. One statement list for each step of their ledger.

-- name: 213_task_usage_authoritative_cost
ALTER TABLE public.task_usage ADD COLUMN cost_usd_ticks bigint;
ALTER TABLE public.task_usage_hourly
    ADD COLUMN cost_usd_ticks bigint NOT NULL DEFAULT 0,
    ADD COLUMN uncosted_input_tokens bigint,
    ADD COLUMN uncosted_output_tokens bigint,
    ADD COLUMN uncosted_cache_read_tokens bigint,
    ADD COLUMN uncosted_cache_write_tokens bigint;
COMMENT ON COLUMN public.task_usage.cost_usd_ticks IS 'As the provider bills it.';
COMMENT ON COLUMN public.task_usage_hourly.cost_usd_ticks IS 'What it cost:
the provider''s own word, in ticks.';
COMMENT ON COLUMN public.task_usage_hourly.uncosted_input_tokens IS 'Tokens whose cost nobody knows.';

-- Key by key: each meets all tasks of its runtime and agent. It drains by time, does nothing for an empty
-- range, and one sum that does not fit bigint fails it.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_written bigint;
    v_deleted bigint;
BEGIN
    IF p_from >= p_to THEN
        RETURN 0;
    END IF;

    WITH keys AS (
        SELECT task_usage_hour_bucket(tu.created_at) AS bucket_hour, a.workspace_id, q.runtime_id,
            q.agent_id, i.project_id, tu.provider, tu.model
        FROM task_usage tu
        JOIN agent_task_queue q ON q.id = tu.task_id
        JOIN agent a ON a.id = q.agent_id
        LEFT JOIN issue i ON i.id = q.issue_id
        WHERE q.runtime_id IS NOT NULL
            AND (tu.updated_at >= p_from AND tu.updated_at < p_to
                OR tu.updated_at IS NULL AND tu.created_at >= p_from AND tu.created_at < p_to)
        UNION
        SELECT d.bucket_hour, d.workspace_id, d.runtime_id, d.agent_id, d.project_id, d.provider, d.model
        FROM task_usage_hourly_dirty d WHERE d.enqueued_at < p_to
    ), sums AS (
        SELECT k.bucket_hour, k.workspace_id, k.runtime_id, k.agent_id, k.project_id, k.provider, k.model,
            SUM(tu.input_tokens)::bigint, SUM(tu.output_tokens)::bigint,
            SUM(tu.cache_read_tokens)::bigint, SUM(tu.cache_write_tokens)::bigint,
            COUNT(DISTINCT tu.task_id), COUNT(*), COALESCE(SUM(tu.cost_usd_ticks), 0)::bigint,
            COALESCE(SUM(tu.input_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0)::bigint,
            COALESCE(SUM(tu.output_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0)::bigint,
            COALESCE(SUM(tu.cache_read_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0)::bigint,
            COALESCE(SUM(tu.cache_write_tokens) FILTER (WHERE tu.cost_usd_ticks IS NULL), 0)::bigint
        FROM keys k
        JOIN agent_task_queue q ON q.runtime_id = k.runtime_id AND q.agent_id = k.agent_id
        JOIN agent a ON a.id = q.agent_id AND a.workspace_id = k.workspace_id
        LEFT JOIN issue i ON i.id = q.issue_id
        JOIN task_usage tu ON tu.task_id = q.id AND tu.provider = k.provider AND tu.model = k.model
            AND task_usage_hour_bucket(tu.created_at) = k.bucket_hour
        WHERE i.project_id IS NOT DISTINCT FROM k.project_id
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ), written AS (
        INSERT INTO task_usage_hourly AS h (
            bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count, cost_usd_ticks,
            uncosted_input_tokens, uncosted_output_tokens, uncosted_cache_read_tokens,
            uncosted_cache_write_tokens)
        SELECT * FROM sums
        ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_key DO UPDATE SET
            input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens,
            cache_read_tokens = EXCLUDED.cache_read_tokens,
            cache_write_tokens = EXCLUDED.cache_write_tokens, task_count = EXCLUDED.task_count,
            event_count = EXCLUDED.event_count, cost_usd_ticks = EXCLUDED.cost_usd_ticks,
            uncosted_input_tokens = EXCLUDED.uncosted_input_tokens,
            uncosted_output_tokens = EXCLUDED.uncosted_output_tokens,
            uncosted_cache_read_tokens = EXCLUDED.uncosted_cache_read_tokens,
            uncosted_cache_write_tokens = EXCLUDED.uncosted_cache_write_tokens, updated_at = now()
        RETURNING 1
    )
    SELECT COUNT(*) INTO v_written FROM written;

    WITH keys AS (
        SELECT d.* FROM task_usage_hourly_dirty d WHERE d.enqueued_at < p_to
    ), deleted AS (
        DELETE FROM task_usage_hourly h USING keys k
        WHERE h.bucket_hour = k.bucket_hour AND h.workspace_id = k.workspace_id
            AND h.runtime_id = k.runtime_id AND h.agent_id = k.agent_id
            AND h.project_id IS NOT DISTINCT FROM k.project_id
            AND h.provider = k.provider AND h.model = k.model
            AND NOT EXISTS (
                SELECT FROM agent_task_queue q
                JOIN agent a ON a.id = q.agent_id AND a.workspace_id = k.workspace_id
                LEFT JOIN issue i ON i.id = q.issue_id
                JOIN task_usage tu ON tu.task_id = q.id AND tu.provider = k.provider AND tu.model = k.model
                    AND task_usage_hour_bucket(tu.created_at) = k.bucket_hour
                WHERE q.runtime_id = k.runtime_id AND q.agent_id = k.agent_id
                    AND i.project_id IS NOT DISTINCT FROM k.project_id)
        RETURNING 1
    )
    SELECT COUNT(*) INTO v_deleted FROM deleted;

    DELETE FROM task_usage_hourly_dirty WHERE enqueued_at < p_to;
    RETURN v_written + v_deleted;
END
$$;

-- name: 243_workspace_teardown_dirty_trigger_guard
DROP TRIGGER trg_atq_dirty_hourly ON public.agent_task_queue;
CREATE TRIGGER trg_atq_dirty_hourly BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON public.agent_task_queue
    FOR EACH ROW WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq();
DROP TRIGGER trg_issue_delete_dirty_hourly ON public.issue;
CREATE TRIGGER trg_issue_delete_dirty_hourly BEFORE DELETE ON public.issue
    FOR EACH ROW WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete();
DROP TRIGGER trg_tu_dirty_hourly ON public.task_usage;
CREATE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON public.task_usage
    FOR EACH ROW WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu();

-- name: 251_agent_runtime_unbind
ALTER TABLE public.agent ALTER COLUMN runtime_id DROP NOT NULL;
ALTER TABLE public.agent_task_queue ALTER COLUMN runtime_id DROP NOT NULL,
    ADD CONSTRAINT agent_task_queue_active_requires_runtime
    CHECK (runtime_id IS NOT NULL OR completed_at IS NOT NULL) NOT VALID;

-- name: 272_rollup_task_usage_hourly_xact_lock
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_started timestamptz := clock_timestamp();
    v_from timestamptz;
    v_to timestamptz;
    v_rows bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4246) THEN
        RETURN 0;
    END IF;
    SELECT watermark_at INTO v_from FROM task_usage_hourly_rollup_state WHERE id = 1;
    v_to := LEAST(now() - interval '5 minutes', v_from + interval '1 day');
    v_rows := rollup_task_usage_hourly_window(v_from, v_to);
    UPDATE task_usage_hourly_rollup_state SET watermark_at = GREATEST(v_from, v_to),
        last_run_started_at = v_started, last_run_finished_at = clock_timestamp(), last_run_rows = v_rows,
        last_error = NULL
    WHERE id = 1;
    PERFORM prune_task_usage_hourly_dirty();
    RETURN v_rows;
END
$$;
