-- 097, part 20_legacy_rollups: the two legacy rollup pipelines, daily and dashboard, as v0.3.4 has them. 103 drops them;
-- its way back applies this part again.


-- Legacy daily pipeline, the tables. No foreign keys: a rollup row may outlive what it counts until it is recomputed.

CREATE TABLE public.task_usage_daily (
    bucket_date        date NOT NULL,
    workspace_id       uuid NOT NULL,
    runtime_id         uuid NOT NULL,
    provider           text NOT NULL,
    model              text NOT NULL,
    input_tokens       bigint NOT NULL DEFAULT 0,
    output_tokens      bigint NOT NULL DEFAULT 0,
    cache_read_tokens  bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    event_count        bigint NOT NULL DEFAULT 0,
    updated_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (bucket_date, workspace_id, runtime_id, provider, model)
);
CREATE INDEX idx_task_usage_daily_runtime_date ON public.task_usage_daily (runtime_id, bucket_date DESC);
CREATE INDEX idx_task_usage_daily_workspace_date ON public.task_usage_daily (workspace_id, bucket_date DESC);
COMMENT ON TABLE public.task_usage_daily IS
    'Legacy rollup of task_usage. A day is the calendar day of created_at in the runtime''s timezone.';

CREATE TABLE public.task_usage_daily_dirty (
    bucket_date  date NOT NULL,
    workspace_id uuid NOT NULL,
    runtime_id   uuid NOT NULL,
    provider     text NOT NULL,
    model        text NOT NULL,
    enqueued_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (bucket_date, workspace_id, runtime_id, provider, model)
);
CREATE INDEX idx_task_usage_daily_dirty_enqueued_at ON public.task_usage_daily_dirty (enqueued_at);
COMMENT ON TABLE public.task_usage_daily_dirty IS
    'Keys of task_usage_daily to recompute because rows behind them moved or went, which no updated_at tells.';

CREATE TABLE public.task_usage_rollup_state (
    id                   smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    watermark_at         timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
    last_run_started_at  timestamptz,
    last_run_finished_at timestamptz,
    last_run_rows        bigint NOT NULL DEFAULT 0,
    last_error           text
);
INSERT INTO public.task_usage_rollup_state (id) VALUES (1);
COMMENT ON TABLE public.task_usage_rollup_state IS
    'One row: up to where rollup_task_usage_daily() has gone, and how its last run went.';


-- Legacy dashboard pipeline, the tables. NULLS NOT DISTINCT: usage without a project is one key like any other.

CREATE TABLE public.task_usage_dashboard_daily (
    bucket_date        date NOT NULL,
    workspace_id       uuid NOT NULL,
    agent_id           uuid NOT NULL,
    project_id         uuid,
    model              text NOT NULL,
    input_tokens       bigint NOT NULL DEFAULT 0,
    output_tokens      bigint NOT NULL DEFAULT 0,
    cache_read_tokens  bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    task_count         bigint NOT NULL DEFAULT 0,
    event_count        bigint NOT NULL DEFAULT 0,
    updated_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_task_usage_dashboard_daily_key
        UNIQUE NULLS NOT DISTINCT (bucket_date, workspace_id, agent_id, project_id, model)
);
CREATE INDEX idx_task_usage_dashboard_daily_workspace_date
    ON public.task_usage_dashboard_daily (workspace_id, bucket_date DESC);
CREATE INDEX idx_task_usage_dashboard_daily_agent_date
    ON public.task_usage_dashboard_daily (workspace_id, agent_id, bucket_date DESC);
CREATE INDEX idx_task_usage_dashboard_daily_project_date
    ON public.task_usage_dashboard_daily (workspace_id, project_id, bucket_date DESC);
COMMENT ON TABLE public.task_usage_dashboard_daily IS
    'Legacy rollup of task_usage by agent and project. A day is the UTC day of created_at.';

CREATE TABLE public.task_usage_dashboard_dirty (
    bucket_date  date NOT NULL,
    workspace_id uuid NOT NULL,
    agent_id     uuid NOT NULL,
    project_id   uuid,
    model        text NOT NULL,
    enqueued_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_task_usage_dashboard_dirty_key
        UNIQUE NULLS NOT DISTINCT (bucket_date, workspace_id, agent_id, project_id, model)
);
CREATE INDEX idx_task_usage_dashboard_dirty_enqueued_at ON public.task_usage_dashboard_dirty (enqueued_at);
COMMENT ON TABLE public.task_usage_dashboard_dirty IS
    'Keys of task_usage_dashboard_daily to recompute because rows behind them moved or went.';

