-- Undo 103_drop_legacy_daily_rollups, once 097's part 20_legacy_rollups.sql has made both legacy pipelines
-- again: put into their tables, and say by their watermarks, what a v0.3.4 server expects.
--
-- Where 103 kept the tables in schema legacy_usage, the newest copy moves back and is rolled forward, by
-- its own windows, from its own watermarks to now; what only the copy holds stays. Not in it: what was
-- moved or deleted since 103, which no trigger queued. A row of a task that moved stays under the old
-- key until that key is queued or reported again, and so does a row whose raw rows were deleted. A row
-- of which some raw rows are gone becomes the sum of the rest when it is reported again, as at v0.3.4. Days
-- are cut by the zones runtimes have now, and after 104 that is UTC: the day on which the copy ends may
-- then hold some hours twice or miss them.
--
-- Otherwise, also where somebody dropped one of the six, both rollups are built from raw rows, by one
-- aggregate each: the windows would read every row three times. Sums beyond bigint saturate. Left out,
-- with a warning, is usage that no window could file either: undated, or too long for an index.
--
-- Watermarks: no later than the start of any transaction that may still write.
--
-- Assumes: that part, applied in the same transaction, before this file; agent_runtime.timezone is back (104
--   undone); our 102 is installed; READ COMMITTED.
-- Locks: ACCESS EXCLUSIVE on agent_task_queue, issue and task_usage, so nothing is written meanwhile, and on
--   the kept tables.
-- Owners, grants, comments, replica identity and the like are again what they were before 103. Roles that are
-- gone since, and what the owner of task_usage may not do, are named in a warning.
--
-- Not brought back: legacy rows that 103 dropped and raw rows do not tell, the pg_cron jobs, policies, and places
-- in publications that name a table.

-- What 103 let others read, and they others; a role that is gone has nothing left.
DO $readers$
DECLARE
    v_reader text;
BEGIN
    FOR v_reader IN
        SELECT CASE s.name WHEN '' THEN 'PUBLIC' ELSE quote_ident(s.name) END
        FROM public.task_usage_hourly_legacy_settings AS s
        WHERE s.step = '103' AND s.kind = 'reader' AND (s.name = '' OR s.name IN (SELECT r.rolname FROM pg_roles AS r))
    LOOP
        EXECUTE format('REVOKE SELECT ON public.task_usage_hourly FROM %s CASCADE', v_reader);
    END LOOP;
    DELETE FROM public.task_usage_hourly_legacy_settings AS s WHERE s.step = '103' AND s.kind = 'reader';
END
$readers$;

DO $legacy$
DECLARE
    v_tables CONSTANT text[] := ARRAY[
        'task_usage_daily', 'task_usage_daily_dirty', 'task_usage_rollup_state',
        'task_usage_dashboard_daily', 'task_usage_dashboard_dirty', 'task_usage_dashboard_rollup_state'];
    v_watermark timestamptz;
    v_schema text;
    v_kept text[];
    v_table record;
    v_back text[] := '{}';
    v_statement text;
    v_name text;
    v_zone text;
    v_zones text[] := '{}';
    v_left_out bigint;
