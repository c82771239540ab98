-- A naive 102, to be installed over 101: the pipeline that one writes first. Every design mistake in it
-- is deliberate; tests/stories/test_first_implementation.py shows what each of them costs. docs/correctness.md
-- names them H1 to H26.

-- H20: the hour of the session's time zone. H19: names are looked up in the session's search_path.
CREATE FUNCTION public.task_usage_hour_bucket(ts timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$ SELECT date_trunc('hour', ts) $$;

-- H13: one row a bucket, so that an invalidation is a lock until its transaction ends.
-- H11, H25: the keys are those that this transaction can see now.
CREATE FUNCTION public.naive_enqueue(
    p_task uuid, p_issue uuid, p_usage uuid, p_runtime uuid, p_workspace uuid, p_project uuid
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO public.task_usage_hourly_dirty AS d
        (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
    SELECT DISTINCT public.task_usage_hour_bucket(tu.created_at), COALESCE(p_workspace, a.workspace_id),
        COALESCE(p_runtime, q.runtime_id), q.agent_id,
        CASE WHEN p_issue IS NULL THEN i.project_id ELSE p_project END, tu.provider, tu.model
    FROM public.task_usage tu
    JOIN public.agent_task_queue q ON q.id = tu.task_id
    JOIN public.agent a ON a.id = q.agent_id
    LEFT JOIN public.issue i ON i.id = q.issue_id
    WHERE q.id = p_task OR q.issue_id = p_issue OR tu.id = p_usage
    ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key
    DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at)
$$;

CREATE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.naive_enqueue(NULL, NULL, OLD.id, NULL, NULL, NULL);
    RETURN OLD;
END
$$;

CREATE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.naive_enqueue(OLD.id, NULL, NULL, OLD.runtime_id, NULL, NULL);
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    PERFORM public.naive_enqueue(NEW.id, NULL, NULL, NEW.runtime_id, NULL, NULL);
    RETURN NEW;
END
$$;

-- H12: the workspace of the issue, where the recompute takes the agent's.
CREATE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_project() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.naive_enqueue(NULL, OLD.id, NULL, NULL, OLD.workspace_id, OLD.project_id);
    PERFORM public.naive_enqueue(NULL, NEW.id, NULL, NULL, NEW.workspace_id, NEW.project_id);
    RETURN NEW;
END
$$;

CREATE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM public.naive_enqueue(NULL, OLD.id, NULL, NULL, OLD.workspace_id, OLD.project_id);
    RETURN OLD;
END
$$;

-- H12: no trigger where usage is written, nor on agent.
CREATE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu();
CREATE TRIGGER trg_atq_dirty_hourly BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON public.agent_task_queue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq();
CREATE TRIGGER trg_issue_project_dirty_hourly BEFORE UPDATE OF project_id ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_project();
CREATE TRIGGER trg_issue_delete_dirty_hourly BEFORE DELETE ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete();

-- H24: no lock of its own. H18: one sum or key that does not fit fails the whole window.
CREATE FUNCTION public.rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_rows bigint;
BEGIN
    WITH keys AS (
        SELECT task_usage_hour_bucket(tu.created_at) AS bucket_hour, a.workspace_id, q.runtime_id,
            q.agent_id, i.project_id, tu.provider, tu.model
        FROM public.task_usage tu
        JOIN public.agent_task_queue q ON q.id = tu.task_id
        JOIN public.agent a ON a.id = q.agent_id
        LEFT JOIN public.issue i ON i.id = q.issue_id
        WHERE tu.updated_at >= p_from AND tu.updated_at < p_to
            OR tu.updated_at IS NULL AND tu.created_at >= p_from AND tu.created_at < p_to
        UNION
        SELECT d.bucket_hour, d.workspace_id, d.runtime_id, d.agent_id, d.project_id, d.provider, d.model
        FROM public.task_usage_hourly_dirty d WHERE d.enqueued_at < p_to
    ), expected AS MATERIALIZED (
        -- H14: every key meets all tasks of its runtime and agent.
        SELECT k.*, SUM(tu.input_tokens)::bigint AS i, SUM(tu.output_tokens)::bigint AS o,
            SUM(tu.cache_read_tokens)::bigint AS r, SUM(tu.cache_write_tokens)::bigint AS w,
            COUNT(DISTINCT q.id) AS tasks, COUNT(*) AS events
        FROM keys k
        JOIN public.agent_task_queue q ON q.runtime_id = k.runtime_id AND q.agent_id = k.agent_id
        JOIN public.agent a ON a.id = q.agent_id AND a.workspace_id = k.workspace_id
        LEFT JOIN public.issue s ON s.id = q.issue_id
        JOIN public.task_usage tu ON tu.task_id = q.id
            AND (tu.provider, tu.model) = (k.provider, k.model)
            AND task_usage_hour_bucket(tu.created_at) = k.bucket_hour
        WHERE s.project_id IS NOT DISTINCT FROM k.project_id
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ), deleted AS (
        DELETE FROM public.task_usage_hourly h USING keys k
        WHERE (h.bucket_hour, h.workspace_id, h.runtime_id, h.agent_id, h.provider, h.model)
            = (k.bucket_hour, k.workspace_id, k.runtime_id, k.agent_id, k.provider, k.model)
            AND h.project_id IS NOT DISTINCT FROM k.project_id
            AND NOT EXISTS (
                SELECT FROM expected e
                WHERE (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id, e.provider, e.model)
                    = (h.bucket_hour, h.workspace_id, h.runtime_id, h.agent_id, h.provider, h.model)
                    AND e.project_id IS NOT DISTINCT FROM h.project_id)
        RETURNING 1
    ), written AS (
        INSERT INTO public.task_usage_hourly AS h (
            bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
        SELECT * FROM expected
        ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_key DO UPDATE SET
            input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens,
            cache_read_tokens = EXCLUDED.cache_read_tokens,
            cache_write_tokens = EXCLUDED.cache_write_tokens,
            task_count = EXCLUDED.task_count, event_count = EXCLUDED.event_count, updated_at = now()
        RETURNING 1
    )
    SELECT (SELECT COUNT(*) FROM deleted) + (SELECT COUNT(*) FROM written) INTO v_rows;

    -- H4: recompute first, delete by time in a later statement.
    DELETE FROM public.task_usage_hourly_dirty WHERE enqueued_at < p_to;
    RETURN v_rows;
END
$$;

-- H6: by age, processed or not.
CREATE FUNCTION public.prune_task_usage_hourly_dirty(p_retention interval DEFAULT '7 days') RETURNS bigint
LANGUAGE sql AS $$
    WITH pruned AS (
        DELETE FROM public.task_usage_hourly_dirty WHERE enqueued_at < now() - p_retention RETURNING 1
    )
    SELECT COUNT(*) FROM pruned
$$;

-- H3: the clock is the bound. H7: a session lock, freed before the commit and not on a cancel.
-- H8: a day at a time, wherever the watermark stands.
CREATE FUNCTION public.rollup_task_usage_hourly() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_from timestamptz;
    v_to timestamptz;
    v_rows bigint;
BEGIN
    IF NOT pg_try_advisory_lock(4246) THEN
        RETURN 0;
    END IF;
    SELECT watermark_at INTO v_from FROM public.task_usage_hourly_rollup_state WHERE id = 1;
    v_to := LEAST(clock_timestamp() - interval '5 minutes', v_from + interval '1 day');
    v_rows := public.rollup_task_usage_hourly_window(v_from, v_to);
    PERFORM public.prune_task_usage_hourly_dirty();
    UPDATE public.task_usage_hourly_rollup_state
    SET watermark_at = v_to, last_run_finished_at = clock_timestamp(), last_run_rows = v_rows WHERE id = 1;
    PERFORM pg_advisory_unlock(4246);
    RETURN v_rows;
EXCEPTION WHEN OTHERS THEN
    UPDATE public.task_usage_hourly_rollup_state SET last_error = SQLERRM WHERE id = 1;
    PERFORM pg_advisory_unlock(4246);
    RAISE;
END
$$;

-- H22: the age of the last run.
CREATE FUNCTION public.task_usage_hourly_rollup_lag_seconds() RETURNS float8 LANGUAGE sql AS $$
    SELECT EXTRACT(EPOCH FROM now() - last_run_finished_at)::float8
    FROM public.task_usage_hourly_rollup_state WHERE id = 1
$$;
