-- 102, part 50_tick: keep the rollup current: drain the queues, recompute, move the watermark.

-- Takes rows out of the private queue, all or p_limit of them. Only for a caller that, in the same transaction
-- and in a later statement, recomputes what they name or queues it elsewhere.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_drain(p_limit bigint DEFAULT NULL)
RETURNS public.task_usage_hourly_invalidation[] LANGUAGE sql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH drained AS (
        DELETE FROM public.task_usage_hourly_invalidation v
        WHERE v.ctid = ANY (ARRAY(
            SELECT q.ctid FROM public.task_usage_hourly_invalidation q LIMIT p_limit FOR UPDATE SKIP LOCKED))
        RETURNING v.bucket_hour, v.task_id, v.issue_id, v.agent_id
    ), named AS (
        SELECT DISTINCT bucket_hour, task_id, issue_id, agent_id FROM drained
    )
    SELECT array_agg(ROW(bucket_hour, task_id, issue_id, agent_id, NULL)::public.task_usage_hourly_invalidation)
    FROM named
$$;

-- The same of the public queue: the hours of its keys.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_drain_public(p_limit bigint DEFAULT NULL)
RETURNS timestamptz[] LANGUAGE sql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH drained AS (
        DELETE FROM public.task_usage_hourly_dirty v
        WHERE v.ctid = ANY (ARRAY(
            SELECT q.ctid FROM public.task_usage_hourly_dirty q LIMIT p_limit FOR UPDATE SKIP LOCKED))
        RETURNING v.bucket_hour
    )
    SELECT array_agg(DISTINCT public.task_usage_hour_bucket(d.bucket_hour)) FROM drained d
$$;

-- Drain first, recompute after: a later statement sees at least what the queue told, so a row leaves
-- the queue only together with its effect, at any isolation level. With a deadline the queues are drained in
-- portions, and no further one is begun after it; without one, once and whole. The caller holds 4246.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_settle(
    p_from timestamptz, p_to timestamptz, p_deadline timestamptz DEFAULT 'infinity'
)
RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_portion CONSTANT bigint := CASE WHEN isfinite(p_deadline) THEN 50000 END;
    v_queued public.task_usage_hourly_invalidation[];
    v_dirty timestamptz[];
    v_hours timestamptz[];
    v_from timestamptz := p_from;
    v_rows bigint := 0;
BEGIN
    LOOP
        v_queued := public.rollup_task_usage_hourly_drain(v_portion);
        v_dirty := public.rollup_task_usage_hourly_drain_public(v_portion);
        v_hours := ARRAY(
            SELECT public.task_usage_hourly_invalidated_hours(v_queued)
            UNION
            SELECT unnest(v_dirty)
            UNION
            SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
            WHERE tu.updated_at >= v_from AND tu.updated_at < p_to
            UNION
            SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
            WHERE tu.updated_at IS NULL AND tu.created_at >= v_from AND tu.created_at < p_to);
        v_rows := v_rows + public.rollup_task_usage_hourly_hours(v_hours, p_deadline);
        EXIT WHEN NOT isfinite(p_deadline) OR clock_timestamp() >= p_deadline
            OR num_nonnulls(v_queued, v_dirty) = 0;
        -- What time has told is done.
        v_from := p_to;
    END LOOP;
    RETURN v_rows + public.rollup_task_usage_hourly_remove_undated();
END
$$;

CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_deadline CONSTANT timestamptz := clock_timestamp() + interval '5 seconds';
    v_rows bigint;
BEGIN
    -- Two windows at once would let the older snapshot win. A caller that holds 4246 on another
    -- session would wait for itself, hence the deadline.
    WHILE NOT pg_try_advisory_xact_lock(4246) LOOP
        IF clock_timestamp() >= v_deadline THEN
            RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                MESSAGE = 'task_usage_hourly is being written by another session (advisory lock 4246)',
                HINT = 'Call the window on the session that holds the lock, or try again when it is free.';
        END IF;
        PERFORM pg_sleep(0.05);
    END LOOP;

    -- A snapshot of the whole transaction may be older than what the last writer left: then this fails
    -- with a serialization error, to be tried again, because every writer touches the same row.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM public.rollup_task_usage_hourly_touch();
    END IF;
    v_rows := public.rollup_task_usage_hourly_settle(p_from, p_to, timestamptz 'infinity');
    IF v_rows > 0 THEN
        PERFORM public.rollup_task_usage_hourly_touch();
    END IF;
    RETURN v_rows;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_window(timestamptz, timestamptz) IS
    'Recompute every hour touched by an event in [p_from, p_to) or queued; returns rows written and deleted. Takes advisory lock 4246 until commit and leaves the watermark alone.';

