-- What there is to tell of a database; a table that is missing is not asked. The gap :table is the queue's name.

-- name: tables
SELECT relname FROM pg_catalog.pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p');

-- name: state
-- As text, because an infinite time is no Python datetime.
SELECT watermark_at::text AS watermark, watermark_at > clock_timestamp() AS in_future,
    last_run_started_at::text AS started_at,
    last_run_finished_at::text AS finished_at,
    last_run_rows AS rows, last_error AS error
FROM public.task_usage_hourly_rollup_state WHERE id = 1;

-- name: queue
SELECT count(*) AS rows, pg_total_relation_size('public.:table')::bigint AS bytes,
    min(enqueued_at)::text AS oldest_at,
    CASE WHEN isfinite(min(enqueued_at)) THEN
        GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - min(enqueued_at)))::float8 END AS oldest_seconds
FROM public.:table;

-- name: left_out
SELECT before_hour::text, acknowledged_at::text AS acknowledged_at, acknowledged_by
FROM public.task_usage_hourly_left_out;
