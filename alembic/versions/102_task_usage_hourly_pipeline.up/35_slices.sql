-- 102, part 35_slices: what a backfill would walk, and in which steps. Only reads.

-- Everything from the first day to the last when nothing is rolled up yet; otherwise only the days
-- with events the watermark has not passed. Empty when there is nothing to walk.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_unwalked()
RETURNS tstzmultirange LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET timezone = 'UTC' SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_watermark timestamptz;
    v_first_event timestamptz;
BEGIN
    SELECT watermark_at INTO STRICT v_watermark FROM public.task_usage_hourly_rollup_state WHERE id = 1;
    SELECT LEAST(
        (SELECT MIN(updated_at) FROM public.task_usage),
        (SELECT MIN(created_at) FROM public.task_usage WHERE updated_at IS NULL))
    INTO v_first_event;
    RETURN COALESCE((
        SELECT range_agg(tstzrange(d.first_day, d.last_day + interval '1 day'))
        FROM (
            SELECT date_trunc('day', MIN(created_at)) AS first_day, date_trunc('day', MAX(created_at)) AS last_day
            FROM public.task_usage
            WHERE v_watermark <= v_first_event AND public.task_usage_hourly_dated(created_at)
            UNION
            SELECT date_trunc('day', created_at), date_trunc('day', created_at) FROM public.task_usage
            WHERE v_watermark > v_first_event AND updated_at >= v_watermark
                AND public.task_usage_hourly_dated(created_at)
            UNION
            SELECT date_trunc('day', created_at), date_trunc('day', created_at) FROM public.task_usage
            WHERE v_watermark > v_first_event AND updated_at IS NULL AND created_at >= v_watermark
                AND public.task_usage_hourly_dated(created_at)
        ) AS d WHERE d.first_day IS NOT NULL), '{}');
END
$$;

-- Cuts ranges into slices of at most a calendar month, and of at most p_rows usage rows; an hour is never
-- split, so a slice may hold one hour more. Together they cover the ranges without a gap: what the
-- rollup holds where there are no raw rows has to go.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_slices(p_ranges tstzmultirange, p_rows bigint)
RETURNS TABLE (from_hour timestamptz, to_hour timestamptz, usage_rows bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET timezone = 'UTC' AS $$
    WITH ranges AS (
        SELECT lower(r) AS range_from, upper(r) AS range_to FROM unnest(p_ranges) AS r
    ), hours AS (
        SELECT r.range_from, r.range_to, COUNT(tu.created_at) AS events, date_bin(
            '1 hour', COALESCE(tu.created_at, r.range_from), '0001-01-01 00:00:00+00') AS hour
        FROM ranges r
        LEFT JOIN public.task_usage tu ON tu.created_at >= r.range_from AND tu.created_at < r.range_to
        GROUP BY 1, 2, 4
    ), counted AS (
        SELECT h.*, date_trunc('month', h.hour) AS month, SUM(h.events) OVER (
            PARTITION BY h.range_from, date_trunc('month', h.hour) ORDER BY h.hour) - h.events AS before
        FROM hours h
    ), slices AS (
        SELECT c.range_from, c.range_to, SUM(c.events)::bigint AS events,
            CASE WHEN MIN(c.before) = 0 THEN c.month ELSE MIN(c.hour) END AS first_hour
        FROM counted c GROUP BY c.range_from, c.range_to, c.month, div(c.before, p_rows)
    )
    SELECT
        CASE WHEN LAG(s.first_hour) OVER neighbours IS NULL THEN s.range_from ELSE s.first_hour END,
        LEAD(s.first_hour, 1, s.range_to) OVER neighbours, s.events
    FROM slices s
    WINDOW neighbours AS (PARTITION BY s.range_from ORDER BY s.first_hour)
    ORDER BY 1
$$;
