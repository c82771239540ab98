-- 102, part 70_triggers: write every change down that the window cannot find by its time.
--
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
