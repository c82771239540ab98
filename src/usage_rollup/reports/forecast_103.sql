-- What 103 would find. The gaps :watermark, :planned and :left_out of `state` are closed by what there is of it.

-- name: tables
SELECT
    (SELECT bool_and(to_regclass('public.' || t) IS NOT NULL)
     FROM unnest(CAST(:hourly AS text[])) AS t) AS hourly,
    (SELECT bool_or(to_regclass('public.' || t) IS NOT NULL)
     FROM unnest(CAST(:legacy AS text[])) AS t) AS legacy,
    to_regclass('public.task_usage_hourly_backfill') IS NOT NULL AS plan;

-- name: state
-- An unfinished backfill takes the watermark to where it was planned; only beyond is a horizon needed.
SELECT s.watermark::text AS watermark, s.latest::text AS latest, s.used, s.planned IS NOT NULL AS unfinished,
    COALESCE(s.watermark > clock_timestamp(), false) AS future,
    upper((:left_out))::text AS left_out_before,
    COALESCE(s.latest - :lag > s.rolled_up, false) AS behind,
    COALESCE(s.latest - :lag > GREATEST(s.rolled_up, s.planned), false) AS needs_horizon
FROM (
    SELECT *, CASE WHEN isfinite(watermark) THEN watermark ELSE 'epoch' END AS rolled_up
    FROM (SELECT :watermark AS watermark, :planned AS planned,
            public.task_usage_hourly_latest_event() AS latest,
            EXISTS (SELECT FROM public.task_usage) AS used) AS r
) AS s;

-- name: held_back
SELECT public.task_usage_hourly_latest_event() - :lag
    > public.task_usage_hourly_horizon(CAST(:wait AS interval));

-- name: legacy
SELECT
    (SELECT COALESCE(SUM(pg_total_relation_size(to_regclass('public.' || t))), 0)::bigint
     FROM unnest(CAST(:tables AS text[])) AS t) AS bytes,
    EXISTS (SELECT FROM public.task_usage_hourly_set_aside)
        OR EXISTS (SELECT FROM public.task_usage_hourly_undated()) AS set_aside;

-- name: excess
SELECT COUNT(*) OVER () AS totals, format('%s %s, workspace %s, %s: %s tokens there, %s in raw usage',
    rollup, bucket_date, workspace_id, left(model, 60), legacy_tokens, raw_tokens) AS example
FROM public.task_usage_hourly_legacy_excess() LIMIT 3;
