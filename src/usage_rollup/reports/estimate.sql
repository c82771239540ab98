-- What a walk would read, and a sample of it. The gap :ranges of `months` is one of the multiranges below it.

-- name: months
SELECT to_char(tu.created_at, 'YYYY-MM') AS month, COUNT(*) AS rows
FROM unnest(:ranges) AS r
JOIN public.task_usage AS tu ON tu.created_at >= lower(r) AND tu.created_at < upper(r)
GROUP BY 1 ORDER BY 1;

-- name: planned
SELECT range_agg(tstzrange(b.from_hour, b.to_hour)) FROM public.task_usage_hourly_backfill AS b
WHERE b.walked_at IS NULL;

-- name: history
-- All of it.
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

-- name: window_sample
-- What the product's window does about :rows rows, without writing: each key meets all tasks of its runtime and agent.
WITH keys AS (
    SELECT DISTINCT public.task_usage_hour_bucket(tu.created_at) AS bucket_hour, a.workspace_id, q.runtime_id,
        q.agent_id, i.project_id, tu.provider, tu.model
    FROM (
        SELECT * FROM public.task_usage WHERE public.task_usage_hourly_dated(created_at)
        ORDER BY created_at DESC LIMIT CAST(:rows AS bigint)) AS tu
    JOIN public.agent_task_queue q ON q.id = tu.task_id
    JOIN public.agent a ON a.id = q.agent_id
    LEFT JOIN public.issue i ON i.id = q.issue_id
)
SELECT COUNT(*) AS buckets FROM (
    SELECT FROM keys k
    JOIN public.agent_task_queue q ON q.runtime_id = k.runtime_id AND q.agent_id = k.agent_id
    LEFT JOIN public.issue i ON i.id = q.issue_id
    JOIN public.task_usage tu ON tu.task_id = q.id AND tu.provider = k.provider AND tu.model = k.model
        AND public.task_usage_hour_bucket(tu.created_at) = k.bucket_hour
    WHERE i.project_id IS NOT DISTINCT FROM k.project_id
    GROUP BY k.bucket_hour, k.workspace_id, k.runtime_id, k.agent_id, k.project_id, k.provider, k.model) AS sums;
