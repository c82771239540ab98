-- 102, part 15_contract_tables: what the tables of 101, ours or the Go release's, lack.

-- How they were before that, and before the comments below; a 102 that is applied again finds its own.
INSERT INTO public.task_usage_hourly_legacy_settings
SELECT n.* FROM public.task_usage_hourly_legacy_settings_now(text '102') AS n
WHERE n.kind = 'table' OR (n.kind, n.name) = ('column', 'watermark_at')
ON CONFLICT (step, kind, relation, name) DO NOTHING;

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

-- Whatever the watermark says, nothing of ours watched until now: rows were deleted and moved unseen, at 101
-- after a way back, or under the Go release's triggers, which miss some. So history is walked once more,
-- which writes nothing where nothing differs, and so is what an unfinished plan calls walked.
DO $$
DECLARE
    v_claimed timestamptz;
BEGIN
    SELECT s.watermark_at INTO v_claimed FROM public.task_usage_hourly_rollup_state AS s
    WHERE s.id = 1 AND s.watermark_at <> '1970-01-01 00:00:00+00';
    IF FOUND THEN
        UPDATE public.task_usage_hourly_rollup_state SET watermark_at = '1970-01-01 00:00:00+00' WHERE id = 1;
        RAISE INFO 'the watermark of the hourly rollup was %; nothing watched usage until now, so all of it is walked again',
            v_claimed;
    END IF;
    IF to_regclass('public.task_usage_hourly_backfill') IS NOT NULL THEN
        DELETE FROM public.task_usage_hourly_backfill;
    END IF;
END
$$;

-- No tick finds an hour by time whose usage is gone, so those are queued. Hour by hour along the key's index:
-- writers wait meanwhile.
WITH RECURSIVE hours (hour) AS (
    SELECT MIN(h.bucket_hour) FROM public.task_usage_hourly AS h
    UNION ALL
    SELECT (SELECT MIN(h.bucket_hour) FROM public.task_usage_hourly AS h WHERE h.bucket_hour > hours.hour)
    FROM hours WHERE hours.hour IS NOT NULL
)
INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)
SELECT hours.hour FROM hours
WHERE hours.hour >= '0001-01-01 00:00:00+00' AND hours.hour < '9999-01-01 00:00:00+00' AND NOT EXISTS (
    SELECT FROM public.task_usage AS tu
    WHERE tu.created_at >= hours.hour AND tu.created_at < hours.hour + interval '1 hour'
        AND COALESCE(tu.updated_at, tu.created_at) >= '1970-01-01 00:00:00+00');
