-- 102, part 40_recompute: write whole hours of the rollup from raw rows.

-- Either branch works in one snapshot. An empty range needs no comparison and takes the plain INSERT,
-- which is what makes a first backfill fast. The comparison joins two sides of one size: never by
-- nested loops, whatever is estimated. Of the two ways to aggregate only the one that is asked for is called.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_recompute(
    p_from timestamptz, p_to timestamptz, p_by_scan boolean DEFAULT false
)
RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan
SET enable_hashjoin = on SET enable_nestloop = off AS $$
DECLARE
    v_rows bigint;
BEGIN
    IF NOT EXISTS (
        SELECT FROM public.task_usage_hourly h WHERE h.bucket_hour >= p_from AND h.bucket_hour < p_to
    ) THEN
        INSERT INTO public.task_usage_hourly (
            bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,
            input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
        SELECT * FROM public.rollup_task_usage_hourly_aggregate(p_from, p_to) WHERE NOT p_by_scan
        UNION ALL
        SELECT * FROM public.rollup_task_usage_hourly_aggregate_by_scan(p_from, p_to) WHERE p_by_scan;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        RETURN v_rows;
    END IF;

    WITH expected AS MATERIALIZED (
        SELECT * FROM public.rollup_task_usage_hourly_aggregate(p_from, p_to) WHERE NOT p_by_scan
        UNION ALL
        SELECT * FROM public.rollup_task_usage_hourly_aggregate_by_scan(p_from, p_to) WHERE p_by_scan
    ), deleted AS (
        DELETE FROM public.task_usage_hourly h
        WHERE h.bucket_hour >= p_from AND h.bucket_hour < p_to AND NOT EXISTS (
            SELECT FROM expected e
            WHERE (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id, e.provider, e.model)
                = (h.bucket_hour, h.workspace_id, h.runtime_id, h.agent_id, h.provider, h.model)
                AND e.project_id IS NOT DISTINCT FROM h.project_id)
        RETURNING 1
    ), written AS (
        INSERT INTO public.task_usage_hourly AS h (
            bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,
            input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
        SELECT * FROM expected
        ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_key DO UPDATE SET
            input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens,
            cache_read_tokens = EXCLUDED.cache_read_tokens,
            cache_write_tokens = EXCLUDED.cache_write_tokens,
            task_count = EXCLUDED.task_count, event_count = EXCLUDED.event_count, updated_at = now()
        WHERE (h.input_tokens, h.output_tokens, h.cache_read_tokens, h.cache_write_tokens,
                h.task_count, h.event_count)
            IS DISTINCT FROM (EXCLUDED.input_tokens, EXCLUDED.output_tokens, EXCLUDED.cache_read_tokens,
                EXCLUDED.cache_write_tokens, EXCLUDED.task_count, EXCLUDED.event_count)
        RETURNING 1
    )
    SELECT (SELECT COUNT(*) FROM deleted) + (SELECT COUNT(*) FROM written) INTO v_rows;
    RETURN v_rows;
END
$$;

-- A bucket that PostgreSQL refused, or that a later release's window would.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_put_aside(
    p_bucket_hour timestamptz, p_workspace_id uuid, p_runtime_id uuid, p_agent_id uuid, p_project_id uuid,
    p_provider text, p_model text, p_sqlstate text, p_error text
)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_set_aside (
        bucket_hour, workspace_id, runtime_id, agent_id, project_id, label_digest, label_start, sqlstate, error)
    VALUES (
        p_bucket_hour, p_workspace_id, p_runtime_id, p_agent_id, p_project_id,
        public.task_usage_hourly_label_digest(p_provider, p_model), left(p_provider || '/' || p_model, 80),
        p_sqlstate, p_error)
    ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_set_aside_key
    DO UPDATE SET sqlstate = EXCLUDED.sqlstate, error = EXCLUDED.error, set_aside_at = EXCLUDED.set_aside_at;
    RAISE WARNING 'usage of agent % in the hour % is set aside: %', p_agent_id, p_bucket_hour, p_error;
END
$$;

-- The one writer of task_usage_hourly. What PostgreSQL refuses is looked for by halves, down to the
-- hour and then the bucket; that bucket is set aside and the rest goes on. Only errors that the data
-- cause: a cancel, a deadlock or a full disk ends the transaction as it should.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_range(
    p_from timestamptz, p_to timestamptz, p_by_scan boolean DEFAULT false
)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_middle timestamptz;
    v_bucket record;
    v_rows bigint := 0;
BEGIN
    DELETE FROM public.task_usage_hourly_set_aside s
    WHERE s.bucket_hour >= p_from AND s.bucket_hour < p_to;
    BEGIN
        RETURN public.rollup_task_usage_hourly_recompute(p_from, p_to, p_by_scan);
    EXCEPTION WHEN data_exception OR program_limit_exceeded OR integrity_constraint_violation THEN
        NULL;
    END;

    IF p_to - p_from > interval '1 hour' THEN
        v_middle := public.task_usage_hour_bucket(p_from + (p_to - p_from) / 2);
        RETURN public.rollup_task_usage_hourly_range(p_from, v_middle)
            + public.rollup_task_usage_hourly_range(v_middle, p_to);
    END IF;

    DELETE FROM public.task_usage_hourly h WHERE h.bucket_hour = p_from;
    FOR v_bucket IN SELECT * FROM public.task_usage_hourly_expected(p_from, p_to) LOOP
        BEGIN
            INSERT INTO public.task_usage_hourly (
                bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, input_tokens,
                output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
            VALUES (
                v_bucket.bucket_hour, v_bucket.workspace_id, v_bucket.runtime_id, v_bucket.agent_id,
                v_bucket.project_id, v_bucket.provider, v_bucket.model, v_bucket.input_tokens,
                v_bucket.output_tokens, v_bucket.cache_read_tokens, v_bucket.cache_write_tokens,
                v_bucket.task_count, v_bucket.event_count);
            v_rows := v_rows + 1;
        EXCEPTION WHEN data_exception OR program_limit_exceeded OR integrity_constraint_violation THEN
            PERFORM public.rollup_task_usage_hourly_put_aside(
                v_bucket.bucket_hour, v_bucket.workspace_id, v_bucket.runtime_id, v_bucket.agent_id,
                v_bucket.project_id, v_bucket.provider, v_bucket.model, SQLSTATE, SQLERRM);
        END;
    END LOOP;
    RETURN v_rows;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_range(timestamptz, timestamptz, boolean) IS
    'Make every hour in [p_from, p_to) equal to its raw usage; returns rows written and deleted. The caller holds advisory lock 4246.';

-- The Go release's window filed usage dated -infinity, 44 BC or 20250 too. No client reads such an hour, and
-- no window of ours would come for it.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_remove_undated()
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_hours text;
    v_rows bigint;
BEGIN
    WITH removed AS (
        DELETE FROM public.task_usage_hourly h
        WHERE h.bucket_hour < '0001-01-01 00:00:00+00' OR h.bucket_hour >= '9999-01-01 00:00:00+00'
        RETURNING h.bucket_hour
    )
    SELECT COUNT(*), string_agg(DISTINCT r.bucket_hour::text, ', ') INTO v_rows, v_hours FROM removed r;
    IF v_rows > 0 THEN
        RAISE WARNING '% buckets dated outside years 1-9998 are removed: %', v_rows, left(v_hours, 200);
    END IF;
    RETURN v_rows;
END
$$;

-- Recomputes hours, neighbours melted into one range: one statement, whose cost is its rows. With a deadline
-- a range is a day at most; hours that it leaves no time for are queued again, by name.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_hours(
    p_hours timestamptz[], p_deadline timestamptz DEFAULT 'infinity'
)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_range tstzrange;
    v_begun boolean := false;
    v_rows bigint := 0;
BEGIN
    FOR v_range IN
        SELECT unnest(range_agg(tstzrange(h, h + interval '1 hour'))) FROM unnest(p_hours) AS h
        WHERE public.task_usage_hourly_dated(h)
        GROUP BY CASE WHEN isfinite(p_deadline) THEN date_bin('1 day', h, '0001-01-01 00:00:00+00') END
        ORDER BY 1
    LOOP
        IF v_begun AND clock_timestamp() >= p_deadline THEN
            INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)
            SELECT h FROM unnest(p_hours) AS h
            WHERE h >= lower(v_range) AND public.task_usage_hourly_dated(h);
            EXIT;
        END IF;
        v_rows := v_rows + public.rollup_task_usage_hourly_range(lower(v_range), upper(v_range));
        v_begun := true;
    END LOOP;
    RETURN v_rows;
END
$$;

-- Leaves a mark that a writer with an older snapshot runs into.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_touch()
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    INSERT INTO public.task_usage_hourly_rollup_state AS s (id) VALUES (1)
    ON CONFLICT (id) DO UPDATE SET last_run_rows = s.last_run_rows
$$;
