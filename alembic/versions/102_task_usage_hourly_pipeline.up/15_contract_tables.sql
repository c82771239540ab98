-- 102, part 15_contract_tables: what the tables of 101, ours or the Go release's, lack.

-- As the private tables have it; the hourly key has a nullable column, so only FULL serves.
ALTER TABLE public.task_usage_hourly REPLICA IDENTITY FULL;
ALTER TABLE public.task_usage_hourly_dirty REPLICA IDENTITY FULL;

-- As 101 says it: the Go release's 101 may have said something else, or nothing.
COMMENT ON TABLE public.task_usage_hourly IS
    'task_usage summed by UTC hour of created_at and seven keys. Written only under advisory lock 4246.';
COMMENT ON TABLE public.task_usage_hourly_dirty IS
    'Public queue of buckets to recompute; a row leaves it only with the transaction that recomputed its bucket.';
COMMENT ON COLUMN public.task_usage_hourly_rollup_state.watermark_at IS
    'Every event before this instant is rolled up or queued. Moves only with the work that makes it true.';

-- 101's row may be missing where it was deleted by hand; without it the pipeline is dead.
INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO NOTHING;