CREATE TABLE public.task_usage_dashboard_rollup_state (
    id                   smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    watermark_at         timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00',
    last_run_started_at  timestamptz,
    last_run_finished_at timestamptz,
    last_run_rows        bigint NOT NULL DEFAULT 0,
    last_error           text
);
INSERT INTO public.task_usage_dashboard_rollup_state (id) VALUES (1);
COMMENT ON TABLE public.task_usage_dashboard_rollup_state IS
    'One row: up to where rollup_task_usage_dashboard_daily() has gone, and how its last run went.';


-- The two windows. The queue is drained first and the keys recomputed in a later statement, from a later snapshot: a
-- window that deleted what it had queued before looking at the rows again would eat changes it never saw. Entries that a
-- writer holds locked are not waited for; the next window finds them. OFFSET 0 keeps the planner from turning "the touched
-- days, by the index on created_at" into one pass over all history. Custom plans, because a plan made for a short queue
-- must not be reused for a long one; no JIT, which took a second to compile what runs in a tenth of one.

-- Compiled when first run, not when made: on the way back from 103 a kept copy may take the place of these tables, and a
-- compiled window would remember the ones it was made for.
SET LOCAL check_function_bodies = off;

CREATE FUNCTION public.rollup_task_usage_daily_window(p_from timestamptz, p_to timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $$
DECLARE
    v_queued public.task_usage_daily_dirty[];
    v_rows   bigint;
BEGIN
    WITH drained AS (
        DELETE FROM public.task_usage_daily_dirty AS d
        WHERE d.ctid = ANY (ARRAY(SELECT l.ctid FROM public.task_usage_daily_dirty AS l FOR UPDATE SKIP LOCKED))
        RETURNING d AS entry
    )
    SELECT array_agg(entry) INTO v_queued FROM drained;

    WITH keys AS (
        SELECT (tu.created_at AT TIME ZONE r.timezone)::date AS bucket_date,
               a.workspace_id, q.runtime_id, tu.provider, tu.model
        FROM public.task_usage AS tu
        JOIN public.agent_task_queue AS q ON q.id = tu.task_id
        JOIN public.agent AS a ON a.id = q.agent_id
        JOIN public.agent_runtime AS r ON r.id = q.runtime_id
        WHERE (tu.updated_at >= p_from AND tu.updated_at < p_to)
           OR (tu.updated_at IS NULL AND tu.created_at >= p_from AND tu.created_at < p_to)
        UNION
        SELECT e.bucket_date, e.workspace_id, e.runtime_id, e.provider, e.model
        FROM unnest(v_queued) AS e
    ),
    totals AS (
        -- No zone is a day away from UTC, so a day in any of them lies between the UTC days before and after it. The
        -- bucket decides, not the range: where a clock is set back past midnight, local midnight is two instants.
        SELECT day.bucket_date, a.workspace_id, q.runtime_id, tu.provider, tu.model,
               sum(tu.input_tokens) AS input_tokens,
               sum(tu.output_tokens) AS output_tokens,
               sum(tu.cache_read_tokens) AS cache_read_tokens,
               sum(tu.cache_write_tokens) AS cache_write_tokens,
               count(*) AS event_count
        FROM (SELECT DISTINCT bucket_date FROM keys) AS day
        CROSS JOIN LATERAL (
            SELECT u.* FROM public.task_usage AS u
            WHERE u.created_at >= (day.bucket_date - 1)::timestamp AT TIME ZONE 'UTC'
              AND u.created_at < (day.bucket_date + 2)::timestamp AT TIME ZONE 'UTC'
            OFFSET 0) AS tu
        JOIN public.agent_task_queue AS q ON q.id = tu.task_id
        JOIN public.agent AS a ON a.id = q.agent_id
        JOIN public.agent_runtime AS r ON r.id = q.runtime_id
        WHERE (tu.created_at AT TIME ZONE r.timezone)::date = day.bucket_date
        GROUP BY day.bucket_date, a.workspace_id, q.runtime_id, tu.provider, tu.model
    ),
    written AS (
        INSERT INTO public.task_usage_daily AS t (
            bucket_date, workspace_id, runtime_id, provider, model,
            input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, event_count)
        SELECT bucket_date, workspace_id, runtime_id, provider, model,
               input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, event_count
        FROM totals
        JOIN keys USING (bucket_date, workspace_id, runtime_id, provider, model)
        ON CONFLICT (bucket_date, workspace_id, runtime_id, provider, model) DO UPDATE
        SET input_tokens = EXCLUDED.input_tokens,
            output_tokens = EXCLUDED.output_tokens,
            cache_read_tokens = EXCLUDED.cache_read_tokens,
            cache_write_tokens = EXCLUDED.cache_write_tokens,
            event_count = EXCLUDED.event_count,
            updated_at = now()
        RETURNING 1
    ),
    removed AS (
        DELETE FROM public.task_usage_daily AS t
        USING (SELECT bucket_date, workspace_id, runtime_id, provider, model FROM keys
               EXCEPT
               SELECT bucket_date, workspace_id, runtime_id, provider, model FROM totals) AS gone
        WHERE t.bucket_date = gone.bucket_date
          AND t.workspace_id = gone.workspace_id
          AND t.runtime_id = gone.runtime_id
          AND t.provider = gone.provider
          AND t.model = gone.model
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM written) + (SELECT count(*) FROM removed) INTO v_rows;

    RETURN v_rows;
END;
$$;

CREATE FUNCTION public.rollup_task_usage_dashboard_daily_window(p_from timestamptz, p_to timestamptz) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
SET jit = off
AS $$
DECLARE
    v_queued public.task_usage_dashboard_dirty[];
    v_rows   bigint;
BEGIN
    WITH drained AS (
        DELETE FROM public.task_usage_dashboard_dirty AS d
        WHERE d.ctid = ANY (ARRAY(SELECT l.ctid FROM public.task_usage_dashboard_dirty AS l FOR UPDATE SKIP LOCKED))
        RETURNING d AS entry
    )
    SELECT array_agg(entry) INTO v_queued FROM drained;

    WITH keys AS (
        SELECT (tu.created_at AT TIME ZONE 'UTC')::date AS bucket_date,
               a.workspace_id, q.agent_id, i.project_id, tu.model
        FROM public.task_usage AS tu
        JOIN public.agent_task_queue AS q ON q.id = tu.task_id
        JOIN public.agent AS a ON a.id = q.agent_id
        LEFT JOIN public.issue AS i ON i.id = q.issue_id
        WHERE (tu.updated_at >= p_from AND tu.updated_at < p_to)
           OR (tu.updated_at IS NULL AND tu.created_at >= p_from AND tu.created_at < p_to)
        UNION
        SELECT e.bucket_date, e.workspace_id, e.agent_id, e.project_id, e.model
        FROM unnest(v_queued) AS e
    ),
    totals AS (
        SELECT day.bucket_date, a.workspace_id, q.agent_id, i.project_id, tu.model,
               sum(tu.input_tokens) AS input_tokens,
               sum(tu.output_tokens) AS output_tokens,
               sum(tu.cache_read_tokens) AS cache_read_tokens,
               sum(tu.cache_write_tokens) AS cache_write_tokens,
               count(DISTINCT tu.task_id) AS task_count,
               count(*) AS event_count
        FROM (SELECT DISTINCT bucket_date FROM keys) AS day
        CROSS JOIN LATERAL (
            SELECT u.* FROM public.task_usage AS u
            WHERE u.created_at >= day.bucket_date::timestamp AT TIME ZONE 'UTC'
              AND u.created_at < (day.bucket_date + 1)::timestamp AT TIME ZONE 'UTC'
            OFFSET 0) AS tu
        JOIN public.agent_task_queue AS q ON q.id = tu.task_id
        JOIN public.agent AS a ON a.id = q.agent_id
        LEFT JOIN public.issue AS i ON i.id = q.issue_id
        GROUP BY day.bucket_date, a.workspace_id, q.agent_id, i.project_id, tu.model
    ),
    written AS (
        INSERT INTO public.task_usage_dashboard_daily AS t (
            bucket_date, workspace_id, agent_id, project_id, model,
            input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
        SELECT n.bucket_date, n.workspace_id, n.agent_id, n.project_id, n.model,
               n.input_tokens, n.output_tokens, n.cache_read_tokens, n.cache_write_tokens, n.task_count, n.event_count
        FROM totals AS n
        JOIN keys AS k
          ON k.bucket_date = n.bucket_date
         AND k.workspace_id = n.workspace_id
         AND k.agent_id = n.agent_id
         AND k.project_id IS NOT DISTINCT FROM n.project_id
         AND k.model = n.model
        ON CONFLICT (bucket_date, workspace_id, agent_id, project_id, model) DO UPDATE
        SET input_tokens = EXCLUDED.input_tokens,
            output_tokens = EXCLUDED.output_tokens,
            cache_read_tokens = EXCLUDED.cache_read_tokens,
            cache_write_tokens = EXCLUDED.cache_write_tokens,
            task_count = EXCLUDED.task_count,
            event_count = EXCLUDED.event_count,
            updated_at = now()
        RETURNING 1
    ),
    removed AS (
        DELETE FROM public.task_usage_dashboard_daily AS t
        USING (SELECT bucket_date, workspace_id, agent_id, project_id, model FROM keys
               EXCEPT
               SELECT bucket_date, workspace_id, agent_id, project_id, model FROM totals) AS gone
        WHERE t.bucket_date = gone.bucket_date
          AND t.workspace_id = gone.workspace_id
          AND t.agent_id = gone.agent_id
          AND t.project_id IS NOT DISTINCT FROM gone.project_id
          AND t.model = gone.model
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM written) + (SELECT count(*) FROM removed) INTO v_rows;

    RETURN v_rows;
END;
$$;


-- The two ticks, for pg_cron. The lock is the transaction's, so that nothing but its end can lose or keep it. 24 hours
-- and not a day, which a session's TimeZone may stretch. A watermark ahead of the horizon stays where it is, and the
-- queue is drained all the same. A missing state row is an error: there is nothing to go on from.

CREATE FUNCTION public.rollup_task_usage_daily() RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_started timestamptz := clock_timestamp();
    v_from    timestamptz;
    v_to      timestamptz;
    v_rows    bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4242) THEN
        RETURN 0;
    END IF;

    SELECT s.watermark_at INTO STRICT v_from FROM public.task_usage_rollup_state AS s WHERE s.id = 1 FOR UPDATE;
    v_to := GREATEST(v_from, LEAST(now() - interval '5 minutes', v_from + interval '24 hours'));
    v_rows := public.rollup_task_usage_daily_window(v_from, v_to);

    UPDATE public.task_usage_rollup_state
    SET watermark_at = v_to,
        last_run_started_at = v_started,
        last_run_finished_at = clock_timestamp(),
        last_run_rows = v_rows,
        last_error = NULL
    WHERE id = 1;
    RETURN v_rows;
END;
$$;

CREATE FUNCTION public.rollup_task_usage_dashboard_daily() RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_started timestamptz := clock_timestamp();
    v_from    timestamptz;
    v_to      timestamptz;
    v_rows    bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4244) THEN
        RETURN 0;
    END IF;

    SELECT s.watermark_at INTO STRICT v_from
    FROM public.task_usage_dashboard_rollup_state AS s WHERE s.id = 1 FOR UPDATE;
    v_to := GREATEST(v_from, LEAST(now() - interval '5 minutes', v_from + interval '24 hours'));
    v_rows := public.rollup_task_usage_dashboard_daily_window(v_from, v_to);

    UPDATE public.task_usage_dashboard_rollup_state
    SET watermark_at = v_to,
        last_run_started_at = v_started,
        last_run_finished_at = clock_timestamp(),
        last_run_rows = v_rows,
        last_error = NULL
    WHERE id = 1;
    RETURN v_rows;
