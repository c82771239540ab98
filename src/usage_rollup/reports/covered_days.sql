-- name: days
-- A day is a hole by what is not pending in it; what is pending must not hide the rest. The product's own
-- pipeline stores hours that clients cannot read; those are left out on both sides. So is a bucket that is set aside:
-- nothing recomputed stores it.
WITH raw AS (
    SELECT public.task_usage_hour_bucket(tu.created_at) AS hour, COUNT(*) AS events
    FROM public.task_usage tu
    JOIN public.agent_task_queue q ON q.id = tu.task_id
    JOIN public.agent a ON a.id = q.agent_id
    WHERE public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id IS NOT NULL
    GROUP BY 1
), rolled AS (
    SELECT bucket_hour AS hour, SUM(event_count) AS events FROM public.task_usage_hourly
    WHERE public.task_usage_hourly_dated(bucket_hour) GROUP BY 1
), aside AS (
    SELECT e.bucket_hour AS hour, SUM(e.event_count) AS events
    FROM (SELECT DISTINCT bucket_hour FROM public.task_usage_hourly_set_aside) AS h
    CROSS JOIN LATERAL public.task_usage_hourly_expected(h.bucket_hour, h.bucket_hour + interval '1 hour') AS e
    WHERE EXISTS (
        SELECT FROM public.task_usage_hourly_set_aside s
        WHERE (s.bucket_hour, s.workspace_id, s.runtime_id, s.agent_id)
            = (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id)
            AND s.project_id IS NOT DISTINCT FROM e.project_id
            AND s.label_digest = public.task_usage_hourly_label_digest(e.provider, e.model))
    GROUP BY 1
), hours AS (
    SELECT hour, COALESCE(raw.events, 0) - COALESCE(aside.events, 0) AS expected,
        COALESCE(rolled.events, 0) AS found,
        hour NOT IN (SELECT public.task_usage_hourly_pending_hours()) AS settled
    FROM raw FULL JOIN rolled USING (hour) LEFT JOIN aside USING (hour)
), days AS (
    SELECT (hour AT TIME ZONE 'UTC')::date AS day, SUM(expected)::bigint AS expected,
        SUM(found)::bigint AS found, COALESCE(SUM(found - expected) FILTER (WHERE settled), 0) AS surplus
    FROM hours GROUP BY 1
)
SELECT day, expected, found, CASE
    WHEN found = expected THEN :complete
    WHEN surplus = 0 THEN :pending
    WHEN found > 0 THEN :partly
    WHEN day < CAST(:left_out_before AS timestamptz) AT TIME ZONE 'UTC' THEN :left_out
    ELSE :missing END AS state
FROM days ORDER BY day;
