-- 103_drop_legacy_daily_rollups: the hourly rollup serves every report, so both daily ones go.
--
-- Why now: only after the hourly rollup is proven to hold the history. The guard below fails closed;
--   the runner's hook before this revision is what makes it pass.
-- Assumes: 102, and the table locks named under Locks, which the runner takes in one statement.
-- Locks: ACCESS EXCLUSIVE on agent_task_queue, issue, task_usage and the six legacy tables;
--   advisory 4246 until commit. The runner brings both. By hand, begin with this file, not with the table
--   locks: the guard waits for 4246, five seconds at most, only while it keeps nobody from a table.
-- Undone by: 103_drop_legacy_daily_rollups.down.sql, which rebuilds both rollups from raw rows.

-- The guard. Every refusal starts with the same words and changes nothing.
DO $guard$
DECLARE
    v_refusal CONSTANT text := 'refusing to drop legacy daily rollups: ';
    v_again CONSTANT text := 'Run `alembic upgrade head` again: it backfills before this step, and resumes where it stopped.';
    v_deadline timestamptz := clock_timestamp() + interval '5 seconds';
    v_watermark timestamptz;
    v_latest timestamptz;
    v_hours bigint;
    v_first timestamptz;
    v_last timestamptz;
BEGIN
    -- The product's own runner may have been here since the hook: nothing left to guard.
    IF num_nonnulls(
        to_regclass('public.task_usage_daily'), to_regclass('public.task_usage_daily_dirty'),
        to_regclass('public.task_usage_rollup_state'), to_regclass('public.task_usage_dashboard_daily'),
        to_regclass('public.task_usage_dashboard_dirty'),
        to_regclass('public.task_usage_dashboard_rollup_state')) = 0
    THEN
        RETURN;
    END IF;

    -- Without usage there is no history to lose.
    IF to_regclass('public.task_usage_hourly_rollup_state') IS NULL
        AND NOT EXISTS (SELECT FROM public.task_usage)
    THEN
        RETURN;
    END IF;

    -- A tick may be running when an operator runs this by hand; the runner's session holds 4246 already.
    -- Under a table lock no waiting: whoever holds 4246 is likely to wait for that table, and so for us.
    IF EXISTS (
        SELECT FROM pg_locks
        WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode = 'AccessExclusiveLock'
    ) THEN
        v_deadline := '-infinity';
    END IF;
    WHILE NOT pg_try_advisory_xact_lock(4246) LOOP
        IF clock_timestamp() >= v_deadline THEN
            RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                MESSAGE = v_refusal || 'another session is writing the hourly rollup',
                DETAIL = 'Advisory lock 4246 is held.', HINT = v_again;
        END IF;
        PERFORM pg_sleep(0.05);
    END LOOP;

    IF to_regclass('public.task_usage_hourly_rollup_state') IS NULL
        OR to_regclass('public.task_usage_hourly') IS NULL
        OR to_regprocedure('public.task_usage_hourly_differences(timestamptz,timestamptz,boolean)') IS NULL
    THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = v_refusal || 'the hourly pipeline is not installed',
            DETAIL = 'One of task_usage_hourly, task_usage_hourly_rollup_state and task_usage_hourly_differences() is missing.',
            HINT = 'Put 101 and 102 back: `alembic downgrade 100`, then `alembic upgrade head`.';
    END IF;

    -- By lag.
    SELECT watermark_at INTO v_watermark FROM public.task_usage_hourly_rollup_state WHERE id = 1;
    IF EXISTS (SELECT FROM public.task_usage) THEN
        v_latest := public.task_usage_hourly_latest_event();
        IF v_watermark IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the state row of the hourly rollup is missing',
                DETAIL = format('Latest usage event: %s.', v_latest), HINT = v_again;
        ELSIF v_watermark > clock_timestamp() THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the watermark of the hourly rollup lies in the future',
                DETAIL = format('Watermark: %s; now: %s.', v_watermark, clock_timestamp()),
                HINT = 'UPDATE public.task_usage_hourly_rollup_state SET watermark_at = ''epoch'' WHERE id = 1; then run `alembic upgrade head` again.';
        ELSIF v_watermark < v_latest - interval '1 hour' THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the hourly rollup trails usage by more than one hour',
                DETAIL = format('Watermark: %s; latest usage event: %s.', v_watermark, v_latest),
                HINT = v_again;
        END IF;
    END IF;

    -- By content. A proof made by this very session for this watermark, under 4246, still holds: what
    -- was written since is queued or above the watermark. Anyone else pays for the whole comparison.
    IF current_setting('usage_rollup.proof', true) IS DISTINCT FROM v_watermark::text THEN
        SELECT COUNT(*), MIN(d), MAX(d) INTO v_hours, v_first, v_last
        FROM public.task_usage_hourly_differences(timestamptz '-infinity', timestamptz 'infinity', false) AS d;
        IF v_hours > 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = v_refusal || 'the hourly rollup does not match raw usage',
                DETAIL = format('Hours that differ: %s, from %s to %s.', v_hours, v_first, v_last),
                HINT = v_again;
        END IF;
    END IF;
