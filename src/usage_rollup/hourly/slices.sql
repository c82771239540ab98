-- Who holds the watermark back, by the functions of 102: in public, or lent to the session; and what was left out.

-- name: held_back_by
SELECT COALESCE(b.who, 'a session that has just ended') AS who, COALESCE(b.hint, 'try again') AS hint
FROM (SELECT) AS always LEFT JOIN public.task_usage_hourly_held_back_by() AS b ON true;

-- name: held_back
-- The horizon trails by five minutes anyway, and the tick that follows it by five more.
SELECT b.who, b.hint, s.watermark_at >= public.task_usage_hourly_horizon(interval '0 seconds') AS stuck
FROM public.task_usage_hourly_rollup_state AS s
CROSS JOIN LATERAL (SELECT h.who, h.hint FROM public.task_usage_hourly_held_back_by() AS h) AS b
WHERE s.id = 1 AND s.watermark_at < clock_timestamp() - interval '10 minutes' AND b.who IS NOT NULL;

-- name: left_out
-- What a partial backfill left out, from the first usage on. Nothing once an unfinished walk reaches there.
SELECT tstzmultirange(tstzrange(public.task_usage_hour_bucket(f.first_at), l.before_hour))
FROM public.task_usage_hourly_left_out AS l
CROSS JOIN (
    SELECT MIN(tu.created_at) AS first_at FROM public.task_usage AS tu
    WHERE public.task_usage_hourly_dated(tu.created_at)
) AS f
WHERE f.first_at < l.before_hour
    AND NOT EXISTS (SELECT FROM public.task_usage_hourly_backfill AS b WHERE b.from_hour < l.before_hour);

-- name: plan_left_out
-- The watermark, which is beyond it already, stays.
INSERT INTO public.task_usage_hourly_backfill (from_hour, to_hour, usage_rows, horizon_at)
SELECT s.from_hour, s.to_hour, s.usage_rows, w.watermark_at
FROM public.task_usage_hourly_rollup_state AS w
CROSS JOIN LATERAL public.task_usage_hourly_slices((
    :left_out
), :rows) AS s
WHERE w.id = 1;
