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

-- name: window
SELECT public.rollup_task_usage_hourly_window(CAST(:from_at AS timestamptz), CAST(:to_at AS timestamptz));

-- name: wrong_hours
SELECT h.hour FROM public.task_usage_hourly_differences(
    timestamptz '0001-01-01 00:00:00+00', timestamptz '9999-01-01 00:00:00+00', CAST(:pending AS boolean)) AS h (hour);

-- name: wrong_keys
-- What somebody else has queued is his: the next tick recomputes it.
SELECT k.*, EXISTS (
    SELECT FROM public.task_usage_hourly_dirty d
    WHERE (d.bucket_hour, d.workspace_id, d.runtime_id, d.agent_id, d.provider, d.model)
        = (k.bucket_hour, k.workspace_id, k.runtime_id, k.agent_id, k.provider, k.model)
        AND d.project_id IS NOT DISTINCT FROM k.project_id) AS queued
FROM public.task_usage_hourly_wrong_keys(
    CAST(:hour AS timestamptz), CAST(:hour AS timestamptz) + interval '1 hour') k
ORDER BY k.bucket_hour, k.workspace_id, k.runtime_id, k.agent_id, k.project_id, k.provider, k.model;

-- name: queue
-- Before everything that anybody else has queued, so that a window which ends there takes these alone: in
-- the last microsecond before the year 1, which in Go is the time of nothing.
INSERT INTO public.task_usage_hourly_dirty
    (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, enqueued_at)
VALUES (:bucket_hour, :workspace_id, :runtime_id, :agent_id, :project_id, :provider, :model,
    '0001-12-31 23:59:59.999999+00 BC')
ON CONFLICT DO NOTHING;

-- name: window_of_the_far_past
-- Not an empty range, for which some releases do nothing, and not one with events of its own.
SELECT public.rollup_task_usage_hourly_window(
    timestamptz '0001-12-31 23:59:59.999999+00 BC', timestamptz '0001-01-01 00:00:00+00');

-- name: take_back
-- What the window has left there would make its hour look pending.
DELETE FROM public.task_usage_hourly_dirty WHERE enqueued_at = '0001-12-31 23:59:59.999999+00 BC';