END;
$$;


-- Lag is how far the watermark trails the clock, not how long ago a tick ran: a tick that ran says nothing of its data.

CREATE FUNCTION public.task_usage_rollup_lag_seconds() RETURNS float8
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT extract(epoch FROM now() - s.watermark_at)::float8 FROM public.task_usage_rollup_state AS s WHERE s.id = 1;
$$;

CREATE FUNCTION public.task_usage_dashboard_rollup_lag_seconds() RETURNS float8
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT extract(epoch FROM now() - s.watermark_at)::float8
    FROM public.task_usage_dashboard_rollup_state AS s WHERE s.id = 1;
$$;


-- The enqueue triggers. BEFORE, because a row's keys are found through rows that an AFTER trigger no longer finds; they
-- return OLD on DELETE and NEW on UPDATE, for NULL would swallow the statement. Old and new side by side: on DELETE every
-- field of NEW is NULL and joins nothing. Keys go in sorted, so that two transactions meet them in the same order.
-- A key already queued stays queued at the later of the two times.

CREATE FUNCTION public.enqueue_task_usage_daily_dirty_for_atq() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.task_usage_daily_dirty AS d (bucket_date, workspace_id, runtime_id, provider, model)
    SELECT DISTINCT (tu.created_at AT TIME ZONE r.timezone)::date, a.workspace_id, r.id, tu.provider, tu.model
    FROM (VALUES (OLD.id, OLD.agent_id, OLD.runtime_id),
                 (NEW.id, NEW.agent_id, NEW.runtime_id)) AS q (id, agent_id, runtime_id)
    JOIN public.task_usage AS tu ON tu.task_id = q.id
    JOIN public.agent AS a ON a.id = q.agent_id
    JOIN public.agent_runtime AS r ON r.id = q.runtime_id
    ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT (bucket_date, workspace_id, runtime_id, provider, model) DO UPDATE
    SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);

    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER trg_atq_dirty_rollup
    BEFORE UPDATE OF runtime_id OR DELETE ON public.agent_task_queue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_daily_dirty_for_atq();

