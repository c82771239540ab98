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

-- Cuts ranges into slices of about an eighth of all, of 50,000 usage rows at least and p_rows at most; the first of a
-- range is half of that, because its pace decides how many sessions go on. Or into slices of what the setting
-- usage_rollup.slice_rows says, where that is a number of rows. An hour is never split, so a slice may hold one hour
-- more. Together they cover the ranges without a gap: what the rollup holds where there are no raw rows has to go.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_slices(p_ranges tstzmultirange, p_rows bigint)
RETURNS TABLE (from_hour timestamptz, to_hour timestamptz, usage_rows bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET timezone = 'UTC' AS $$
    WITH ranges AS (
        SELECT lower(r) AS range_from, upper(r) AS range_to FROM unnest(p_ranges) AS r
    ), hours AS (
        SELECT r.*, COALESCE(h.hour, r.range_from) AS hour, COALESCE(h.events, 0) AS events
        FROM ranges r
        LEFT JOIN LATERAL (
            SELECT date_bin('1 hour', tu.created_at, '0001-01-01 00:00:00+00') AS hour, COUNT(*) AS events
            FROM public.task_usage tu WHERE tu.created_at >= r.range_from AND tu.created_at < r.range_to
            GROUP BY 1
        ) h ON true
    ), counted AS (
        SELECT h.*, SUM(h.events) OVER (PARTITION BY h.range_from ORDER BY h.hour) - h.events AS before,
            LEAST(p_rows, GREATEST(50000, div(SUM(h.events) OVER (), 8) + 1)) AS most,
            substring(current_setting('usage_rollup.slice_rows', true) from '^[1-9][0-9]{0,8}$')::bigint AS wanted
        FROM hours h
    ), numbered AS (
        SELECT c.*, COALESCE(div(c.before, c.wanted), div(c.before + div(c.most, 2), c.most)) AS number
        FROM counted c
    ), slices AS (
        SELECT n.range_from, n.range_to, SUM(n.events)::bigint AS events,
            CASE WHEN n.number = 0 THEN n.range_from ELSE MIN(n.hour) END AS first_hour
        FROM numbered n GROUP BY n.range_from, n.range_to, n.number
    )
    SELECT s.first_hour, LEAD(s.first_hour, 1, s.range_to) OVER (PARTITION BY s.range_from ORDER BY s.first_hour),
        s.events
    FROM slices s
    ORDER BY 1
$$;
