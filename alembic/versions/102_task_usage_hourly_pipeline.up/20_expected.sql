-- 102, part 20_expected: what the rollup should hold, said plainly and said fast.

-- Through a zone-less timestamp: exact whatever the session's TimeZone, and IMMUTABLE in truth
-- (date_trunc with a zone argument is only STABLE). Not by date_bin(), which takes half the time and overflows
-- where created_at may still go: it is for where rows that are not dated have gone before.
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

-- Two digests, because any separator between two texts can be a part of one of them.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_label_digest(p_provider text, p_model text)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.md5(p_provider) OPERATOR(pg_catalog.||) pg_catalog.md5(p_model)
$$;

COMMENT ON FUNCTION public.task_usage_hourly_label_digest(text, text) IS
    'Provider and model as task_usage_hourly_set_aside names them, whatever their length.';

-- What the rollup should hold, said in the plainest way; the oracle. No SET clause, so that the planner
-- inlines it and sees the range. A task counts once a bucket without COUNT(DISTINCT), and so without a
-- sort: the server's upsert keeps task_usage unique by (task_id, provider, model). WHERE comes before
-- GROUP BY, so date_bin() sees dated rows only.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_expected(p_from timestamptz, p_to timestamptz)
RETURNS TABLE (
    bucket_hour timestamptz, workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid,
    provider text, model text, input_tokens bigint, output_tokens bigint,
    cache_read_tokens bigint, cache_write_tokens bigint, task_count bigint, event_count bigint
)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        date_bin('1 hour', tu.created_at, '0001-01-01 00:00:00+00'), a.workspace_id, q.runtime_id, q.agent_id,
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

-- The same aggregate for a few hours or a month out of a long history. The tasks of the range are looked
-- up once each, in the order of their primary key, then joined by hash: the cost is that of the
-- range's own rows, never of the tables they hang on. OFFSET 0 and the SET clauses leave the planner
-- no other way but for the index of task_usage; tests/hourly/test_plans.py says under which statistics.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_aggregate(p_from timestamptz, p_to timestamptz)
RETURNS TABLE (
    bucket_hour timestamptz, workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid,
    provider text, model text, input_tokens bigint, output_tokens bigint,
    cache_read_tokens bigint, cache_write_tokens bigint, task_count bigint, event_count bigint
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan SET jit = off
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
        date_bin('1 hour', tu.created_at, '0001-01-01 00:00:00+00'), t.workspace_id, t.runtime_id, t.agent_id,
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

-- The same again where the range is a large share of the history: every table is read once, and joined by hash.
-- Sorts, not hash tables, group the rows, because nobody knows how many groups there will be.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_aggregate_by_scan(p_from timestamptz, p_to timestamptz)
RETURNS TABLE (
    bucket_hour timestamptz, workspace_id uuid, runtime_id uuid, agent_id uuid, project_id uuid,
    provider text, model text, input_tokens bigint, output_tokens bigint,
    cache_read_tokens bigint, cache_write_tokens bigint, task_count bigint, event_count bigint
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode = force_custom_plan SET jit = off
SET max_parallel_workers_per_gather = 0
SET enable_hashjoin = on SET enable_nestloop = off SET enable_mergejoin = off
SET enable_seqscan = on SET enable_sort = on SET enable_hashagg = off AS $$
BEGIN
    RETURN QUERY
    SELECT * FROM public.task_usage_hourly_expected(p_from, p_to) ORDER BY 1, 2, 3, 4, 5, 6, 7;
END
$$;

-- From where on that is cheaper: a look-up of a task spared pays for a quarter of a page read. Sizes of files, which
-- no statistic can have wrong.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_scan_pays(p_usage_rows bigint)
RETURNS boolean LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT p_usage_rows > 4 * SUM(pg_relation_size(t.name) / current_setting('block_size')::bigint)
    FROM (VALUES ('public.agent_task_queue'::regclass), ('public.agent'), ('public.issue')) AS t (name)
$$;

COMMENT ON FUNCTION public.task_usage_hourly_scan_pays(bigint) IS
    'Whether a range of so many usage rows is aggregated faster by reading every table than by looking its tasks up.';
