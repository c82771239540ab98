-- The product's own pipeline, stepped through by its window. The gap :events of two of these is the third.

-- name: events
-- What has happened from the watermark to a horizon, as the window finds it.
SELECT tu.updated_at AS at FROM public.task_usage tu, public.task_usage_hourly_rollup_state s
WHERE s.id = 1 AND tu.updated_at >= s.watermark_at AND tu.updated_at < CAST(:horizon AS timestamptz)
UNION ALL
SELECT tu.created_at FROM public.task_usage tu, public.task_usage_hourly_rollup_state s
WHERE s.id = 1 AND tu.updated_at IS NULL
    AND tu.created_at >= s.watermark_at AND tu.created_at < CAST(:horizon AS timestamptz);

-- name: rows_left
SELECT COUNT(*) FROM (
    :events
) AS events;

-- name: step
-- Events of one instant are never split, so a step ends just after its last one.
WITH step AS (
    SELECT at FROM (
        :events
    ) AS events ORDER BY at LIMIT :rows
)
SELECT s.watermark_at AS from_at, (SELECT COUNT(*) FROM step) AS events,
    CASE WHEN (SELECT COUNT(*) FROM step) < :rows THEN CAST(:horizon AS timestamptz)
         ELSE (SELECT MAX(at) + interval '1 microsecond' FROM step) END AS to_at
FROM public.task_usage_hourly_rollup_state s
WHERE s.id = 1 AND s.watermark_at < CAST(:horizon AS timestamptz);

-- name: empty_window
SELECT public.rollup_task_usage_hourly_window(now, now) FROM (SELECT clock_timestamp() AS now) AS t;

-- name: queue
-- Keys that are there and keys that should be: the window works key by key.
INSERT INTO public.task_usage_hourly_dirty AS d
    (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
FROM public.task_usage_hourly WHERE bucket_hour = :hour
UNION
SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
FROM public.task_usage_hourly_expected(:hour, :hour + interval '1 hour')
ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key
DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
