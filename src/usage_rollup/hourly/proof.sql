-- What differs, and where to cut the history so that several sessions compare as much each.

-- name: bounds
-- Hours between :ranges parts of about as many buckets, by the statistics; none where there are none. Whole hours,
-- whatever somebody has stored, because an hour that is cut in two differs in both.
SELECT cut.hour::text FROM (
    SELECT DISTINCT public.task_usage_hour_bucket(b.hours[1 + cardinality(b.hours) * n / CAST(:ranges AS int)]) AS hour
    FROM (
        SELECT s.histogram_bounds::text::timestamptz[] AS hours FROM pg_stats AS s
        WHERE (s.schemaname, s.tablename, s.attname) = ('public', 'task_usage_hourly', 'bucket_hour')
    ) AS b, generate_series(1, CAST(:ranges AS int) - 1) AS n
    WHERE cardinality(b.hours) > CAST(:ranges AS int)
) AS cut ORDER BY cut.hour;

-- name: differences
SELECT public.task_usage_hourly_differences(CAST(:since AS timestamptz), CAST(:until AS timestamptz), false);