END
$guard$;

-- A job whose function is gone fails every few minutes for ever: the two of the product's names, and whatever
-- a job is called whose command calls these functions and does nothing else. A job that does is named instead,
-- and so is one that is not this role's to end. cron.job shows a role its own jobs only.
DO $$
DECLARE
    v_role CONSTANT text := current_user;
    v_row_security CONSTANT text := current_setting('row_security');
    v_job record;
    v_left text[] := '{}';
BEGIN
    -- As the session's own role: it may see more of cron.job than the owner of task_usage. pg_cron's own policy
    -- is meant to hide the jobs of others.
    PERFORM set_config('role', COALESCE(NULLIF(current_setting('usage_rollup.began_as', true), ''), 'none'), true),
        set_config('row_security', 'on', true);
    IF EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'cron' AND c.relname = 'job' AND has_schema_privilege(n.oid, 'USAGE')
            -- The extension's: functions of anybody else's would run with our rights.
            AND n.nspowner IN (SELECT r.oid FROM pg_roles r WHERE r.rolsuper)
    ) THEN
        -- Jobs have names since pg_cron 1.3.
        FOR v_job IN EXECUTE $cron$
            SELECT j.jobid, COALESCE(n.name, 'number ' || j.jobid) AS name,
                n.name IN ('rollup_task_usage_daily', 'rollup_task_usage_dashboard_daily')
                    AND j.command !~* 'rollup_task_usage_hourly'
                    OR regexp_replace(j.command, $1 || '[^()]*\)|select|from|[\s,;*]', '', 'gi') = '' AS ends
            FROM cron.job AS j CROSS JOIN LATERAL (SELECT to_jsonb(j) ->> 'jobname') AS n (name)
            WHERE j.database = current_database() AND (
                n.name IN ('rollup_task_usage_daily', 'rollup_task_usage_dashboard_daily') OR j.command ~* $1)
            ORDER BY j.jobid
        $cron$ USING '(public\s*\.\s*)?rollup_task_usage_(dashboard_)?daily(_window)?\s*\('
        LOOP
            BEGIN
                IF v_job.ends IS NOT TRUE THEN
                    v_left := v_left || format('%s, which does something else besides', v_job.name);
                    CONTINUE;
                END IF;
                EXECUTE 'SELECT cron.unschedule($1)' USING v_job.jobid;
            EXCEPTION WHEN OTHERS THEN
                v_left := v_left || format('%s (%s)', v_job.name, SQLERRM);
            END;
        END LOOP;
    END IF;
    PERFORM set_config('role', v_role, true), set_config('row_security', v_row_security, true);
    IF v_left <> '{}' THEN
        RAISE WARNING 'pg_cron jobs that call the legacy rollups will fail from now on: %; change or unschedule them',
            array_to_string(v_left, '; ');
    END IF;
END
$$;

-- Who could read a legacy rollup reads the hourly one from now on: reports go there. Remembered for the way back.
DO $$
DECLARE
    v_reader record;
    v_left text[] := '{}';
