-- 102, part 25_differences: what the rollup holds and should not, or should and does not.

-- The hours that queued rows stand for, resolved now: call it in a statement that starts after the
-- rows were read. A row may name a task or an agent that is gone; its usage then named its own hours.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_invalidated_hours(
    p_queued public.task_usage_hourly_invalidation[]
)
RETURNS SETOF timestamptz LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT v.bucket_hour FROM unnest(p_queued) AS v WHERE v.bucket_hour IS NOT NULL
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at)
    FROM unnest(p_queued) AS v
    JOIN public.task_usage tu ON tu.task_id = v.task_id
    WHERE v.bucket_hour IS NULL
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at)
    FROM unnest(p_queued) AS v
    JOIN public.agent_task_queue q ON q.issue_id = v.issue_id
    JOIN public.task_usage tu ON tu.task_id = q.id
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at)
    FROM unnest(p_queued) AS v
    JOIN public.agent_task_queue q ON q.agent_id = v.agent_id
    JOIN public.task_usage tu ON tu.task_id = q.id
    UNION
    SELECT h.bucket_hour FROM public.task_usage_hourly h
    WHERE EXISTS (
        SELECT FROM unnest(p_queued) AS v
        WHERE num_nonnulls(v.bucket_hour, v.task_id, v.issue_id, v.agent_id) = 0)
$$;

-- The oracle: keys whose stored and expected rows differ. A bucket that is set aside and not stored is as it
-- has to be. Without a SET clause, as the expected rows are, so that whoever reads it plans it: for one hour
-- another way than for a history. Two equalities for the project, because nothing else can be joined by hash.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_wrong_keys(p_from timestamptz, p_to timestamptz)
RETURNS TABLE (
    bucket_hour timestamptz, workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid,
    provider text, model text
)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        COALESCE(e.bucket_hour, h.bucket_hour), COALESCE(e.workspace_id, h.workspace_id),
        COALESCE(e.runtime_id, h.runtime_id), COALESCE(e.agent_id, h.agent_id),
        COALESCE(e.project_id, h.project_id), COALESCE(e.provider, h.provider), COALESCE(e.model, h.model)
    FROM public.task_usage_hourly_expected(p_from, p_to) e
    FULL JOIN (
        SELECT * FROM public.task_usage_hourly
        WHERE bucket_hour >= GREATEST(p_from, '0001-01-01 00:00:00+00')
            AND bucket_hour < LEAST(p_to, '9999-01-01 00:00:00+00')
    ) h ON
        (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id, e.provider, e.model)
        = (h.bucket_hour, h.workspace_id, h.runtime_id, h.agent_id, h.provider, h.model)
        AND (e.project_id IS NULL) = (h.project_id IS NULL)
        AND COALESCE(e.project_id, '00000000-0000-0000-0000-000000000000')
        = COALESCE(h.project_id, '00000000-0000-0000-0000-000000000000')
    WHERE (e.input_tokens, e.output_tokens, e.cache_read_tokens, e.cache_write_tokens,
            e.task_count, e.event_count)
        IS DISTINCT FROM (h.input_tokens, h.output_tokens, h.cache_read_tokens,
            h.cache_write_tokens, h.task_count, h.event_count)
        AND NOT (h.bucket_hour IS NULL AND EXISTS (
            SELECT FROM public.task_usage_hourly_set_aside s
            WHERE (s.bucket_hour, s.workspace_id, s.runtime_id, s.agent_id)
                = (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id)
                AND s.project_id IS NOT DISTINCT FROM e.project_id
                AND s.label_digest = public.task_usage_hourly_label_digest(e.provider, e.model)))
$$;

COMMENT ON FUNCTION public.task_usage_hourly_wrong_keys(timestamptz, timestamptz) IS
    'Keys in [p_from, p_to), hour-aligned, whose row of task_usage_hourly is not the aggregate of raw usage, pending or not.';

-- Their hours. An hour that is queued, or holds an event at or above the watermark, is not behind but
-- pending; whoever has just recomputed it asks without that excuse. One statement, so one snapshot;
-- custom plans, because the range decides the plan. A full join by hash costs half of what sorting both
-- sides does, and grouping raw rows by hash a seventh less than sorting them, which is what a guess of one bucket a
-- row would choose; parallel hash tables live in /dev/shm, of which a container has 64 MB.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_differences(
    p_from timestamptz DEFAULT '-infinity', p_to timestamptz DEFAULT 'infinity', p_pending boolean DEFAULT false
)
RETURNS SETOF timestamptz LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan
SET enable_hashjoin = on SET enable_mergejoin = off SET enable_hashagg = on SET enable_sort = off
SET enable_parallel_hash = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT DISTINCT k.bucket_hour FROM public.task_usage_hourly_wrong_keys(p_from, p_to) k
    WHERE p_pending OR k.bucket_hour NOT IN (SELECT public.task_usage_hourly_pending_hours())
    ORDER BY 1;
