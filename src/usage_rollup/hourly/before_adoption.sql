-- What another runner left of the hourly rollup. Functions of 102 are in public or lent to the session.

-- name: future_watermark
SELECT watermark_at::text FROM public.task_usage_hourly_rollup_state
WHERE id = 1 AND watermark_at > clock_timestamp();

-- name: differing
-- Hours that differ, and of these those that the next ticks come to by themselves.
SELECT COUNT(*) FILTER (WHERE p.hour IS NULL) AS differing, COUNT(p.hour) AS waiting
FROM public.task_usage_hourly_differences(timestamptz '-infinity', timestamptz 'infinity', true) AS d (hour)
LEFT JOIN (SELECT DISTINCT public.task_usage_hourly_pending_hours() AS hour) AS p USING (hour);
