-- 102, part 60_backfill: roll a history up: plan, slice by slice, finish. Each is called in a transaction
-- of its own by a session that holds advisory lock 4246.

-- A backfill's plan: one row a slice, hour-aligned and disjoint, so that several sessions can walk at
-- once. Rows exist only while a backfill is unfinished; they are what makes a killed one resume.
CREATE TABLE IF NOT EXISTS public.task_usage_hourly_backfill (
    from_hour timestamptz PRIMARY KEY,
    to_hour timestamptz NOT NULL,
    usage_rows bigint NOT NULL,
    horizon_at timestamptz NOT NULL,
    walked_at timestamptz,
    CONSTRAINT ck_task_usage_hourly_backfill_range CHECK (from_hour < to_hour)
);

COMMENT ON TABLE public.task_usage_hourly_backfill IS
    'Slices of an unfinished backfill, walked and still to walk; horizon_at is where the watermark goes when all are walked.';

-- What an operator left without buckets, knowing it: `usage-rollup backfill --months-back --force-partial`.
-- The oracle and 103's guard do not look here; only a clean comparison empties it.
CREATE TABLE IF NOT EXISTS public.task_usage_hourly_left_out (
    before_hour timestamptz NOT NULL,
    acknowledged_at timestamptz NOT NULL DEFAULT now(),
    acknowledged_by text NOT NULL DEFAULT session_user,
    id smallint PRIMARY KEY DEFAULT 1 CONSTRAINT ck_task_usage_hourly_left_out_one_row CHECK (id = 1)
);

COMMENT ON TABLE public.task_usage_hourly_left_out IS
    'At most one row: usage created before before_hour was left out of the hourly rollup on purpose.';

-- Building these four at once over the finished rows costs a third of keeping them up row by row. When
-- none is missing no lock is taken.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_build_indexes()
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF num_nonnulls(
        to_regclass('public.idx_task_usage_hourly_workspace_time'),
        to_regclass('public.idx_task_usage_hourly_runtime_time'),
        to_regclass('public.idx_task_usage_hourly_workspace_agent_time'),
        to_regclass('public.idx_task_usage_hourly_workspace_project_time')) = 4
    THEN
        RETURN;
    END IF;
    CREATE INDEX IF NOT EXISTS idx_task_usage_hourly_workspace_time
    ON public.task_usage_hourly (workspace_id, bucket_hour DESC);
    CREATE INDEX IF NOT EXISTS idx_task_usage_hourly_runtime_time
    ON public.task_usage_hourly (runtime_id, bucket_hour DESC);
    CREATE INDEX IF NOT EXISTS idx_task_usage_hourly_workspace_agent_time
    ON public.task_usage_hourly (workspace_id, agent_id, bucket_hour DESC);
    CREATE INDEX IF NOT EXISTS idx_task_usage_hourly_workspace_project_time
    ON public.task_usage_hourly (workspace_id, project_id, bucket_hour DESC) WHERE project_id IS NOT NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_plan(
    p_horizon timestamptz, p_rows bigint, p_from timestamptz DEFAULT '-infinity'
)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_unwalked CONSTANT tstzmultirange := public.task_usage_hourly_unwalked();
    v_left_out CONSTANT tstzmultirange := v_unwalked * tstzmultirange(tstzrange(NULL, p_from));
BEGIN
    DELETE FROM public.task_usage_hourly_backfill;
    INSERT INTO public.task_usage_hourly_backfill (from_hour, to_hour, usage_rows, horizon_at)
    SELECT s.from_hour, s.to_hour, s.usage_rows, p_horizon
    FROM public.task_usage_hourly_slices(v_unwalked - v_left_out, p_rows) s;

    -- No event between watermark and horizon: the truth is the horizon, without a walk.
    IF NOT FOUND THEN
        UPDATE public.task_usage_hourly_rollup_state SET watermark_at = GREATEST(watermark_at, p_horizon)
        WHERE id = 1;
        PERFORM public.rollup_task_usage_hourly_build_indexes();
    -- A long walk into an empty table, which no dashboard reads: the last slice builds its indexes, if it may.
    ELSIF NOT EXISTS (SELECT FROM public.task_usage_hourly) AND has_schema_privilege('public', 'CREATE')
        AND (SELECT SUM(b.usage_rows) > LEAST(p_rows, 50000) FROM public.task_usage_hourly_backfill b)
    THEN
        PERFORM set_config('lock_timeout', '500ms', true);
        BEGIN
            DROP INDEX IF EXISTS public.idx_task_usage_hourly_workspace_time,
                public.idx_task_usage_hourly_runtime_time,
                public.idx_task_usage_hourly_workspace_agent_time,
                public.idx_task_usage_hourly_workspace_project_time;
        EXCEPTION WHEN lock_not_available THEN
            NULL; -- Somebody reads it after all: they keep their indexes.
        END;
    END IF;

    -- Said in the transaction that makes it so.
    IF NOT isempty(v_left_out) THEN
        INSERT INTO public.task_usage_hourly_left_out (before_hour) VALUES (p_from)
        ON CONFLICT (id) DO UPDATE SET before_hour = EXCLUDED.before_hour,
            acknowledged_at = EXCLUDED.acknowledged_at, acknowledged_by = EXCLUDED.acknowledged_by;
    END IF;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_plan(timestamptz, bigint, timestamptz) IS
    'Plan a backfill that may move the watermark to p_horizon, in slices of at most p_rows usage rows; what was created before p_from is left out, and noted.';

