-- 102_task_usage_hourly_pipeline: what keeps task_usage_hourly equal to the aggregate of raw usage.
--
-- Why now: the tables of 101 exist and the history can be rolled up while a v0.3.4 server runs.
-- Assumes: 101, ours or the Go release's. The Go release's 102 may be installed: everything here
--   replaces it (CREATE OR REPLACE), which is how a database stuck at 103 receives this pipeline.
-- Locks: SHARE ROW EXCLUSIVE on agent, agent_task_queue, issue and task_usage for CREATE TRIGGER,
--   ACCESS EXCLUSIVE on the hourly tables. The first also waits for every open writer, so each row of
--   task_usage either was committed before the triggers existed, and any later snapshot sees it, or
--   passed through them.
-- Undone by: 102_task_usage_hourly_pipeline.down.sql.
--
-- How changes are seen. A row whose event, COALESCE(updated_at, created_at), is its transaction's
-- now() is found by time: the watermark never passes the horizon, which no open transaction has
-- passed. Every other change (moves, deletions, rows with another timestamp) is written down by a
-- trigger in the changing transaction itself, in task_usage_hourly_invalidation.
--
-- How changes are applied. Whole hours are recomputed from raw rows, never single keys, so what was
-- moved or deleted leaves no remains and nobody needs to know the old key.

-- ---------------------------------------------------------------------------------------------
-- Tables of the pipeline
-- ---------------------------------------------------------------------------------------------

-- Append-only and without a unique key: two writers never wait for each other here. A row names
-- what changed, not the buckets: those are looked up when it is drained, after the change committed.
CREATE TABLE IF NOT EXISTS public.task_usage_hourly_invalidation (
    bucket_hour timestamptz,
    task_id uuid,
    issue_id uuid,
    agent_id uuid,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_task_usage_hourly_invalidation_subject
    CHECK (num_nonnulls(bucket_hour, task_id, issue_id, agent_id) <= 1)
);

COMMENT ON TABLE public.task_usage_hourly_invalidation IS
    'Private queue: an hour, task, issue or agent whose buckets must be recomputed; a row that names none means every hour.';

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

-- Buckets that could not be written, so that one absurd row stops nobody else: the bucket's key (model
-- and provider by digest, since their length may be the reason), and why. Recomputing an hour begins
-- with taking its rows out, so that a bucket leaves when it is mended.
CREATE TABLE IF NOT EXISTS public.task_usage_hourly_set_aside (
    bucket_hour timestamptz NOT NULL,
    workspace_id uuid NOT NULL,
    runtime_id uuid NOT NULL,
    agent_id uuid NOT NULL,
    project_id uuid,
    label_digest text NOT NULL,
    label_start text NOT NULL,
    sqlstate text NOT NULL,
    error text NOT NULL,
    set_aside_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_task_usage_hourly_set_aside_key UNIQUE NULLS NOT DISTINCT
    (bucket_hour, workspace_id, runtime_id, agent_id, project_id, label_digest)
);

COMMENT ON TABLE public.task_usage_hourly_set_aside IS
    'Buckets of task_usage_hourly that PostgreSQL refused, and why; label is provider and model.';

-- A table without replica identity refuses UPDATE and DELETE as soon as a publication FOR ALL TABLES
-- exists; the hourly key has a nullable column, so only FULL serves. It costs nothing unpublished.
ALTER TABLE public.task_usage_hourly REPLICA IDENTITY FULL;
ALTER TABLE public.task_usage_hourly_dirty REPLICA IDENTITY FULL;
ALTER TABLE public.task_usage_hourly_invalidation REPLICA IDENTITY FULL;
ALTER TABLE public.task_usage_hourly_set_aside REPLICA IDENTITY FULL;

-- As 101 says it: the Go release's 101 may have said something else, or nothing.
COMMENT ON TABLE public.task_usage_hourly IS
    'task_usage summed by UTC hour of created_at and seven keys. Written only under advisory lock 4246.';
COMMENT ON TABLE public.task_usage_hourly_dirty IS
    'Public queue of buckets to recompute; a row leaves it only with the transaction that recomputed its bucket.';