END
$$;

COMMENT ON FUNCTION public.task_usage_hourly_differences(timestamptz, timestamptz, boolean) IS
    'Hours in which task_usage_hourly is not the aggregate of raw usage although nothing about them is pending, or, with p_pending, whatever is pending.';

-- What the next windows will recompute: queued, or with an event between the watermark and now. A row dated
-- later than now was queued when it was written: nothing else will come for it. The clock is read after
-- the snapshot was taken, so no row that is seen began after it.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_pending_hours()
RETURNS SETOF timestamptz LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_watermark timestamptz := COALESCE(
        (SELECT watermark_at FROM public.task_usage_hourly_rollup_state WHERE id = 1), '-infinity');
    v_now CONSTANT timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    SELECT public.task_usage_hourly_invalidated_hours((
        SELECT array_agg(ROW(v.*)::public.task_usage_hourly_invalidation)
        FROM (SELECT DISTINCT bucket_hour, task_id, issue_id, agent_id, NULL::timestamptz
              FROM public.task_usage_hourly_invalidation) v))
    UNION
    SELECT public.task_usage_hour_bucket(d.bucket_hour) FROM public.task_usage_hourly_dirty d
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
    WHERE tu.updated_at >= v_watermark AND tu.updated_at <= v_now
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
    WHERE tu.updated_at IS NULL AND tu.created_at >= v_watermark AND tu.created_at <= v_now;
END
$$;