BEGIN
    -- Read before any snapshot that relies on it. Nobody writes usage under this lock, but whoever is in a
    -- transaction may do so yet, dated with its start, and no trigger queues that for the legacy rollups. Where a
    -- session hides its start, a day (one tick) before the hourly watermark: v0.3.4 itself waits five minutes.
    PERFORM pg_stat_clear_snapshot();
    v_watermark := public.task_usage_hourly_horizon(interval '2 seconds');
    SELECT CASE WHEN bool_or(s.xact_start IS NULL) THEN '-infinity' ELSE LEAST(v_watermark, MIN(s.xact_start)) END
    INTO v_watermark
    FROM pg_stat_activity AS s
    LEFT JOIN pg_locks AS l ON l.pid = s.pid AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock'
    WHERE s.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        AND s.pid <> pg_backend_pid() AND s.usesysid IS NOT NULL AND num_nonnulls(s.xact_start, l.pid) > 0;
    IF v_watermark = '-infinity' THEN
        SELECT MIN(s.watermark_at) - interval '1 day' INTO v_watermark
        FROM public.task_usage_hourly_rollup_state AS s WHERE s.watermark_at < now();
    END IF;
    v_watermark := GREATEST(v_watermark, 'epoch');

    SELECT n.nspname, array_agg(c.relname::text) INTO v_schema, v_kept
    FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
    WHERE n.nspname ~ '^legacy_usage(_[0-9]+)?$' AND c.relkind = 'r' AND c.relname = ANY (v_tables)
    GROUP BY n.nspname ORDER BY length(n.nspname) DESC, n.nspname DESC LIMIT 1;

    IF v_kept @> v_tables THEN
        FOREACH v_name IN ARRAY v_tables LOOP
            EXECUTE format('DROP TABLE public.%I', v_name);
            EXECUTE format('ALTER TABLE %I.%I SET SCHEMA public', v_schema, v_name);
        END LOOP;
        BEGIN
            EXECUTE format('DROP SCHEMA %I', v_schema);
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
            NULL; -- Something else is in it, or it is somebody else's.
        END;
        RAISE WARNING 'the legacy rollups are back from schema %', v_schema;

        -- Under a publication FOR ALL TABLES the windows may change only tables with a replica identity.
        FOR v_table IN
            SELECT c.oid::regclass AS name, CASE c.relreplident WHEN 'n' THEN 'NOTHING' ELSE 'DEFAULT' END AS identity
            FROM pg_class AS c
            WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (v_tables) AND CASE c.relreplident
                WHEN 'd' THEN NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
                WHEN 'n' THEN true END
        LOOP
            EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', v_table.name);
            v_back := v_back || format('ALTER TABLE %s REPLICA IDENTITY %s', v_table.name, v_table.identity);
        END LOOP;
        FOREACH v_name IN ARRAY ARRAY['', '_dashboard'] LOOP
            BEGIN
                EXECUTE format(
                    'SELECT public.rollup_task_usage%1$s_daily_window(s.watermark_at, timestamptz ''infinity'')'
                    ' FROM public.task_usage%1$s_rollup_state AS s', v_name);
                EXECUTE format(
                    'UPDATE public.task_usage%s_rollup_state SET watermark_at = GREATEST(watermark_at, $1)', v_name)
                USING v_watermark;
            EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
                -- Usage that stops a window stopped v0.3.4 as well; queue and watermark say where.
                RAISE WARNING 'task_usage%_daily stays as it was kept, not rolled forward: %', v_name, SQLERRM;
            END;
        END LOOP;
        FOREACH v_statement IN ARRAY v_back LOOP
            EXECUTE v_statement;
        END LOOP;
        -- They bring along how they are set; the functions and triggers that were made again do not.
        DELETE FROM public.task_usage_hourly_legacy_settings WHERE step = '103' AND kind NOT IN ('function', 'trigger');
        RETURN;
    END IF;

    IF v_kept IS NOT NULL THEN
        RAISE WARNING 'schema % holds only %: both legacy rollups are built from raw usage, and what is there stays',
            v_schema, array_to_string(v_kept, ', ');
    END IF;

    FOR v_zone IN SELECT DISTINCT r.timezone FROM public.agent_runtime AS r LOOP
        BEGIN
            PERFORM now() AT TIME ZONE v_zone;
            v_zones := v_zones || v_zone;
        EXCEPTION WHEN invalid_parameter_value THEN
            RAISE WARNING 'PostgreSQL knows no time zone %: days of its runtimes are those of UTC', v_zone;
        END;
    END LOOP;

    SELECT COUNT(*) INTO v_left_out FROM public.task_usage AS tu
    WHERE NOT public.task_usage_hourly_dated(tu.created_at)
        OR octet_length(tu.provider) + octet_length(tu.model) > 2600;
    IF v_left_out > 0 THEN
        RAISE WARNING '% usage rows are left out of the legacy rollups: undated, or of a model name too long', v_left_out;
    END IF;

    INSERT INTO public.task_usage_daily (
        bucket_date, workspace_id, runtime_id, provider, model,
        input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, event_count)
    SELECT
        (tu.created_at AT TIME ZONE r.zone)::date, a.workspace_id, q.runtime_id, tu.provider, tu.model,
        public.task_usage_hourly_sum(sum(tu.input_tokens)),
        public.task_usage_hourly_sum(sum(tu.output_tokens)),
        public.task_usage_hourly_sum(sum(tu.cache_read_tokens)),
        public.task_usage_hourly_sum(sum(tu.cache_write_tokens)),
        count(*)
    FROM public.task_usage AS tu
    JOIN public.agent_task_queue AS q ON q.id = tu.task_id
    JOIN public.agent AS a ON a.id = q.agent_id
    JOIN (SELECT id, CASE WHEN timezone = ANY (v_zones) THEN timezone ELSE 'UTC' END AS zone
          FROM public.agent_runtime) AS r ON r.id = q.runtime_id
    WHERE public.task_usage_hourly_dated(tu.created_at)
        AND octet_length(tu.provider) + octet_length(tu.model) <= 2600
    GROUP BY 1, 2, 3, 4, 5;

    INSERT INTO public.task_usage_dashboard_daily (
        bucket_date, workspace_id, agent_id, project_id, model,
        input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count)
    SELECT
        (tu.created_at AT TIME ZONE 'UTC')::date, a.workspace_id, q.agent_id, i.project_id, tu.model,
        public.task_usage_hourly_sum(sum(tu.input_tokens)),
        public.task_usage_hourly_sum(sum(tu.output_tokens)),
        public.task_usage_hourly_sum(sum(tu.cache_read_tokens)),
        public.task_usage_hourly_sum(sum(tu.cache_write_tokens)),
        count(DISTINCT tu.task_id), count(*)
    FROM public.task_usage AS tu
    JOIN public.agent_task_queue AS q ON q.id = tu.task_id
    JOIN public.agent AS a ON a.id = q.agent_id
    LEFT JOIN public.issue AS i ON i.id = q.issue_id
    WHERE public.task_usage_hourly_dated(tu.created_at)
        AND octet_length(tu.provider) + octet_length(tu.model) <= 2600
    GROUP BY 1, 2, 3, 4, 5;

    UPDATE public.task_usage_rollup_state SET watermark_at = v_watermark WHERE id = 1;
    UPDATE public.task_usage_dashboard_rollup_state SET watermark_at = v_watermark WHERE id = 1;
END
$legacy$;

DO $settings$
DECLARE
    v_table record;
BEGIN
    PERFORM public.rollup_task_usage_hourly_restore_legacy(text '103');

    -- Published and without a key that tells its rows apart, a queue would refuse what the server's own UPDATE of
    -- a task puts into it, and the server's transaction would fail.
    FOR v_table IN
        SELECT format('public.%I', c.relname) AS name, pg_get_userbyid(c.relowner) AS owner FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname IN (
                'task_usage_daily', 'task_usage_daily_dirty', 'task_usage_rollup_state',
                'task_usage_dashboard_daily', 'task_usage_dashboard_dirty', 'task_usage_dashboard_rollup_state')
            AND EXISTS (
                SELECT FROM pg_publication_tables AS t JOIN pg_publication AS p USING (pubname)
                WHERE t.schemaname = 'public' AND t.tablename = c.relname AND (p.pubupdate OR p.pubdelete))
            AND CASE c.relreplident
                WHEN 'd' THEN NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
                WHEN 'n' THEN true END
    LOOP
        PERFORM public.rollup_task_usage_hourly_restore_setting(
            v_table.owner, format('ALTER TABLE %s REPLICA IDENTITY FULL', v_table.name));
    END LOOP;
END
$settings$;
