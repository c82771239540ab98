-- Who holds the watermark back, by the functions of 102: in public, or lent to the session.

-- name: held_back_by
SELECT COALESCE(b.who, 'a session that has just ended') AS who, COALESCE(b.hint, 'try again') AS hint
FROM (SELECT) AS always LEFT JOIN public.task_usage_hourly_held_back_by() AS b ON true;

-- name: held_back
-- The horizon trails by five minutes anyway, and the tick that follows it by five more.
SELECT b.who, b.hint, s.watermark_at >= public.task_usage_hourly_horizon(interval '0 seconds') AS stuck
FROM public.task_usage_hourly_rollup_state AS s
CROSS JOIN LATERAL (SELECT h.who, h.hint FROM public.task_usage_hourly_held_back_by() AS h) AS b
WHERE s.id = 1 AND s.watermark_at < clock_timestamp() - interval '10 minutes' AND b.who IS NOT NULL;