BEGIN
    IF to_regclass('public.task_usage_hourly') IS NULL THEN
        RETURN;
    END IF;
    FOR v_reader IN
        SELECT CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END AS name,
            r.rolname, bool_or(g.is_grantable) AS may_grant, bool_and(g.of_columns) AS of_columns
        FROM (
            SELECT a.grantee, a.is_grantable, false AS of_columns
            FROM pg_class c CROSS JOIN LATERAL aclexplode(COALESCE(c.relacl, acldefault('r', c.relowner))) AS a
            WHERE c.oid IN (to_regclass('public.task_usage_daily'), to_regclass('public.task_usage_dashboard_daily'))
                AND a.privilege_type = 'SELECT'
            UNION ALL
            SELECT a.grantee, a.is_grantable, true
            FROM pg_attribute c CROSS JOIN LATERAL aclexplode(c.attacl) AS a
            WHERE c.attrelid IN (to_regclass('public.task_usage_daily'), to_regclass('public.task_usage_dashboard_daily'))
                AND a.privilege_type = 'SELECT'
        ) AS g
        LEFT JOIN pg_roles r ON r.oid = g.grantee
        WHERE (g.grantee = 0 OR r.oid IS NOT NULL) AND g.grantee <> (
            SELECT h.relowner FROM pg_class h WHERE h.oid = to_regclass('public.task_usage_hourly'))
            AND NOT EXISTS (
                SELECT FROM pg_class h CROSS JOIN LATERAL aclexplode(h.relacl) AS a
                WHERE h.oid = to_regclass('public.task_usage_hourly') AND a.privilege_type = 'SELECT'
                    AND a.grantee = g.grantee)
        GROUP BY g.grantee, r.rolname ORDER BY 1
    LOOP
        BEGIN
            IF v_reader.of_columns THEN
                -- Of columns that the hourly rollup has not got.
                v_left := v_left || v_reader.name;
                CONTINUE;
            END IF;
            EXECUTE format('GRANT SELECT ON public.task_usage_hourly TO %s%s', v_reader.name,
                CASE WHEN v_reader.may_grant THEN ' WITH GRANT OPTION' ELSE '' END);
            IF to_regclass('public.task_usage_hourly_legacy_settings') IS NOT NULL THEN
                INSERT INTO public.task_usage_hourly_legacy_settings (step, kind, relation, name)
                VALUES ('103', 'reader', 'task_usage_hourly', COALESCE(v_reader.rolname, ''));
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN
            v_left := v_left || v_reader.name;
        END;
    END LOOP;
    IF v_left <> '{}' THEN
        RAISE WARNING 'roles that read the legacy rollups may not read the hourly one: GRANT SELECT ON public.task_usage_hourly TO %',
            array_to_string(v_left, ', ');
    END IF;
END
$$;

-- For the way back: owners, grants, comments and the like of all that goes.
DO $$
BEGIN
    IF to_regprocedure('public.rollup_task_usage_hourly_remember_legacy(text)') IS NOT NULL THEN
        PERFORM public.rollup_task_usage_hourly_remember_legacy(text '103');
    END IF;
EXCEPTION WHEN insufficient_privilege OR undefined_table THEN
    RAISE WARNING 'owners and grants of the legacy rollups are not remembered for the way back: %', SQLERRM;
END
$$;

-- IF EXISTS throughout: an old Go runner takes no lock and may have dropped some or all of it.
DROP TRIGGER IF EXISTS trg_atq_dirty_rollup ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_tu_dirty_rollup ON public.task_usage;
DROP TRIGGER IF EXISTS trg_atq_dirty_dashboard ON public.agent_task_queue;
DROP TRIGGER IF EXISTS trg_tu_dirty_dashboard ON public.task_usage;
DROP TRIGGER IF EXISTS trg_issue_delete_dirty_dashboard ON public.issue;
DROP TRIGGER IF EXISTS trg_issue_project_dirty_dashboard ON public.issue;