COMMENT ON COLUMN public.task_usage_hourly_rollup_state.watermark_at IS
    'Every event before this instant is rolled up or queued. Moves only with the work that makes it true.';

-- 101's row may be missing where it was deleted by hand; without it the pipeline is dead.
INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO NOTHING;

-- ---------------------------------------------------------------------------------------------
-- What the rollup should hold
-- ---------------------------------------------------------------------------------------------

-- Through a zone-less timestamp: exact whatever the session's TimeZone, and IMMUTABLE in truth
-- (date_trunc with a zone argument is only STABLE). Not by date_bin(), which is faster and overflows
-- where created_at may still go.
CREATE OR REPLACE FUNCTION public.task_usage_hour_bucket(ts timestamptz)
RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.date_trunc('hour', ts AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
$$;

COMMENT ON FUNCTION public.task_usage_hour_bucket(timestamptz) IS
    'The UTC hour that contains ts.';

-- Hours that the rollup stores: those that clients can read and arithmetic on timestamps can leave. An
-- infinite created_at, or one in the year 20250, belongs to none.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_dated(ts timestamptz)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ts OPERATOR(pg_catalog.>=) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
        AND ts OPERATOR(pg_catalog.<) '9999-01-01 00:00:00+00'::pg_catalog.timestamptz
$$;

COMMENT ON FUNCTION public.task_usage_hourly_dated(timestamptz) IS
    'Whether ts lies in an hour that task_usage_hourly stores: years 1 to 9998.';

-- A sum that does not fit bigint saturates: one absurd report must not stop the rest.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_sum(total numeric)
RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT GREATEST(LEAST(total, 9223372036854775807), -9223372036854775808)::pg_catalog.int8
$$;

COMMENT ON FUNCTION public.task_usage_hourly_sum(numeric) IS
    'A sum of tokens as task_usage_hourly stores it: the nearest bigint.';

-- What the rollup should hold, said in the plainest way; the oracle. No SET clause, so that the planner
-- inlines it and sees the range. A task counts once a bucket without COUNT(DISTINCT), and so without a
-- sort: the server's upsert keeps task_usage unique by (task_id, provider, model).
CREATE OR REPLACE FUNCTION public.task_usage_hourly_expected(p_from timestamptz, p_to timestamptz)
RETURNS TABLE (
    bucket_hour timestamptz, workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid,
    provider text, model text, input_tokens bigint, output_tokens bigint,
    cache_read_tokens bigint, cache_write_tokens bigint, task_count bigint, event_count bigint
)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        public.task_usage_hour_bucket(tu.created_at), a.workspace_id, q.runtime_id, q.agent_id,
        i.project_id, tu.provider, tu.model,
        public.task_usage_hourly_sum(SUM(tu.input_tokens)),
        public.task_usage_hourly_sum(SUM(tu.output_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_read_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_write_tokens)),
        COUNT(*), COUNT(*)
    FROM public.task_usage tu
    JOIN public.agent_task_queue q ON q.id = tu.task_id
    JOIN public.agent a ON a.id = q.agent_id
    LEFT JOIN public.issue i ON i.id = q.issue_id
    WHERE tu.created_at >= p_from AND tu.created_at < p_to
        AND public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id IS NOT NULL
    GROUP BY 1, 2, 3, 4, 5, 6, 7
$$;

COMMENT ON FUNCTION public.task_usage_hourly_expected(timestamptz, timestamptz) IS
    'The aggregate of raw usage created in [p_from, p_to), hour-aligned: what task_usage_hourly should hold.';

-- The hours that queued rows stand for, resolved now: call it in a statement that starts after the
-- rows were read. A row may name a task or an agent that is gone; its usage then named its own hours.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_invalidated_hours(
    p_queued public.task_usage_hourly_invalidation[]
)
RETURNS SETOF timestamptz LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT v.bucket_hour FROM unnest(p_queued) AS v WHERE v.bucket_hour IS NOT NULL
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at)
    FROM unnest(p_queued) AS v
    JOIN public.task_usage tu ON tu.task_id = v.task_id
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