CREATE FUNCTION public.enqueue_task_usage_daily_dirty_for_tu() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.task_usage_daily_dirty AS d (bucket_date, workspace_id, runtime_id, provider, model)
    SELECT (OLD.created_at AT TIME ZONE r.timezone)::date, a.workspace_id, r.id, OLD.provider, OLD.model
    FROM public.agent_task_queue AS q
    JOIN public.agent AS a ON a.id = q.agent_id
    JOIN public.agent_runtime AS r ON r.id = q.runtime_id
    WHERE q.id = OLD.task_id
    ON CONFLICT (bucket_date, workspace_id, runtime_id, provider, model) DO UPDATE
    SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
    RETURN OLD;
END;
$$;
CREATE TRIGGER trg_tu_dirty_rollup
    BEFORE DELETE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_daily_dirty_for_tu();

CREATE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_atq() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.task_usage_dashboard_dirty AS d (bucket_date, workspace_id, agent_id, project_id, model)
    SELECT DISTINCT (tu.created_at AT TIME ZONE 'UTC')::date, a.workspace_id, a.id, i.project_id, tu.model
    FROM (VALUES (OLD.id, OLD.agent_id, OLD.issue_id),
                 (NEW.id, NEW.agent_id, NEW.issue_id)) AS q (id, agent_id, issue_id)
    JOIN public.task_usage AS tu ON tu.task_id = q.id
    JOIN public.agent AS a ON a.id = q.agent_id
    LEFT JOIN public.issue AS i ON i.id = q.issue_id
    ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT (bucket_date, workspace_id, agent_id, project_id, model) DO UPDATE
    SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);

    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER trg_atq_dirty_dashboard
    BEFORE UPDATE OF issue_id OR DELETE ON public.agent_task_queue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_atq();

