-- 102, part 30_clock: how far time is safe to roll up, and how far behind that the rollup is.

-- updated_at = now() is the writer's transaction start, so "five minutes ago" alone is no bound: a
-- writer open for longer commits below it. The horizon is a time that no transaction which may still
-- write has started before. Sessions whose start this role may not see are waited for, by their
-- virtual transaction; prepared transactions count when they hold task_usage in a writer's mode,
-- since they can do nothing more. -infinity when one of these outlasts p_wait: a lower horizon is
-- always safe. The five minutes cover the instant between a transaction's start and its report.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_horizon(p_wait interval DEFAULT '2 seconds')
RETURNS timestamptz LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_start CONSTANT timestamptz := clock_timestamp();
    v_oldest timestamptz;
    v_waited text[];
    v_blocking text[];
BEGIN
    LOOP
        -- Session reports are cached for the length of a transaction otherwise.
        PERFORM pg_stat_clear_snapshot();
        SELECT
            LEAST(v_oldest, MIN(s.xact_start)),
            array_agg(l.virtualtransaction) FILTER (WHERE l.pid IS NOT NULL AND s.xact_start IS NULL)
        INTO v_oldest, v_blocking
        FROM pg_stat_activity s
        LEFT JOIN pg_locks l ON l.pid = s.pid AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock'
        -- A process without a role (autovacuum) never writes usage.
        WHERE s.datid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
            AND s.pid <> pg_backend_pid() AND s.usesysid IS NOT NULL;

        v_blocking := COALESCE(v_blocking, '{}') || ARRAY(
            SELECT l.virtualtransaction FROM pg_locks l
            WHERE l.pid IS NULL AND l.locktype = 'relation'
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                AND l.relation = 'public.task_usage'::regclass
                AND l.mode NOT IN ('AccessShareLock', 'RowShareLock'));
        -- Only what was there at the start can have begun before it.
        v_waited := CASE WHEN v_waited IS NULL THEN v_blocking ELSE ARRAY(
            SELECT unnest(v_waited) INTERSECT SELECT unnest(v_blocking)) END;
        EXIT WHEN cardinality(v_waited) = 0;
        IF clock_timestamp() >= v_start + p_wait THEN
            RETURN '-infinity';
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN LEAST(v_start - interval '5 minutes', v_oldest);
END
$$;

COMMENT ON FUNCTION public.task_usage_hourly_horizon(interval) IS
    'A time no transaction that may still write usage began before; -infinity when none can be given. Read it before the snapshot that relies on it.';

-- The newest event that has happened: a row dated in the future counts as now, or it would hold the
-- guard of 103 for ever. Three index look-ups.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_latest_event()
RETURNS timestamptz LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT LEAST(now(), e.latest)
    FROM (SELECT GREATEST(
        (SELECT MAX(updated_at) FROM public.task_usage),
        (SELECT MAX(created_at) FROM public.task_usage WHERE updated_at IS NULL)) AS latest) AS e
    -- Without usage NULL, which LEAST would pass over; usage dated before time itself is no newer.
    WHERE e.latest > '-infinity'
$$;

-- Lag of the data, not of the last run: a tick that ran a minute ago and stands at 1970 is behind.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_rollup_lag_seconds()
RETURNS double precision LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT GREATEST(0, COALESCE(EXTRACT(EPOCH FROM
        public.task_usage_hourly_latest_event() - COALESCE(
            (SELECT watermark_at FROM public.task_usage_hourly_rollup_state
             WHERE id = 1 AND isfinite(watermark_at)),
            '1970-01-01 00:00:00+00')
    ), 0))::double precision
$$;

COMMENT ON FUNCTION public.task_usage_hourly_rollup_lag_seconds() IS
    'Seconds by which the watermark trails the newest usage event; 0 when there is none.';
