-- 102, part 55_bridge: hand the private queue to the public one, for the day a later release's window is installed.
--
-- That window works key by key, at a cost that grows with the square of the keys, and one key that it cannot
-- store fails it for ever. So only keys get there that have to be recomputed and can be stored.

-- What queued rows stand for, as pairs: an hour and a task, or an hour as a whole. To be called in a
-- statement that starts after the rows were drained. A task that is gone has named the hours of its usage.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_pairs(
    p_queued public.task_usage_hourly_invalidation[]
)
RETURNS TABLE (bucket_hour timestamptz, task_id uuid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH moved (task_id) AS (
        SELECT v.task_id FROM unnest(p_queued) AS v WHERE v.bucket_hour IS NULL AND v.task_id IS NOT NULL
        UNION
        SELECT q.id FROM unnest(p_queued) AS v JOIN public.agent_task_queue q ON q.issue_id = v.issue_id
        UNION
        SELECT q.id FROM unnest(p_queued) AS v JOIN public.agent_task_queue q ON q.agent_id = v.agent_id
    ), every_hour AS (
        SELECT FROM unnest(p_queued) AS v
        WHERE num_nonnulls(v.bucket_hour, v.task_id, v.issue_id, v.agent_id) = 0
    ), pairs (bucket_hour, task_id) AS (
        SELECT public.task_usage_hour_bucket(v.bucket_hour), v.task_id FROM unnest(p_queued) AS v
        WHERE v.bucket_hour IS NOT NULL
        UNION
        SELECT public.task_usage_hour_bucket(tu.created_at), m.task_id
        FROM moved m JOIN public.task_usage tu ON tu.task_id = m.task_id
        UNION
        SELECT h.bucket_hour, NULL FROM public.task_usage_hourly h WHERE EXISTS (SELECT FROM every_hour)
        UNION
        SELECT public.task_usage_hour_bucket(tu.created_at), NULL FROM public.task_usage tu
        WHERE EXISTS (SELECT FROM every_hour)
    )
    SELECT p.bucket_hour, p.task_id FROM pairs p WHERE public.task_usage_hourly_dated(p.bucket_hour)
$$;

-- What a later window has to recompute in an hour: the keys that are wrong, and those that the named tasks
-- have now, because of costs, which no comparison here knows. An hour out of a history is read by index.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_stale_keys(p_hour timestamptz, p_tasks uuid[])
RETURNS TABLE (
    bucket_hour timestamptz, workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid,
    provider text, model text
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan SET jit = off
SET max_parallel_workers_per_gather = 0
SET enable_hashjoin = on SET enable_nestloop = on SET enable_mergejoin = off SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT * FROM public.task_usage_hourly_wrong_keys(p_hour, p_hour + interval '1 hour')
    UNION
    SELECT p_hour, a.workspace_id, q.runtime_id, q.agent_id, i.project_id, tu.provider, tu.model
    FROM public.task_usage tu
    JOIN public.agent_task_queue q ON q.id = tu.task_id
    JOIN public.agent a ON a.id = q.agent_id
    LEFT JOIN public.issue i ON i.id = q.issue_id
    WHERE tu.task_id = ANY (p_tasks) AND q.runtime_id IS NOT NULL
        AND tu.created_at >= p_hour AND tu.created_at < p_hour + interval '1 hour';
END
$$;

-- Keys of an hour whose sums do not fit bigint, costs included, where there are any: the later window
-- would raise "bigint out of range" over one of these, and roll nobody's usage up from then on.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_oversized_keys(p_hour timestamptz)
RETURNS TABLE (workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid, provider text, model text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan SET jit = off
SET max_parallel_workers_per_gather = 0
SET enable_hashjoin = on SET enable_nestloop = on SET enable_mergejoin = off SET enable_seqscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT s.workspace_id, s.runtime_id, s.agent_id, s.project_id, s.provider, s.model
    FROM (
        SELECT a.workspace_id, q.runtime_id, q.agent_id, i.project_id, tu.provider, tu.model, ARRAY[
            SUM(tu.input_tokens), SUM(tu.input_tokens) FILTER (WHERE c.ticks IS NULL),
            SUM(tu.output_tokens), SUM(tu.output_tokens) FILTER (WHERE c.ticks IS NULL),
            SUM(tu.cache_read_tokens), SUM(tu.cache_read_tokens) FILTER (WHERE c.ticks IS NULL),
            SUM(tu.cache_write_tokens), SUM(tu.cache_write_tokens) FILTER (WHERE c.ticks IS NULL),
            SUM(c.ticks)] AS sums
        FROM public.task_usage tu
        JOIN public.agent_task_queue q ON q.id = tu.task_id
        JOIN public.agent a ON a.id = q.agent_id
        LEFT JOIN public.issue i ON i.id = q.issue_id
        -- By name at run time: not every release has the column.
        CROSS JOIN LATERAL (SELECT (to_jsonb(tu) ->> 'cost_usd_ticks')::numeric AS ticks) c
        WHERE q.runtime_id IS NOT NULL
            AND tu.created_at >= p_hour AND tu.created_at < p_hour + interval '1 hour'
        GROUP BY 1, 2, 3, 4, 5, 6
    ) s
    WHERE EXISTS (
        SELECT FROM unnest(s.sums) AS total WHERE total <> public.task_usage_hourly_sum(total));
END
$$;

-- Queues the stale keys of one hour in the public queue; returns their number. What that queue cannot hold,
-- or its window could not store, is put aside alone; an hour begins with what was put aside before.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_hand_over(p_hour timestamptz, p_tasks uuid[])
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_oversized CONSTANT text := 'sums of this bucket do not fit bigint';
    v_key record;
    v_keys bigint;
BEGIN
    DELETE FROM public.task_usage_hourly_set_aside s WHERE s.bucket_hour = p_hour;
    BEGIN
        INSERT INTO public.task_usage_hourly_dirty AS d
            (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
        SELECT * FROM public.rollup_task_usage_hourly_stale_keys(p_hour, p_tasks) ORDER BY 1, 2, 3, 4, 5, 6, 7
        ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key
        DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
        GET DIAGNOSTICS v_keys = ROW_COUNT;
        IF v_keys > 0 AND EXISTS (SELECT FROM public.rollup_task_usage_hourly_oversized_keys(p_hour)) THEN
            RAISE EXCEPTION USING ERRCODE = 'numeric_value_out_of_range', MESSAGE = v_oversized;
        END IF;
        RETURN v_keys;
    EXCEPTION WHEN data_exception OR program_limit_exceeded OR integrity_constraint_violation THEN
        v_keys := 0;
    END;

    FOR v_key IN
        SELECT k.*, o.agent_id IS NOT NULL AS oversized
        FROM public.rollup_task_usage_hourly_stale_keys(p_hour, p_tasks) k
        LEFT JOIN public.rollup_task_usage_hourly_oversized_keys(p_hour) o
            ON (o.workspace_id, o.runtime_id, o.agent_id, o.provider, o.model)
            = (k.workspace_id, k.runtime_id, k.agent_id, k.provider, k.model)
            AND o.project_id IS NOT DISTINCT FROM k.project_id
    LOOP
        BEGIN
            IF v_key.oversized THEN
                RAISE EXCEPTION USING ERRCODE = 'numeric_value_out_of_range', MESSAGE = v_oversized;
            END IF;
            INSERT INTO public.task_usage_hourly_dirty AS d
                (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
            VALUES (v_key.bucket_hour, v_key.workspace_id, v_key.runtime_id, v_key.agent_id, v_key.project_id,
                v_key.provider, v_key.model)
            ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key
            DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
            v_keys := v_keys + 1;
        EXCEPTION WHEN data_exception OR program_limit_exceeded OR integrity_constraint_violation THEN
            -- It may have fitted when an earlier call handed it over.
            DELETE FROM public.task_usage_hourly_dirty d
            WHERE (d.bucket_hour, d.workspace_id, d.runtime_id, d.agent_id, d.provider, d.model)
                = (v_key.bucket_hour, v_key.workspace_id, v_key.runtime_id, v_key.agent_id, v_key.provider,
                    v_key.model)
                AND d.project_id IS NOT DISTINCT FROM v_key.project_id;
            PERFORM public.rollup_task_usage_hourly_put_aside(v_key.bucket_hour, v_key.workspace_id,
                v_key.runtime_id, v_key.agent_id, v_key.project_id, v_key.provider, v_key.model,
                SQLSTATE, SQLERRM);
        END;
    END LOOP;
    RETURN v_keys;
END
$$;

-- Unprocessed rows are never pruned, and processed ones are deleted by the window that processed them. A
-- later release replaces the window and the tick, reads only the public queue, and still calls this
-- function on every tick. A call hands a portion over, of 500 keys or little more, because their window
-- needs seconds for these with 4246 held; an hour is never split. What is left of what was drained goes
-- back to the queue in the same transaction, as pairs, for the next call.
CREATE OR REPLACE FUNCTION public.prune_task_usage_hourly_dirty(p_retention interval DEFAULT '7 days')
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    -- Their window may have used the tick's whole time.
    v_deadline CONSTANT timestamptz := GREATEST(
        public.task_usage_hourly_tick_deadline(), clock_timestamp() + interval '1 second');
    v_queued public.task_usage_hourly_invalidation[];
    v_hour record;
    v_full boolean := false;
    v_keys bigint := 0;
BEGIN
    -- Our own window drains the private queue itself. Between somebody else's recompute and his emptying of
    -- the public queue, by time, nothing may be put there.
    IF public.task_usage_hourly_window_is_ours() OR NOT pg_try_advisory_xact_lock(4246) THEN
        RETURN 0;
    END IF;
    -- As in the window: a snapshot of the whole transaction may be too old, and fails here.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM public.rollup_task_usage_hourly_touch();
    END IF;

    WHILE NOT v_full LOOP
        v_queued := public.rollup_task_usage_hourly_drain(bigint '10000');
        EXIT WHEN v_queued IS NULL;
        FOR v_hour IN
            SELECT p.bucket_hour, array_agg(p.task_id) AS tasks
            FROM public.rollup_task_usage_hourly_pairs(v_queued) p GROUP BY 1 ORDER BY 1
        LOOP
            IF v_full THEN
                INSERT INTO public.task_usage_hourly_invalidation (bucket_hour, task_id)
                SELECT v_hour.bucket_hour, unnest(v_hour.tasks);
            ELSE
                v_keys := v_keys + public.rollup_task_usage_hourly_hand_over(v_hour.bucket_hour, v_hour.tasks);
                v_full := v_keys >= 500 OR clock_timestamp() >= v_deadline;
            END IF;
        END LOOP;
    END LOOP;
    RETURN v_keys;
END
$$;

COMMENT ON FUNCTION public.prune_task_usage_hourly_dirty(interval) IS
    'Hand a portion of the private queue to the public one where a later release''s window is installed; returns keys handed over. Deletes nothing that has not been processed, so p_retention has nothing to limit.';
