-- The comparison of rollup and raw usage, by the functions of 102: in public, or lent to the session.

-- name: state
SELECT
    COALESCE((SELECT watermark_at::text FROM public.task_usage_hourly_rollup_state WHERE id = 1), 'missing')
        AS watermark,
    (SELECT COUNT(*) FROM public.task_usage_hourly_pending_hours() AS p (hour)
     WHERE CAST(:since AS timestamptz) IS NULL
        OR p.hour >= public.task_usage_hour_bucket(CAST(:since AS timestamptz))) AS pending_hours;

-- name: judged
-- An hour of raw usage that is neither rolled up nor pending is among the hours that differ.
SELECT COUNT(*) FROM (
    SELECT DISTINCT bucket_hour AS hour FROM public.task_usage_hourly
    WHERE bucket_hour < '9999-01-01 00:00:00+00' AND bucket_hour >= GREATEST(
        public.task_usage_hour_bucket(CAST(:since AS timestamptz)), '0001-01-01 00:00:00+00')
    UNION SELECT unnest(CAST(:differing AS timestamptz[]))
) AS h WHERE h.hour NOT IN (SELECT public.task_usage_hourly_pending_hours());

-- name: newest_hour
-- Two look-ups by index: what tells a database without usage from a question beyond the data.
SELECT GREATEST(
    (SELECT public.task_usage_hour_bucket(MAX(created_at)) FROM public.task_usage
     WHERE public.task_usage_hourly_dated(created_at)),
    (SELECT MAX(bucket_hour) FROM public.task_usage_hourly WHERE public.task_usage_hourly_dated(bucket_hour)));

-- name: differences
-- Within the years that clients can read: the product's own pipeline stores others too.
SELECT d.hour, e.events AS expected_events, h.events AS found_events, e.tokens AS expected_tokens,
    h.tokens AS found_tokens,
    ARRAY(SELECT tu.id FROM public.task_usage tu
          WHERE tu.created_at >= d.hour AND tu.created_at < d.hour + interval '1 hour'
          ORDER BY tu.created_at LIMIT 3) AS usage_ids
FROM public.task_usage_hourly_differences(
    GREATEST(public.task_usage_hour_bucket(CAST(:since AS timestamptz)), timestamptz '0001-01-01 00:00:00+00'),
    timestamptz '9999-01-01 00:00:00+00', false) AS d (hour)
CROSS JOIN LATERAL (
    SELECT COALESCE(SUM(event_count), 0)::bigint AS events, COALESCE(SUM(
        input_tokens::numeric + output_tokens + cache_read_tokens + cache_write_tokens), 0) AS tokens
    FROM public.task_usage_hourly_expected(d.hour, d.hour + interval '1 hour')) AS e
CROSS JOIN LATERAL (
    SELECT COALESCE(SUM(event_count), 0)::bigint AS events, COALESCE(SUM(
        input_tokens::numeric + output_tokens + cache_read_tokens + cache_write_tokens), 0) AS tokens
    FROM public.task_usage_hourly WHERE bucket_hour = d.hour) AS h
ORDER BY d.hour;

-- name: set_aside
SELECT bucket_hour AS hour, agent_id, label_start, error FROM public.task_usage_hourly_set_aside
ORDER BY 1, 2, 3;

-- name: legacy_excess
SELECT rollup, bucket_date AS day, workspace_id, model, legacy_tokens, raw_tokens
FROM public.task_usage_hourly_legacy_excess();

-- name: not_compared
SELECT attname FROM pg_catalog.pg_attribute
WHERE attrelid = 'public.task_usage_hourly'::regclass AND attnum > 0 AND NOT attisdropped
    AND attname <> ALL (CAST(:columns AS text[]))
ORDER BY attnum;

-- name: has_left_out
SELECT to_regclass('public.task_usage_hourly_left_out') IS NOT NULL;

-- name: left_out
SELECT before_hour::text FROM public.task_usage_hourly_left_out;