-- The oracle. An hour that is queued, or holds an event at or above the watermark, is not behind
-- but pending. One statement, so one snapshot; custom plans, because the range decides the plan. A
-- full join by hash costs half of what sorting both sides does; parallel hash tables live in
-- /dev/shm, of which a container has 64 MB.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_differences(
    p_from timestamptz DEFAULT '-infinity', p_to timestamptz DEFAULT 'infinity'
)
RETURNS SETOF timestamptz LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
SET enable_hashjoin = on SET enable_mergejoin = off
SET enable_parallel_hash = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN QUERY
    SELECT DISTINCT COALESCE(e.bucket_hour, h.bucket_hour)
    FROM public.task_usage_hourly_expected(p_from, p_to) e
    FULL JOIN (
        SELECT * FROM public.task_usage_hourly WHERE bucket_hour >= p_from AND bucket_hour < p_to
    ) h ON
        (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id, e.provider, e.model)
        = (h.bucket_hour, h.workspace_id, h.runtime_id, h.agent_id, h.provider, h.model)
        -- An equality, because nothing else can be joined by hash; the comparison knows the two apart.
        AND COALESCE(e.project_id, '00000000-0000-0000-0000-000000000000')
        = COALESCE(h.project_id, '00000000-0000-0000-0000-000000000000')
    WHERE (e.project_id, e.input_tokens, e.output_tokens, e.cache_read_tokens, e.cache_write_tokens,
            e.task_count, e.event_count)
        IS DISTINCT FROM (h.project_id, h.input_tokens, h.output_tokens, h.cache_read_tokens,
            h.cache_write_tokens, h.task_count, h.event_count)
        AND NOT (h.bucket_hour IS NULL AND EXISTS (
            SELECT FROM public.task_usage_hourly_set_aside s
            WHERE (s.bucket_hour, s.workspace_id, s.runtime_id, s.agent_id)
                = (e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id)
                AND s.project_id IS NOT DISTINCT FROM e.project_id
                AND s.label_digest = md5(e.provider || '/' || e.model)))
        AND COALESCE(e.bucket_hour, h.bucket_hour) NOT IN (SELECT public.task_usage_hourly_pending_hours())
    ORDER BY 1;
END
$$;

COMMENT ON FUNCTION public.task_usage_hourly_differences(timestamptz, timestamptz) IS
    'Hours in which task_usage_hourly is not the aggregate of raw usage although nothing about them is pending.';

-- What the next windows will recompute: queued, or with an event the watermark has not passed.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_pending_hours()
RETURNS SETOF timestamptz LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_watermark timestamptz := COALESCE(
        (SELECT watermark_at FROM public.task_usage_hourly_rollup_state WHERE id = 1), '-infinity');
BEGIN
    RETURN QUERY
    SELECT public.task_usage_hourly_invalidated_hours(
        (SELECT array_agg(v) FROM public.task_usage_hourly_invalidation v))
    UNION
    SELECT public.task_usage_hour_bucket(d.bucket_hour) FROM public.task_usage_hourly_dirty d
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
    WHERE tu.updated_at >= v_watermark
    UNION
    SELECT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu
    WHERE tu.updated_at IS NULL AND tu.created_at >= v_watermark;
END
$$;

