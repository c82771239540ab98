-- 102, part 30_clock: how far time is safe to roll up, and how far behind that the rollup is.

-- Transactions that may have written usage whose time is their start and that nobody else can see yet. A
-- writer older than four minutes queues what it writes (70_triggers), so only one that has written before
-- that age matters, and that one holds its lock on task_usage until it ends: to read (pg_dump), or to be
-- idle, holds nothing back. Where those triggers are missing or switched off, every open transaction of this
-- database counts. `began` is NULL for a prepared transaction, and for a session whose start this role may
-- not see. A process without a role (autovacuum) never writes usage.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_open_writers()
RETURNS TABLE (pid int, virtualtransaction text, began timestamptz)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH here AS (
        SELECT d.oid, (
            SELECT COUNT(*) = 1 FROM pg_trigger t
            WHERE t.tgrelid = 'public.task_usage'::regclass AND t.tgname = 'trg_tu_dirty_hourly_write'
                AND t.tgenabled = 'A') AS queue_themselves
        FROM pg_database d WHERE d.datname = current_database()
    )
    SELECT l.pid, l.virtualtransaction, s.xact_start
    FROM here h
    JOIN pg_locks l ON l.database = h.oid AND l.locktype = 'relation'
        AND l.relation = 'public.task_usage'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
        AND l.pid IS DISTINCT FROM pg_backend_pid()
    LEFT JOIN pg_stat_activity s ON s.pid = l.pid
    UNION
    SELECT s.pid, l.virtualtransaction, s.xact_start
    FROM here h
    JOIN pg_stat_activity s ON s.datid = h.oid AND s.usesysid IS NOT NULL AND s.pid <> pg_backend_pid()
    LEFT JOIN pg_locks l ON l.pid = s.pid AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock'
    WHERE NOT h.queue_themselves AND num_nonnulls(l.pid, s.xact_start) > 0
$$;

-- updated_at = now() is the writer's transaction start, so "five minutes ago" alone is no bound: a writer
-- that wrote early and is still open commits below it. The horizon is a time that none of these has started
-- before. Those whose start is not to be seen are waited for, by their virtual transaction; -infinity
-- when one of them outlasts p_wait: a lower horizon is always safe. The five minutes are the four at which
-- writers begin to queue, and one for the distance between two looks at a clock.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_horizon(p_wait interval DEFAULT '2 seconds')
RETURNS timestamptz LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_start CONSTANT timestamptz := clock_timestamp();
    v_oldest timestamptz;
    v_waited text[];
    v_hidden text[];
BEGIN
    LOOP
        -- Session reports are cached for the length of a transaction otherwise.
        PERFORM pg_stat_clear_snapshot();
        SELECT LEAST(v_oldest, MIN(w.began)),
            COALESCE(array_agg(w.virtualtransaction) FILTER (WHERE w.began IS NULL), '{}')
        INTO v_oldest, v_hidden
        FROM public.task_usage_hourly_open_writers() w;
        -- Only what was there at the start can have begun before it.
        v_waited := CASE WHEN v_waited IS NULL THEN v_hidden ELSE ARRAY(
            SELECT unnest(v_waited) INTERSECT SELECT unnest(v_hidden)) END;
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
    'A time no transaction began before that has written usage and is open; -infinity when none can be given. Read it before the snapshot that relies on it.';

-- Who keeps the horizon from being five minutes old, and how to end that; no row when nobody does.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_held_back_by()
RETURNS TABLE (who text, hint text) LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH held AS (
        SELECT w.began,
            format('pid %s (%s, %s, %s%s)', a.pid, COALESCE(a.usename, 'no role'),
                COALESCE(NULLIF(a.application_name, ''), 'no application name'),
                COALESCE(a.state, 'state not visible to this role'),
                ' since ' || to_char(w.began, 'YYYY-MM-DD HH24:MI:SS TZ')) AS who,
            format('SELECT pg_terminate_backend(%s)', a.pid) || CASE WHEN w.began IS NULL THEN
                format('; or GRANT pg_read_all_stats TO %I', current_user) ELSE '' END AS ended_by
        FROM public.task_usage_hourly_open_writers() w JOIN pg_stat_activity a ON a.pid = w.pid
        WHERE w.began IS NULL OR w.began < clock_timestamp() - interval '5 minutes'
        UNION
        SELECT NULL, format('prepared transaction %L (%s, since %s)', p.gid, p.owner,
                to_char(p.prepared, 'YYYY-MM-DD HH24:MI:SS TZ')),
            format('ROLLBACK PREPARED %1$L or COMMIT PREPARED %1$L', p.gid)
        FROM public.task_usage_hourly_open_writers() w
        JOIN pg_locks l ON l.locktype = 'transactionid' AND l.virtualtransaction = w.virtualtransaction
        JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
        WHERE w.pid IS NULL AND l.pid IS NULL AND p.database = current_database()
        ORDER BY 1 NULLS FIRST, 2 LIMIT 3
    )
    SELECT string_agg(h.who, ', '), 'wait for that session, or end it: ' || string_agg(h.ended_by, '; ')
    FROM held h HAVING COUNT(*) > 0
$$;

COMMENT ON FUNCTION public.task_usage_hourly_held_back_by() IS
    'Open transactions, three at most, that the horizon cannot pass, and the statements that end them.';

-- The newest event that has happened: a row dated in the future counts as now, or it would hold the
-- guard of 103 for ever. Three index look-ups.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_latest_event()
RETURNS timestamptz LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT LEAST(now(), e.latest)
    FROM (SELECT GREATEST(
        (SELECT MAX(updated_at) FROM public.task_usage),
        (SELECT MAX(created_at) FROM public.task_usage WHERE updated_at IS NULL)) AS latest) AS e
    -- Without usage NULL, which LEAST would pass over; usage dated before time itself is no newer.
    WHERE e.latest > '-infinity'
$$;

-- Lag of the data, not of the last run: a tick that ran a minute ago and stands at 1970 is behind.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_rollup_lag_seconds()
RETURNS double precision LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT GREATEST(0, COALESCE(EXTRACT(EPOCH FROM
        public.task_usage_hourly_latest_event() - COALESCE(
            (SELECT watermark_at FROM public.task_usage_hourly_rollup_state
             WHERE id = 1 AND isfinite(watermark_at)),
            '1970-01-01 00:00:00+00')
    ), 0))::double precision
$$;

COMMENT ON FUNCTION public.task_usage_hourly_rollup_lag_seconds() IS
    'Seconds by which the watermark trails the newest usage event; 0 when there is none.';