-- When a tick stops beginning anything: five seconds after its statement began, because workspace deletion waits
-- ten for 4246, or what usage_rollup.tick_budget says; and half of what the role's own timeouts allow, so
-- that none of them makes every tick begin again with the same.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_tick_deadline()
RETURNS timestamptz LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT statement_timestamp() + LEAST(
        COALESCE(NULLIF(current_setting('usage_rollup.tick_budget', true), '')::interval, '5 seconds'),
        NULLIF(current_setting('statement_timeout')::interval, '0') / 2,
        NULLIF(current_setting('transaction_timeout', true)::interval, '0') / 2)
$$;

-- Whether the window is this one, or a later release's, which has columns that only that one knows.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_window_is_ours()
RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT p.prosrc LIKE '%rollup_task_usage_hourly_settle%' FROM pg_proc p
    WHERE p.oid = 'public.rollup_task_usage_hourly_window(timestamptz,timestamptz)'::regprocedure
$$;

-- The tick. The lock belongs to the transaction: no cancel, error or pooled connection can keep it.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly()
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_started CONSTANT timestamptz := clock_timestamp();
    v_day CONSTANT interval := interval '24 hours';
    v_lock_timeout CONSTANT text := current_setting('lock_timeout');
    v_from timestamptz; v_to timestamptz; v_next timestamptz;
    v_held_back_by text;
    v_rows bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4246) THEN
        RETURN 0;
    END IF;
    -- Workspace deletion waits ten seconds for that lock, so nothing here waits longer than five for another one.
    PERFORM set_config('lock_timeout', ceil(EXTRACT(EPOCH FROM LEAST(
        NULLIF(v_lock_timeout::interval, '0'), interval '5 seconds')) * 1000)::text, true);
    -- The horizon must be older than the snapshot it vouches for; a snapshot of the whole
    -- transaction was taken before anything here could be read.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_transaction_state',
            MESSAGE = format('the hourly tick needs READ COMMITTED, this transaction is %s',
                upper(current_setting('transaction_isolation'))),
            HINT = 'SET default_transaction_isolation = ''read committed'' for the role that runs the tick.';
    END IF;

    INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO NOTHING;
    SELECT watermark_at INTO STRICT v_from FROM public.task_usage_hourly_rollup_state WHERE id = 1;
    IF v_from > clock_timestamp() THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('the watermark of the hourly rollup lies in the future: %s', v_from),
            HINT = 'UPDATE public.task_usage_hourly_rollup_state SET watermark_at = ''epoch'' WHERE id = 1; and backfill again.';
    END IF;

    v_to := public.task_usage_hourly_horizon(interval '2 seconds');
    IF v_to < v_started - interval '10 minutes' THEN
        SELECT format('the watermark is held back by %s; %s', b.who, b.hint) INTO v_held_back_by
        FROM public.task_usage_hourly_held_back_by() b;
    END IF;
    SELECT LEAST(
        (SELECT MIN(updated_at) FROM public.task_usage WHERE updated_at >= v_from),
        (SELECT MIN(created_at) FROM public.task_usage WHERE updated_at IS NULL AND created_at >= v_from))
    INTO v_next;
    -- At most a day of events a tick; years without any cost one. LEAST passes over NULL.
    v_to := LEAST(v_to, CASE WHEN v_next >= v_to THEN NULL
                             WHEN v_next > v_from + v_day THEN v_next + v_day
                             WHEN v_next IS NOT NULL THEN v_from + v_day END);
    v_to := GREATEST(v_to, v_from);

    IF public.task_usage_hourly_window_is_ours() THEN
        v_rows := public.rollup_task_usage_hourly_settle(v_from, v_to, public.task_usage_hourly_tick_deadline());
    ELSE
        -- A later release replaces the window first and, some releases on, this tick. Its text names no schema.
        PERFORM set_config('search_path', 'pg_catalog, public, pg_temp', true);
        v_rows := public.rollup_task_usage_hourly_window(v_from, v_to);
        PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
    END IF;
    PERFORM public.prune_task_usage_hourly_dirty(interval '7 days');
    UPDATE public.task_usage_hourly_rollup_state SET
        -- A clock set back meanwhile: somebody may have written below the horizon and seen no watermark
        -- above it. The next tick looks at the same stretch again.
        watermark_at = CASE WHEN clock_timestamp() < v_started THEN v_from ELSE v_to END,
        last_run_started_at = v_started, last_run_finished_at = clock_timestamp(), last_run_rows = v_rows,
        last_error = v_held_back_by
    WHERE id = 1;
    PERFORM set_config('lock_timeout', v_lock_timeout, true);
    RETURN v_rows;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly() IS
    'One tick: roll up at most a day of events below the horizon and what is queued, as far as its budget goes, and move the watermark: what is left is queued. Returns rows changed, 0 when another session holds advisory lock 4246.';
