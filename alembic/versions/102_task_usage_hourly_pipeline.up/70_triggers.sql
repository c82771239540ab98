-- 102, part 70_triggers: write every change down that the window cannot find by its time.
--
-- The product's four triggers keep their names, and do nothing: later releases re-create three of them, to stand
-- back while a workspace is torn down, and their functions are called for what did not change. The work is
-- done by AFTER triggers of our own, which every later migration leaves alone. ALWAYS, because a session that
-- plays replica (a restore, a repair by hand) changes usage too. What no trigger can see: DISABLE TRIGGER
-- ALL, as pg_restore --disable-triggers does, deletes that a subscriber applies, and a partition that is
-- detached; `usage-rollup verify` finds it out and `backfill --repair` mends it.
--
-- Each is at most one INSERT a statement, or a row that moved, into a table without unique keys: nothing to wait
-- for, nothing to deadlock on. SECURITY DEFINER: the product's roles need no rights on the queue. None raises:
-- where rights or tables are missing, the product goes on, and status says what is missing. They use nothing
-- of the contract, which the product's own 102.down takes away.

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu()
RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN OLD;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq()
RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_project()
RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete()
RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN OLD;
END
$$;

-- Whether the caller, a trigger function's owner, may write into the queue; false where there is none, and where
-- a policy would decide. Without USAGE of the schema nobody could ask even this, so that is asked before.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_may_enqueue()
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT COALESCE(
        pg_catalog.has_table_privilege(q.oid, 'INSERT') AND NOT pg_catalog.row_security_active(q.oid), false)
    FROM (SELECT pg_catalog.to_regclass('public.task_usage_hourly_invalidation')::pg_catalog.oid) AS q (oid)
$$;

-- Inserts and updates, the server's hot path: a SET clause alone would double its cost, so every name and
-- operator is qualified instead. An event of this very transaction writes nothing, since the window finds
-- it by time, as long as the transaction is young enough for the horizon to wait for it. The comparison with
-- the watermark is for a clock that was set back.
CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_write()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    v_now CONSTANT pg_catalog.timestamptz := pg_catalog.now();
    v_state pg_catalog.oid;
    v_found_by_time boolean := COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.=) v_now
        AND pg_catalog.clock_timestamp()
            OPERATOR(pg_catalog.<) (v_now OPERATOR(pg_catalog.+) '4 minutes'::pg_catalog.interval);
BEGIN
    -- Whole rows, as they are stored: a column that a later release adds, a cost, is usage too, and may be
    -- of a type without equality.
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        IF NOT OLD OPERATOR(pg_catalog.*<>) NEW THEN
            RETURN NULL;
        END IF;
    END IF;
    IF NOT pg_catalog.has_schema_privilege('public', 'USAGE') THEN
        RETURN NULL;
    END IF;
    IF v_found_by_time THEN
        v_state := pg_catalog.to_regclass('public.task_usage_hourly_rollup_state');
        -- What a policy hides may lie above now.
        IF pg_catalog.row_security_active(v_state) THEN
            v_found_by_time := false;
        ELSIF pg_catalog.has_table_privilege(v_state, 'SELECT') THEN
            v_found_by_time := NOT EXISTS (
                SELECT FROM public.task_usage_hourly_rollup_state s
                WHERE s.id OPERATOR(pg_catalog.=) 1 AND s.watermark_at OPERATOR(pg_catalog.>) v_now);
        END IF;
    END IF;
    -- With its task: a cost that changed shows in no comparison that this pipeline makes.
    IF NOT v_found_by_time AND public.task_usage_hourly_may_enqueue() THEN
        INSERT INTO public.task_usage_hourly_invalidation (bucket_hour, task_id) VALUES (pg_catalog.timezone(
            'UTC', pg_catalog.date_trunc('hour', pg_catalog.timezone('UTC', NEW.created_at))), NEW.task_id);
    END IF;
    IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
        IF NOT OLD.created_at OPERATOR(pg_catalog.=) NEW.created_at AND public.task_usage_hourly_may_enqueue() THEN
            INSERT INTO public.task_usage_hourly_invalidation (bucket_hour) VALUES (pg_catalog.timezone(
                'UTC', pg_catalog.date_trunc('hour', pg_catalog.timezone('UTC', OLD.created_at))));
        END IF;
    END IF;
    RETURN NULL;
END
$$;

