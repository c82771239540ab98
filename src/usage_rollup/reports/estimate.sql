-- What a walk would read, and a sample of it. The gap :source of `months` is a plan, or slices as they would be
-- planned.

-- name: months
SELECT to_char(from_hour, 'YYYY-MM') AS month, SUM(usage_rows)::bigint AS rows FROM :source
GROUP BY 1 HAVING SUM(usage_rows) > 0 ORDER BY 1;

-- name: history
-- All of it, as the ranges that slices are cut from.
SELECT tstzmultirange(tstzrange(
    date_trunc('day', MIN(created_at)), date_trunc('day', MAX(created_at)) + interval '1 day'))
FROM public.task_usage WHERE public.task_usage_hourly_dated(created_at);

-- name: sample_start
-- The first whole hour after the sample's oldest row, or the newest hour if that alone holds more.
SELECT LEAST(b.hour + interval '1 hour', (SELECT public.task_usage_hour_bucket(MAX(created_at))
    FROM public.task_usage WHERE public.task_usage_hourly_dated(created_at)))::text
FROM (
    SELECT public.task_usage_hour_bucket(created_at) AS hour FROM public.task_usage
    WHERE public.task_usage_hourly_dated(created_at) ORDER BY created_at DESC OFFSET :rows LIMIT 1) AS b;

-- name: sample
SELECT COUNT(*) AS buckets, COALESCE(SUM(event_count), 0)::bigint AS rows
FROM public.rollup_task_usage_hourly_aggregate(CAST(:since AS timestamptz), timestamptz 'infinity');