-- Two look-ups by index, at the ends of time.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_undated()
RETURNS TABLE (usage_id uuid, created_at timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT tu.id, tu.created_at FROM public.task_usage tu WHERE tu.created_at < '0001-01-01 00:00:00+00'
    UNION ALL
    SELECT tu.id, tu.created_at FROM public.task_usage tu WHERE tu.created_at >= '9999-01-01 00:00:00+00'
$$;

COMMENT ON FUNCTION public.task_usage_hourly_undated() IS
    'Usage rows that belong to no hour of the rollup, to be mended by hand.';

-- Totals by day that only the legacy rollups hold, because their raw rows are gone. Compared by
-- workspace and model, not by agent, runtime or project, whose moves the legacy rollups follow late.
--
-- A day of the dashboard rollup is UTC's. A day of the daily one is the runtime's, or UTC's in rows older
-- than migration 082, which rebuilt nothing: the ledger tells when it came. Where a total is made of both,
-- each runtime's usage counts as its own row does, or, without such a row, as the smaller of the two. A
-- runtime whose zone has changed since makes totals exceed although nothing is lost: rather that, which
-- keeps the tables, than a loss that the larger of two days hides.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_legacy_excess()
RETURNS TABLE (
    rollup text, bucket_date date, workspace_id uuid, model text,
    legacy_tokens numeric, raw_tokens numeric, legacy_events numeric, raw_events numeric
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    -- Without a ledger that tells, the baseline is this chain's own, whose days are the runtime's.
    v_by_runtime timestamptz := '-infinity';
BEGIN
    IF to_regclass('public.task_usage_daily') IS NULL
        OR to_regclass('public.task_usage_dashboard_daily') IS NULL
    THEN
        RETURN;
    END IF;
    IF has_table_privilege(to_regclass('public.schema_migrations'), 'SELECT') AND EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = to_regclass('public.schema_migrations') AND a.attname = 'applied_at'
            AND a.atttypid = 'timestamptz'::regtype AND NOT a.attisdropped)
    THEN
        SELECT COALESCE(MAX(m.applied_at), v_by_runtime) INTO v_by_runtime
        FROM public.schema_migrations m WHERE starts_with(m.version, '082_');
    END IF;
    RETURN QUERY
    WITH daily AS MATERIALIZED (
        SELECT d.bucket_date AS day, d.workspace_id, d.model, d.runtime_id, d.provider,
            d.updated_at >= v_by_runtime AS by_runtime, d.event_count AS events,
            d.input_tokens::numeric + d.output_tokens + d.cache_read_tokens + d.cache_write_tokens AS tokens
        FROM public.task_usage_daily d
    ), legacy (rollup, day, workspace_id, model, tokens, events, by_runtime) AS (
        -- NULL where both kinds of days are in it.
        SELECT 'task_usage_daily', d.day, d.workspace_id, d.model, SUM(d.tokens), SUM(d.events),
            CASE WHEN bool_and(d.by_runtime) = bool_or(d.by_runtime) THEN bool_or(d.by_runtime) END
        FROM daily d GROUP BY 2, 3, 4
        UNION ALL
        SELECT
            'task_usage_dashboard_daily', d.bucket_date, d.workspace_id, d.model,
            SUM(d.input_tokens::numeric + d.output_tokens + d.cache_read_tokens + d.cache_write_tokens),
            SUM(d.event_count), false
        FROM public.task_usage_dashboard_daily d GROUP BY 2, 3, 4
    ), zones AS MATERIALIZED (
        -- A zone that PostgreSQL does not know must not stop the comparison.
        SELECT z.name FROM pg_timezone_names z
        WHERE EXISTS (SELECT FROM daily) AND z.name IN (SELECT r.timezone FROM public.agent_runtime r)
    ), raw AS MATERIALIZED (
        SELECT
            (tu.created_at AT TIME ZONE 'UTC')::date AS utc_day,
            (tu.created_at AT TIME ZONE COALESCE(z.name, 'UTC'))::date AS runtime_day,
            a.workspace_id, tu.model, q.runtime_id, tu.provider,
            SUM(tu.input_tokens) + SUM(tu.output_tokens) + SUM(tu.cache_read_tokens) + SUM(tu.cache_write_tokens)
            AS tokens, COUNT(*) AS events
        FROM public.task_usage tu
        JOIN public.agent_task_queue q ON q.id = tu.task_id
        JOIN public.agent a ON a.id = q.agent_id
        LEFT JOIN public.agent_runtime r ON r.id = q.runtime_id
        LEFT JOIN zones z ON z.name = r.timezone
        WHERE public.task_usage_hourly_dated(tu.created_at) AND EXISTS (SELECT FROM legacy)
        GROUP BY 1, 2, 3, 4, 5, 6
    ), keys AS MATERIALIZED (
        SELECT
            k.day, k.workspace_id, k.model, k.runtime_id, k.provider,
            SUM(k.utc_tokens) AS utc_tokens, SUM(k.utc_events) AS utc_events,
            SUM(k.runtime_tokens) AS runtime_tokens, SUM(k.runtime_events) AS runtime_events
        FROM (
            SELECT r.utc_day AS day, r.workspace_id, r.model, r.runtime_id, r.provider,
                r.tokens AS utc_tokens, r.events AS utc_events, 0 AS runtime_tokens, 0 AS runtime_events
            FROM raw r
            UNION ALL
            SELECT r.runtime_day, r.workspace_id, r.model, r.runtime_id, r.provider, 0, 0, r.tokens, r.events
            FROM raw r
        ) AS k GROUP BY 1, 2, 3, 4, 5
    ), compared AS (
        SELECT
            l.rollup, l.day, l.workspace_id, l.model, l.tokens, l.events,
            COALESCE(SUM(CASE COALESCE(l.by_runtime, d.by_runtime) WHEN true THEN k.runtime_tokens
                WHEN false THEN k.utc_tokens ELSE LEAST(k.runtime_tokens, k.utc_tokens) END), 0) AS raw_tokens,
            COALESCE(SUM(CASE COALESCE(l.by_runtime, d.by_runtime) WHEN true THEN k.runtime_events
                WHEN false THEN k.utc_events ELSE LEAST(k.runtime_events, k.utc_events) END), 0) AS raw_events
        FROM legacy l
        LEFT JOIN keys k USING (day, workspace_id, model)
        LEFT JOIN daily d USING (day, workspace_id, model, runtime_id, provider)
        GROUP BY 1, 2, 3, 4, 5, 6
    )
    SELECT c.rollup, c.day, c.workspace_id, c.model, c.tokens, c.raw_tokens, c.events, c.raw_events
    FROM compared c WHERE c.tokens > c.raw_tokens OR c.events > c.raw_events
    ORDER BY 2, 1, 3, 4;
END
$$;

COMMENT ON FUNCTION public.task_usage_hourly_legacy_excess() IS
    'Daily totals of the legacy rollups that exceed raw usage: what dropping them would lose.';
