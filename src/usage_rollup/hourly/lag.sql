-- How far the hourly rollup is behind, by the functions of 102: in public, or lent to the session.

-- name: lag
-- A few look-ups by index. 102's function counts from 1970 where the watermark has never moved.
SELECT CASE
    WHEN s.watermark > clock_timestamp() THEN NULL
    WHEN s.watermark > 'epoch' THEN public.task_usage_hourly_rollup_lag_seconds()
    -- Without any usage 0, too.
    ELSE GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - LEAST(
        (SELECT MIN(updated_at) FROM public.task_usage WHERE isfinite(updated_at)),
        (SELECT MIN(created_at) FROM public.task_usage WHERE public.task_usage_hourly_dated(created_at))
    )))::double precision END
FROM (SELECT (SELECT watermark_at FROM public.task_usage_hourly_rollup_state WHERE id = 1) AS watermark) AS s;