CREATE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_tu() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.task_usage_dashboard_dirty AS d (bucket_date, workspace_id, agent_id, project_id, model)
    SELECT (OLD.created_at AT TIME ZONE 'UTC')::date, a.workspace_id, a.id, i.project_id, OLD.model
    FROM public.agent_task_queue AS q
    JOIN public.agent AS a ON a.id = q.agent_id
    LEFT JOIN public.issue AS i ON i.id = q.issue_id
    WHERE q.id = OLD.task_id
    ON CONFLICT (bucket_date, workspace_id, agent_id, project_id, model) DO UPDATE
    SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
    RETURN OLD;
END;
$$;
CREATE TRIGGER trg_tu_dirty_dashboard
    BEFORE DELETE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_tu();

-- v0.3.4's issue triggers file under the issue's workspace, the window under the agent's. The two agree unless an agent
-- works on another workspace's issue; kept as the field has it, and gone with revision 103.

CREATE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_issue_delete() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.task_usage_dashboard_dirty AS d (bucket_date, workspace_id, agent_id, project_id, model)
    SELECT DISTINCT (tu.created_at AT TIME ZONE 'UTC')::date, OLD.workspace_id, q.agent_id, OLD.project_id, tu.model
    FROM public.agent_task_queue AS q
    JOIN public.task_usage AS tu ON tu.task_id = q.id
    WHERE q.issue_id = OLD.id
    ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT (bucket_date, workspace_id, agent_id, project_id, model) DO UPDATE
    SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
    RETURN OLD;
END;
$$;
CREATE TRIGGER trg_issue_delete_dirty_dashboard
    BEFORE DELETE ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_issue_delete();

CREATE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_issue_project() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO public.task_usage_dashboard_dirty AS d (bucket_date, workspace_id, agent_id, project_id, model)
    SELECT DISTINCT (tu.created_at AT TIME ZONE 'UTC')::date, i.workspace_id, q.agent_id, i.project_id, tu.model
    FROM (VALUES (OLD.id, OLD.workspace_id, OLD.project_id),
                 (NEW.id, NEW.workspace_id, NEW.project_id)) AS i (id, workspace_id, project_id)
    JOIN public.agent_task_queue AS q ON q.issue_id = i.id
    JOIN public.task_usage AS tu ON tu.task_id = q.id
    ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT (bucket_date, workspace_id, agent_id, project_id, model) DO UPDATE
    SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);
    RETURN NEW;
END;
$$;
CREATE TRIGGER trg_issue_project_dirty_dashboard
    BEFORE UPDATE OF project_id ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_dashboard_dirty_for_issue_project();