-- Two look-ups by index, at the ends of time.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_undated()
RETURNS TABLE (usage_id uuid, created_at timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT tu.id, tu.created_at FROM public.task_usage tu WHERE tu.created_at < '0001-01-01 00:00:00+00'
    UNION ALL
    SELECT tu.id, tu.created_at FROM public.task_usage tu WHERE tu.created_at >= '9999-01-01 00:00:00+00'
$$;

COMMENT ON FUNCTION public.task_usage_hourly_undated() IS
    'Usage rows that belong to no hour of the rollup, to be mended by hand.';

-- Totals by day that only the legacy rollups hold, because their raw rows are gone. Compared by
-- workspace and model, not by agent, runtime or project, whose moves the legacy rollups follow late. A
-- day of the daily rollup is the runtime's, or UTC's in rows older than migration 082: whichever raw
-- total is the larger counts.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_legacy_excess()
RETURNS TABLE (
    rollup text, bucket_date date, workspace_id uuid, model text,
    legacy_tokens numeric, raw_tokens numeric, legacy_events numeric, raw_events numeric
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
BEGIN
    IF to_regclass('public.task_usage_daily') IS NULL
        OR to_regclass('public.task_usage_dashboard_daily') IS NULL
    THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH legacy (rollup, day, workspace_id, model, tokens, events) AS (
        SELECT
            'task_usage_daily', d.bucket_date, d.workspace_id, d.model,
            SUM(d.input_tokens::numeric + d.output_tokens + d.cache_read_tokens + d.cache_write_tokens),
            SUM(d.event_count)
        FROM public.task_usage_daily d GROUP BY 2, 3, 4
        UNION ALL
        SELECT
            'task_usage_dashboard_daily', d.bucket_date, d.workspace_id, d.model,
            SUM(d.input_tokens::numeric + d.output_tokens + d.cache_read_tokens + d.cache_write_tokens),
            SUM(d.event_count)
        FROM public.task_usage_dashboard_daily d GROUP BY 2, 3, 4
    ), zones AS MATERIALIZED (
        -- A zone that PostgreSQL does not know must not stop the comparison.
        SELECT z.name FROM pg_timezone_names z
        WHERE EXISTS (SELECT FROM legacy l WHERE l.rollup = 'task_usage_daily')
            AND z.name IN (SELECT r.timezone FROM public.agent_runtime r)
    ), raw AS (
        SELECT
            (tu.created_at AT TIME ZONE 'UTC')::date AS utc_day,
            (tu.created_at AT TIME ZONE COALESCE(z.name, 'UTC'))::date AS runtime_day,
            a.workspace_id, tu.model,
            tu.input_tokens::numeric + tu.output_tokens + tu.cache_read_tokens + tu.cache_write_tokens AS tokens
        FROM public.task_usage tu
        JOIN public.agent_task_queue q ON q.id = tu.task_id
        JOIN public.agent a ON a.id = q.agent_id
        LEFT JOIN public.agent_runtime r ON r.id = q.runtime_id
        LEFT JOIN zones z ON z.name = r.timezone
        WHERE public.task_usage_hourly_dated(tu.created_at) AND EXISTS (SELECT FROM legacy)
    ), days AS (
        SELECT
            COALESCE(u.day, t.day) AS day, COALESCE(u.workspace_id, t.workspace_id) AS workspace_id,
            COALESCE(u.model, t.model) AS model, u.tokens AS utc_tokens, u.events AS utc_events,
            t.tokens AS runtime_tokens, t.events AS runtime_events
        FROM (SELECT r.utc_day AS day, r.workspace_id, r.model, SUM(r.tokens) AS tokens, COUNT(*) AS events
              FROM raw r GROUP BY 1, 2, 3) u
        FULL JOIN (SELECT r.runtime_day AS day, r.workspace_id, r.model, SUM(r.tokens) AS tokens, COUNT(*) AS events
              FROM raw r GROUP BY 1, 2, 3) t USING (day, workspace_id, model)
    ), compared AS (
        SELECT l.*,
            COALESCE(CASE WHEN l.rollup = 'task_usage_daily' THEN GREATEST(d.utc_tokens, d.runtime_tokens)
                          ELSE d.utc_tokens END, 0) AS raw_tokens,
            COALESCE(CASE WHEN l.rollup = 'task_usage_daily' THEN GREATEST(d.utc_events, d.runtime_events)
                          ELSE d.utc_events END, 0)::numeric AS raw_events
        FROM legacy l LEFT JOIN days d USING (day, workspace_id, model)
    )
    SELECT c.rollup, c.day, c.workspace_id, c.model, c.tokens, c.raw_tokens, c.events, c.raw_events
    FROM compared c WHERE c.tokens > c.raw_tokens OR c.events > c.raw_events
    ORDER BY 2, 1, 3, 4;
END
$$;

COMMENT ON FUNCTION public.task_usage_hourly_legacy_excess() IS
    'Daily totals of the legacy rollups that exceed raw usage: what dropping them would lose.';

-- ---------------------------------------------------------------------------------------------
-- Clocks
-- ---------------------------------------------------------------------------------------------

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

-- ---------------------------------------------------------------------------------------------
-- Recompute
-- ---------------------------------------------------------------------------------------------

-- The same aggregate for a few hours or a month out of a long history. The tasks of the range are looked
-- up once each, in the order of their primary key, then joined by hash: the cost is that of the
-- range's own rows, never of the tables they hang on. OFFSET 0 and the SET clauses leave the planner
-- no other way, so a stale statistic or a table that was never analysed cannot choose a worse one.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_aggregate(p_from timestamptz, p_to timestamptz)
RETURNS TABLE (
    bucket_hour timestamptz, workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid,
    provider text, model text, input_tokens bigint, output_tokens bigint,
    cache_read_tokens bigint, cache_write_tokens bigint, task_count bigint, event_count bigint
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan SET jit = off
SET max_parallel_workers_per_gather = 0
SET enable_hashjoin = on SET enable_nestloop = off SET enable_mergejoin = off
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN QUERY
    WITH tasks AS MATERIALIZED (
        SELECT t.task_id, a.workspace_id, q.runtime_id, q.agent_id, i.project_id
        FROM (SELECT DISTINCT tu.task_id FROM public.task_usage tu
              WHERE tu.created_at >= p_from AND tu.created_at < p_to ORDER BY tu.task_id) t
        CROSS JOIN LATERAL (SELECT q.* FROM public.agent_task_queue q WHERE q.id = t.task_id OFFSET 0) q
        CROSS JOIN LATERAL (SELECT a.* FROM public.agent a WHERE a.id = q.agent_id OFFSET 0) a
        LEFT JOIN LATERAL (SELECT i.* FROM public.issue i WHERE i.id = q.issue_id OFFSET 0) i ON true
        WHERE q.runtime_id IS NOT NULL
    )
    SELECT
        public.task_usage_hour_bucket(tu.created_at), t.workspace_id, t.runtime_id, t.agent_id,
        t.project_id, tu.provider, tu.model,
        public.task_usage_hourly_sum(SUM(tu.input_tokens)),
        public.task_usage_hourly_sum(SUM(tu.output_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_read_tokens)),
        public.task_usage_hourly_sum(SUM(tu.cache_write_tokens)),
        COUNT(*), COUNT(*)
    FROM public.task_usage tu
    JOIN tasks t USING (task_id)
    WHERE tu.created_at >= p_from AND tu.created_at < p_to
        AND public.task_usage_hourly_dated(tu.created_at)
    GROUP BY 1, 2, 3, 4, 5, 6, 7
    -- In the order of the key's index, which then grows at its right end.
    ORDER BY 1, 2, 3, 4, 5, 6, 7;
END
$$;

-- Either branch works in one snapshot. An empty range needs no comparison and takes the plain INSERT,
-- which is what makes a first backfill fast. The comparison joins two sides of one size: never by
-- nested loops, whatever is estimated.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_recompute(p_from timestamptz, p_to timestamptz)
RETURNS bigint LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
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
        SELECT * FROM public.rollup_task_usage_hourly_aggregate(p_from, p_to);
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        RETURN v_rows;
    END IF;

    WITH expected AS MATERIALIZED (
        SELECT * FROM public.rollup_task_usage_hourly_aggregate(p_from, p_to)
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

-- The one writer of task_usage_hourly. What PostgreSQL refuses is looked for by halves, down to the
-- hour and then the bucket; that bucket is set aside and the rest goes on. Only errors that the data
-- cause: a cancel, a deadlock or a full disk ends the transaction as it should.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_range(p_from timestamptz, p_to timestamptz)
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_middle timestamptz;
    v_bucket record;
    v_rows bigint := 0;
BEGIN
    DELETE FROM public.task_usage_hourly_set_aside s
    WHERE s.bucket_hour >= p_from AND s.bucket_hour < p_to;
    BEGIN
        RETURN public.rollup_task_usage_hourly_recompute(p_from, p_to);
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
            INSERT INTO public.task_usage_hourly_set_aside (
                bucket_hour, workspace_id, runtime_id, agent_id, project_id, label_digest, label_start,
                sqlstate, error)
            VALUES (
                v_bucket.bucket_hour, v_bucket.workspace_id, v_bucket.runtime_id, v_bucket.agent_id,
                v_bucket.project_id, md5(v_bucket.provider || '/' || v_bucket.model),
                left(v_bucket.provider || '/' || v_bucket.model, 80), SQLSTATE, SQLERRM);
            RAISE WARNING 'usage of agent % in the hour % is set aside: %',
                v_bucket.agent_id, v_bucket.bucket_hour, SQLERRM;
        END;
    END LOOP;
    RETURN v_rows;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_range(timestamptz, timestamptz) IS
    'Make every hour in [p_from, p_to) equal to its raw usage; returns rows written and deleted. The caller holds advisory lock 4246.';

-- Leaves a mark that a writer with an older snapshot runs into.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_touch()
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO public.task_usage_hourly_rollup_state AS s (id) VALUES (1)
    ON CONFLICT (id) DO UPDATE SET last_run_rows = s.last_run_rows
$$;

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

-- Unprocessed rows are never pruned, and processed ones are deleted by the window that processed
-- them. What remains to do here is for the day a later release replaces the window: it reads only the
-- public queue, and still calls this function on every tick, so this hands the private queue over.
CREATE OR REPLACE FUNCTION public.prune_task_usage_hourly_dirty(p_retention interval DEFAULT '7 days')
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_queued public.task_usage_hourly_invalidation[];
    v_hour timestamptz;
BEGIN
    IF (SELECT p.prosrc LIKE '%rollup_task_usage_hourly_drain%' FROM pg_proc p
        WHERE p.oid = 'public.rollup_task_usage_hourly_window(timestamptz,timestamptz)'::regprocedure)
    THEN
        RETURN 0;
    END IF;

    v_queued := public.rollup_task_usage_hourly_drain();
    FOR v_hour IN
        SELECT h FROM public.task_usage_hourly_invalidated_hours(v_queued) AS h
        WHERE public.task_usage_hourly_dated(h)
    LOOP
        -- Keys that are there and keys that should be: their window works key by key.
        INSERT INTO public.task_usage_hourly_dirty AS d
            (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
        SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
        FROM public.task_usage_hourly WHERE bucket_hour = v_hour
        UNION
        SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
        FROM public.task_usage_hourly_expected(v_hour, v_hour + interval '1 hour')
        ORDER BY 1, 2, 3, 4, 5, 6, 7
        ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key
        DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
    END LOOP;
    RETURN COALESCE(cardinality(v_queued), 0);
END
$$;

COMMENT ON FUNCTION public.prune_task_usage_hourly_dirty(interval) IS
    'Hand the private queue to the public one where a later release''s window is installed; returns rows handed over. Deletes nothing that has not been processed, so p_retention has nothing to limit.';

-- ---------------------------------------------------------------------------------------------
-- Backfill: plan, slice by slice, finish. Each is called in a transaction of its own by a session
-- that holds advisory lock 4246.
-- ---------------------------------------------------------------------------------------------

-- Everything from the first day to the last when nothing is rolled up yet; otherwise only the days
-- with events the watermark has not passed. Empty when there is nothing to walk.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_unwalked()
RETURNS tstzmultirange LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET plan_cache_mode = force_custom_plan AS $$
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
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
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

-- Building these four at once over the finished rows costs a third of keeping them up row by row. When
-- none is missing no lock is taken.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_build_indexes()
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1min' AS $$
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
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
    -- A long walk into an empty table, which no dashboard reads: the last slice builds its indexes.
    ELSIF NOT EXISTS (SELECT FROM public.task_usage_hourly)
        AND (SELECT SUM(b.usage_rows) > p_rows FROM public.task_usage_hourly_backfill b)
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
    'Plan a backfill that may move the watermark to p_horizon, in slices of p_rows usage rows; what was created before p_from is left out, and noted.';

-- Plans what the oracle finds wrong, by the hour. The watermark stays: a difference below it is what
-- makes it untrue.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_plan_repair(p_rows bigint)
RETURNS bigint LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH differing AS (
        SELECT public.task_usage_hourly_differences() AS hour
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

COMMENT ON FUNCTION public.rollup_task_usage_hourly_plan_repair(bigint) IS
    'Plan the recompute of every hour that differs from raw usage; returns their number.';

-- One slice that nobody else is walking, marked as walked in the same transaction. No row when there is
-- none.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_slice()
RETURNS TABLE (slice_from timestamptz, slice_to timestamptz, usage_rows bigint, buckets bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Losing the last slices in a crash of the server loses their marks too: nothing to wait for.
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT b.from_hour, b.to_hour, b.usage_rows INTO slice_from, slice_to, usage_rows
    FROM public.task_usage_hourly_backfill b
    WHERE b.walked_at IS NULL ORDER BY b.from_hour LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        buckets := public.rollup_task_usage_hourly_range(slice_from, slice_to);
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
RETURNS timestamptz LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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

-- ---------------------------------------------------------------------------------------------
-- Triggers
-- ---------------------------------------------------------------------------------------------
-- SECURITY DEFINER: the product's roles need no rights on the queue. Each is one INSERT into a table
-- without unique keys: nothing to wait for, nothing to deadlock on. The four BEFORE triggers are the
-- product's by name (later releases re-create three of them); the AFTER triggers are ours.

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)
    VALUES (public.task_usage_hour_bucket(OLD.created_at));
    RETURN OLD;
END
$$;

-- Inserts and updates, the server's hot path: a SET clause alone would double its cost, so every name
-- and operator is qualified instead. An event of this very transaction writes nothing, since the
-- window finds it by time; the comparison with the watermark is for a clock that was set back.
CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_write()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    v_now CONSTANT pg_catalog.timestamptz := pg_catalog.now();
BEGIN
    IF NOT COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.=) v_now
        OR v_now OPERATOR(pg_catalog.<) (
            SELECT s.watermark_at FROM public.task_usage_hourly_rollup_state s
            WHERE s.id OPERATOR(pg_catalog.=) 1)
    THEN
        INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)
        VALUES (public.task_usage_hour_bucket(NEW.created_at));
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        IF NOT OLD.created_at OPERATOR(pg_catalog.=) NEW.created_at THEN
            INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)
            VALUES (public.task_usage_hour_bucket(OLD.created_at));
        END IF;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_truncate()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_invalidation DEFAULT VALUES;
    RETURN NULL;
END
$$;

-- By task, resolved at the drain: a report for this task that commits while the move is still open
-- is invisible here.
CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_invalidation (task_id) VALUES (OLD.id);
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_project()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_invalidation (issue_id) VALUES (OLD.id);
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_invalidation (issue_id) VALUES (OLD.id);
    RETURN OLD;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_agent()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.task_usage_hourly_invalidation (agent_id) VALUES (OLD.id);
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly
    BEFORE DELETE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu();

CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly_write
    AFTER INSERT OR UPDATE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_write();

CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly_truncate
    AFTER TRUNCATE ON public.task_usage
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_truncate();

CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly
    BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON public.agent_task_queue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq();

CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly_agent
    AFTER UPDATE OF agent_id ON public.agent_task_queue
    FOR EACH ROW WHEN (OLD.agent_id IS DISTINCT FROM NEW.agent_id)
    EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq();

CREATE OR REPLACE TRIGGER trg_issue_project_dirty_hourly
    BEFORE UPDATE OF project_id ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_project();

CREATE OR REPLACE TRIGGER trg_issue_delete_dirty_hourly
    BEFORE DELETE ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete();

CREATE OR REPLACE TRIGGER trg_agent_dirty_hourly
    AFTER UPDATE OF workspace_id OR DELETE ON public.agent
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_agent();
