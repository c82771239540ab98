-- 102, part 55_bridge: hand over to a later release's window what only this pipeline has written down.

-- Unprocessed rows are never pruned, and processed ones are deleted by the window that processed
-- them. What remains to do here is for the day a later release replaces the window: it reads only the
-- public queue, and still calls this function on every tick, so this hands the private queue over.
CREATE OR REPLACE FUNCTION public.prune_task_usage_hourly_dirty(p_retention interval DEFAULT '7 days')
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queued public.task_usage_hourly_invalidation[];
    v_hour timestamptz;
BEGIN
    IF (SELECT p.prosrc LIKE '%rollup_task_usage_hourly_settle%' FROM pg_proc p
        WHERE p.oid = 'public.rollup_task_usage_hourly_window(timestamptz,timestamptz)'::regprocedure)
    THEN
        RETURN 0;
    END IF;

    v_queued := public.rollup_task_usage_hourly_drain();
    FOR v_hour IN
        SELECT h FROM public.task_usage_hourly_invalidated_hours(v_queued) AS h
        WHERE public.task_usage_hourly_dated(h)
    LOOP
        -- Keys that are there and keys that should be: their window works key by key.
        INSERT INTO public.task_usage_hourly_dirty AS d
            (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
        SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
        FROM public.task_usage_hourly WHERE bucket_hour = v_hour
        UNION
        SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
        FROM public.task_usage_hourly_expected(v_hour, v_hour + interval '1 hour')
        ORDER BY 1, 2, 3, 4, 5, 6, 7
        ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key
        DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
    END LOOP;
    RETURN COALESCE(cardinality(v_queued), 0);
END
$$;

COMMENT ON FUNCTION public.prune_task_usage_hourly_dirty(interval) IS
    'Hand the private queue to the public one where a later release''s window is installed; returns rows handed over. Deletes nothing that has not been processed, so p_retention has nothing to limit.';