-- Whatever deleted them, the product's own cascades and teardowns included: one row an hour.
CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_gone()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_schema_privilege('public', 'USAGE') THEN
        RETURN NULL;
    END IF;
    IF public.task_usage_hourly_may_enqueue() THEN
        INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)
        SELECT DISTINCT date_trunc('hour', g.created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' FROM gone g;
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_truncate()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_schema_privilege('public', 'USAGE') THEN
        RETURN NULL;
    END IF;
    IF public.task_usage_hourly_may_enqueue() THEN
        INSERT INTO public.task_usage_hourly_invalidation DEFAULT VALUES;
    END IF;
    RETURN NULL;
END
$$;

-- Moves. By task, issue or agent, resolved at the drain: a report for this task that commits while the move is
-- still open is invisible here.
CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_move()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_schema_privilege('public', 'USAGE') THEN
        RETURN NULL;
    END IF;
    IF NOT public.task_usage_hourly_may_enqueue() THEN
        RETURN NULL;
    END IF;
    CASE TG_ARGV[0]
        WHEN 'task_id' THEN INSERT INTO public.task_usage_hourly_invalidation (task_id) VALUES (NEW.id);
        WHEN 'issue_id' THEN INSERT INTO public.task_usage_hourly_invalidation (issue_id) VALUES (NEW.id);
        WHEN 'agent_id' THEN INSERT INTO public.task_usage_hourly_invalidation (agent_id) VALUES (NEW.id);
    END CASE;
    RETURN NULL;
END
$$;

-- A task, issue or agent that is gone takes its usage along, which names its own hours. Named all the same, for
-- what a missing or silenced foreign key leaves behind.
CREATE OR REPLACE FUNCTION public.enqueue_task_usage_hourly_dirty_for_gone()
RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_schema_privilege('public', 'USAGE') THEN
        RETURN NULL;
    END IF;
    IF NOT public.task_usage_hourly_may_enqueue() THEN
        RETURN NULL;
    END IF;
    CASE TG_ARGV[0]
        WHEN 'task_id' THEN INSERT INTO public.task_usage_hourly_invalidation (task_id) SELECT g.id FROM gone g;
        WHEN 'issue_id' THEN INSERT INTO public.task_usage_hourly_invalidation (issue_id) SELECT g.id FROM gone g;
        WHEN 'agent_id' THEN INSERT INTO public.task_usage_hourly_invalidation (agent_id) SELECT g.id FROM gone g;
    END CASE;
    RETURN NULL;
END
$$;

-- Nobody calls these but the triggers, which ask for no right to.
REVOKE ALL ON FUNCTION
    public.enqueue_task_usage_hourly_dirty_for_tu_write(),
    public.enqueue_task_usage_hourly_dirty_for_tu_gone(),
    public.enqueue_task_usage_hourly_dirty_for_truncate(),
    public.enqueue_task_usage_hourly_dirty_for_move(),
    public.enqueue_task_usage_hourly_dirty_for_gone()
FROM PUBLIC;

CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly
    BEFORE DELETE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu();

CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly
    BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON public.agent_task_queue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq();

CREATE OR REPLACE TRIGGER trg_issue_project_dirty_hourly
    BEFORE UPDATE OF project_id ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_project();

CREATE OR REPLACE TRIGGER trg_issue_delete_dirty_hourly
    BEFORE DELETE ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete();

CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly_write
    AFTER INSERT OR UPDATE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_write();

CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly_gone
    AFTER DELETE ON public.task_usage REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu_gone();

CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly_truncate
    AFTER TRUNCATE ON public.task_usage
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_truncate();

CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly_move
    AFTER UPDATE ON public.agent_task_queue
    FOR EACH ROW WHEN (
        (OLD.agent_id, OLD.runtime_id, OLD.issue_id) IS DISTINCT FROM (NEW.agent_id, NEW.runtime_id, NEW.issue_id))
    EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_move('task_id');

CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly_gone
    AFTER DELETE ON public.agent_task_queue REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_gone('task_id');

CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly_truncate
    AFTER TRUNCATE ON public.agent_task_queue
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_truncate();

CREATE OR REPLACE TRIGGER trg_issue_dirty_hourly_move
    AFTER UPDATE ON public.issue
    FOR EACH ROW WHEN (OLD.project_id IS DISTINCT FROM NEW.project_id)
    EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_move('issue_id');

CREATE OR REPLACE TRIGGER trg_issue_dirty_hourly_gone
    AFTER DELETE ON public.issue REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_gone('issue_id');

CREATE OR REPLACE TRIGGER trg_issue_dirty_hourly_truncate
    AFTER TRUNCATE ON public.issue
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_truncate();

CREATE OR REPLACE TRIGGER trg_agent_dirty_hourly
    AFTER UPDATE ON public.agent
    FOR EACH ROW WHEN (OLD.workspace_id IS DISTINCT FROM NEW.workspace_id)
    EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_move('agent_id');

CREATE OR REPLACE TRIGGER trg_agent_dirty_hourly_gone
    AFTER DELETE ON public.agent REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_gone('agent_id');

CREATE OR REPLACE TRIGGER trg_agent_dirty_hourly_truncate
    AFTER TRUNCATE ON public.agent
    FOR EACH STATEMENT EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_truncate();

ALTER TABLE public.task_usage
    ENABLE ALWAYS TRIGGER trg_tu_dirty_hourly_write,
    ENABLE ALWAYS TRIGGER trg_tu_dirty_hourly_gone,
    ENABLE ALWAYS TRIGGER trg_tu_dirty_hourly_truncate;
ALTER TABLE public.agent_task_queue
    ENABLE ALWAYS TRIGGER trg_atq_dirty_hourly_move,
    ENABLE ALWAYS TRIGGER trg_atq_dirty_hourly_gone,
    ENABLE ALWAYS TRIGGER trg_atq_dirty_hourly_truncate;
ALTER TABLE public.issue
    ENABLE ALWAYS TRIGGER trg_issue_dirty_hourly_move,
    ENABLE ALWAYS TRIGGER trg_issue_dirty_hourly_gone,
    ENABLE ALWAYS TRIGGER trg_issue_dirty_hourly_truncate;
ALTER TABLE public.agent
    ENABLE ALWAYS TRIGGER trg_agent_dirty_hourly,
    ENABLE ALWAYS TRIGGER trg_agent_dirty_hourly_gone,
    ENABLE ALWAYS TRIGGER trg_agent_dirty_hourly_truncate;
