-- 102, part 50_tick: keep the rollup current: drain the queues, recompute, move the watermark.

-- Takes what is queued out of the private queue. Only for a caller that, in the same transaction and
-- in a later statement, recomputes it or queues it elsewhere.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_drain()
RETURNS public.task_usage_hourly_invalidation[] LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH drained AS (
        DELETE FROM public.task_usage_hourly_invalidation v
        WHERE v.ctid = ANY (ARRAY(
            SELECT q.ctid FROM public.task_usage_hourly_invalidation q FOR UPDATE SKIP LOCKED))
        RETURNING v.bucket_hour, v.task_id, v.issue_id, v.agent_id
    ), named AS (
        SELECT DISTINCT bucket_hour, task_id, issue_id, agent_id FROM drained
    )
    SELECT array_agg(ROW(bucket_hour, task_id, issue_id, agent_id, NULL)::public.task_usage_hourly_invalidation)
    FROM named
$$;

-- Drain first, recompute after: a later statement sees at least what the queue told, so a row leaves
-- the queue only together with its effect, at any isolation level.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz)
RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_deadline CONSTANT timestamptz := clock_timestamp() + interval '5 seconds';
    v_queued public.task_usage_hourly_invalidation[];
    v_dirty timestamptz[];
    v_range tstzrange;
    v_rows bigint := 0;
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

    v_queued := public.rollup_task_usage_hourly_drain();
    WITH drained AS (
        DELETE FROM public.task_usage_hourly_dirty v
        WHERE v.ctid = ANY (ARRAY(
            SELECT q.ctid FROM public.task_usage_hourly_dirty q FOR UPDATE SKIP LOCKED))
        RETURNING v.bucket_hour
    )
    SELECT array_agg(DISTINCT d.bucket_hour) INTO v_dirty FROM drained d;

    -- Neighbouring hours melt into one range; each range is one statement whose cost is its rows.
    FOR v_range IN
        WITH touched (hour) AS (
            SELECT public.task_usage_hourly_invalidated_hours(v_queued)
            UNION
            SELECT public.task_usage_hour_bucket(unnest(v_dirty))
            UNION
            SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
            WHERE tu.updated_at >= p_from AND tu.updated_at < p_to
            UNION
            SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
            WHERE tu.updated_at IS NULL AND tu.created_at >= p_from AND tu.created_at < p_to
        )
        SELECT unnest(range_agg(tstzrange(t.hour, t.hour + interval '1 hour'))) FROM touched t
        WHERE public.task_usage_hourly_dated(t.hour)
    LOOP
        v_rows := v_rows + public.rollup_task_usage_hourly_range(lower(v_range), upper(v_range));
    END LOOP;
    IF v_rows > 0 THEN
        PERFORM public.rollup_task_usage_hourly_touch();
    END IF;
    RETURN v_rows;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_window(timestamptz, timestamptz) IS
    'Recompute every hour touched by an event in [p_from, p_to) or queued; returns rows written and deleted. Takes advisory lock 4246 until commit and leaves the watermark alone.';

-- The tick. The lock belongs to the transaction: no cancel, error or pooled connection can keep it.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly()
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_started CONSTANT timestamptz := clock_timestamp();
    v_day CONSTANT interval := interval '24 hours';
    v_from timestamptz; v_to timestamptz; v_next timestamptz;
    v_rows bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4246) THEN
        RETURN 0;
    END IF;
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
    IF v_from > v_started THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('the watermark of the hourly rollup lies in the future: %s', v_from),
            HINT = 'UPDATE public.task_usage_hourly_rollup_state SET watermark_at = ''epoch'' WHERE id = 1; and backfill again.';
    END IF;

    v_to := public.task_usage_hourly_horizon();
    SELECT LEAST(
        (SELECT MIN(updated_at) FROM public.task_usage WHERE updated_at >= v_from),
        (SELECT MIN(created_at) FROM public.task_usage WHERE updated_at IS NULL AND created_at >= v_from))
    INTO v_next;
    -- At most a day of events a tick; years without any cost one. LEAST passes over NULL.
    v_to := LEAST(v_to, CASE WHEN v_next >= v_to THEN NULL
                             WHEN v_next > v_from + v_day THEN v_next + v_day
                             WHEN v_next IS NOT NULL THEN v_from + v_day END);
    v_to := GREATEST(v_to, v_from);

    v_rows := public.rollup_task_usage_hourly_window(v_from, v_to);
    PERFORM public.prune_task_usage_hourly_dirty();
    UPDATE public.task_usage_hourly_rollup_state SET
        watermark_at = v_to, last_run_started_at = v_started,
        last_run_finished_at = clock_timestamp(), last_run_rows = v_rows, last_error = NULL
    WHERE id = 1;
    RETURN v_rows;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly() IS
    'One tick: roll up at most a day of events below the horizon and everything queued, and move the watermark. Returns rows changed, 0 when another session holds advisory lock 4246.';