-- Plans what the oracle finds wrong, or what several sessions have found with its help, by the hour. The watermark
-- stays: a difference below it is what makes it untrue.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_plan_repair(
    p_rows bigint, p_hours timestamptz[] DEFAULT NULL
)
RETURNS bigint LANGUAGE sql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH differing AS (
        -- Whole hours, whatever somebody has stored.
        SELECT DISTINCT public.task_usage_hour_bucket(h) AS hour FROM unnest(COALESCE(p_hours, ARRAY(
            SELECT public.task_usage_hourly_differences(timestamptz '-infinity', timestamptz 'infinity', false)))) AS h
    ), planned AS (
        INSERT INTO public.task_usage_hourly_backfill AS b (from_hour, to_hour, usage_rows, horizon_at)
        SELECT s.from_hour, s.to_hour, s.usage_rows,
            (SELECT watermark_at FROM public.task_usage_hourly_rollup_state WHERE id = 1)
        FROM public.task_usage_hourly_slices(
            (SELECT range_agg(tstzrange(hour, hour + interval '1 hour')) FROM differing), p_rows) s
        -- Where an unfinished walk has a slice that begins at the same hour, that one is walked again.
        ON CONFLICT (from_hour) DO UPDATE
        SET walked_at = NULL, to_hour = GREATEST(b.to_hour, EXCLUDED.to_hour)
    )
    SELECT COUNT(*) FROM differing
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_plan_repair(bigint, timestamptz []) IS
    'Plan the recompute of p_hours, or of every hour that differs from raw usage; returns their number.';

-- One slice that nobody else is walking, marked as walked in the same transaction. No row when there is
-- none.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_slice()
RETURNS TABLE (slice_from timestamptz, slice_to timestamptz, usage_rows bigint, buckets bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    -- Losing the last slices in a crash of the server loses their marks too: nothing to wait for.
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT b.from_hour, b.to_hour, b.usage_rows INTO slice_from, slice_to, usage_rows
    FROM public.task_usage_hourly_backfill b
    WHERE b.walked_at IS NULL ORDER BY b.from_hour LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        buckets := public.rollup_task_usage_hourly_range(
            slice_from, slice_to, public.task_usage_hourly_scan_pays(usage_rows));
        PERFORM public.rollup_task_usage_hourly_touch();
        UPDATE public.task_usage_hourly_backfill b SET walked_at = clock_timestamp()
        WHERE b.from_hour = slice_from;
        RETURN NEXT;
    END IF;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_slice() IS
    'Roll up the next slice of a planned backfill and mark it walked, in the caller''s transaction.';

-- Moves the watermark to the horizon the plan was made for, once every slice is walked.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_finish()
RETURNS timestamptz LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_watermark timestamptz;
BEGIN
    IF EXISTS (SELECT FROM public.task_usage_hourly_backfill b WHERE b.walked_at IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'the backfill of task_usage_hourly is not finished';
    END IF;
    PERFORM public.rollup_task_usage_hourly_build_indexes();
    WITH done AS (DELETE FROM public.task_usage_hourly_backfill RETURNING horizon_at)
    UPDATE public.task_usage_hourly_rollup_state s
    SET watermark_at = GREATEST(s.watermark_at, (SELECT MIN(horizon_at) FROM done))
    WHERE s.id = 1 RETURNING s.watermark_at INTO v_watermark;
    RETURN v_watermark;
END
$$;