DROP FUNCTION IF EXISTS public.rollup_task_usage_daily();
DROP FUNCTION IF EXISTS public.rollup_task_usage_daily_window(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_rollup_lag_seconds();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_daily_dirty_for_atq();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_daily_dirty_for_tu();
DROP FUNCTION IF EXISTS public.rollup_task_usage_dashboard_daily();
DROP FUNCTION IF EXISTS public.rollup_task_usage_dashboard_daily_window(timestamptz, timestamptz);
DROP FUNCTION IF EXISTS public.task_usage_dashboard_rollup_lag_seconds();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_atq();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_tu();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_issue_delete();
DROP FUNCTION IF EXISTS public.enqueue_task_usage_dashboard_dirty_for_issue_project();

-- The tables go, or move to schema legacy_usage: when the operator says so (-x keep-legacy), and, unless
-- the operator says otherwise, when they hold totals that raw usage cannot reproduce, or usage is set
-- aside that the hourly rollup does not show.
DO $legacy$
DECLARE
    v_role CONSTANT text := current_user;
    v_choice CONSTANT text := COALESCE(current_setting('usage_rollup.keep_legacy', true), '');
    v_tables text[] := ARRAY(
        SELECT t FROM unnest(ARRAY[
            'task_usage_daily', 'task_usage_daily_dirty', 'task_usage_rollup_state',
            'task_usage_dashboard_daily', 'task_usage_dashboard_dirty', 'task_usage_dashboard_rollup_state']) AS t
        WHERE to_regclass('public.' || t) IS NOT NULL);
    v_schema text := 'legacy_usage';
    v_copies int := 1;
    v_reason text;
    v_table text;
BEGIN
    IF v_choice = 'true' THEN
        v_reason := 'as asked for';
    ELSIF v_choice <> 'false' AND to_regclass('public.task_usage_hourly_set_aside') IS NOT NULL THEN
        -- The hook compares before the locks are taken, and leaves what it found in this session.
        v_reason := COALESCE(
            NULLIF(current_setting('usage_rollup.legacy_excess', true), ''),
            (SELECT COUNT(*)::text FROM public.task_usage_hourly_legacy_excess()));
        v_reason := CASE WHEN v_reason <> '0' THEN v_reason || ' daily totals exist only there' END;
        IF EXISTS (SELECT FROM public.task_usage_hourly_set_aside)
            OR EXISTS (SELECT FROM public.task_usage_hourly_undated())
        THEN
            v_reason := concat_ws(', and ', v_reason, 'some usage is set aside');
        END IF;
    END IF;

    IF v_reason IS NULL THEN
        FOREACH v_table IN ARRAY v_tables LOOP
            EXECUTE format('DROP TABLE public.%I', v_table);
        END LOOP;
    ELSIF cardinality(v_tables) > 0 THEN
        -- Kept before, and rebuilt by a downgrade since: the older copy may hold what this one does not. Nor is a
        -- schema of that name any use that is somebody else's.
        WHILE EXISTS (
            SELECT FROM pg_namespace AS n JOIN pg_roles AS o ON o.oid = n.nspowner
            WHERE n.nspname = v_schema AND NOT ((o.rolsuper OR o.rolname = v_role)
                AND has_schema_privilege(v_role, n.oid, 'CREATE') AND has_schema_privilege(v_role, n.oid, 'USAGE')
                AND NOT EXISTS (
                    SELECT FROM pg_class AS c
                    WHERE c.relnamespace = n.oid AND (c.relname = ANY (v_tables) OR c.relname IN (
                        SELECT i.relname FROM unnest(v_tables) AS t
                        JOIN pg_index AS x ON x.indrelid = to_regclass('public.' || t)
                        JOIN pg_class AS i ON i.oid = x.indexrelid)))
                AND NOT EXISTS (
                    SELECT FROM pg_type AS y
                    WHERE y.typnamespace = n.oid AND y.typname IN (
                        SELECT z.typname FROM unnest(v_tables) AS t
                        JOIN pg_class AS c ON c.oid = to_regclass('public.' || t)
                        JOIN pg_type AS z ON z.oid = c.reltype OR z.typelem = c.reltype)))
        ) LOOP
            v_copies := v_copies + 1;
            v_schema := 'legacy_usage_' || v_copies;
        END LOOP;
        IF to_regnamespace(v_schema) IS NULL THEN
            -- As the role that began: only the owner of the database may make a schema.
            PERFORM set_config('role', COALESCE(NULLIF(current_setting('usage_rollup.began_as', true), ''), 'none'), true);
            IF NOT has_database_privilege(current_database(), 'CREATE') THEN
                RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                    MESSAGE = format('role %s may not create schema %s to keep the legacy rollups in',
                        current_user, v_schema),
                    DETAIL = format('They are to be kept: %s.', v_reason),
                    HINT = format('GRANT CREATE ON DATABASE %I TO %I, or drop them: alembic -x keep-legacy=false upgrade head',
                        current_database(), current_user);
            END IF;
            EXECUTE format('CREATE SCHEMA %I AUTHORIZATION %I', v_schema, v_role);
            PERFORM set_config('role', v_role, true);
        END IF;
        FOREACH v_table IN ARRAY v_tables LOOP
            EXECUTE format('ALTER TABLE public.%I SET SCHEMA %I', v_table, v_schema);
        END LOOP;
        RAISE WARNING 'the legacy rollups are kept in schema %: %', v_schema, v_reason;
    END IF;
END
$legacy$;
