-- 102, part 12_legacy_settings: how that which 102 to 104 alter or drop was set, for the way back.
--
-- Remembered are names and values, never SQL to run. A row is written on the way up and used up on the way
-- back. Not remembered, because it is somebody's code or belongs to something else: policies, rules, triggers
-- and indexes of others, statistics, and publications that name a table.

CREATE TABLE IF NOT EXISTS public.task_usage_hourly_legacy_settings (
    step text NOT NULL,
    kind text NOT NULL,
    -- The table, or '' for a function; then what belongs to the table, '' for itself. Of a reader whom 103 gave
    -- SELECT the role, '' for PUBLIC.
    relation text NOT NULL,
    name text NOT NULL,
    owner text,
    acl jsonb,
    comment text,
    replica_identity text,
    replica_index text,
    options text [],
    enabled text,
    security_definer boolean,
    CONSTRAINT pk_task_usage_hourly_legacy_settings PRIMARY KEY (step, kind, relation, name)
);

COMMENT ON TABLE public.task_usage_hourly_legacy_settings IS
    'Private: owners, grants, comments and the like of what 102 to 104 alter or drop, for the way back.';

-- Rights by the names of roles, NULL for PUBLIC, in the order in which they were given. Who gave them is
-- left out: on the way back the owner does.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_acl(p_acl aclitem [])
RETURNS jsonb LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT COALESCE(jsonb_agg(jsonb_build_object(
        'role', CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END,
        'right', a.privilege_type, 'grantable', a.is_grantable) ORDER BY a.n), '[]')
    FROM aclexplode(p_acl) WITH ORDINALITY AS a (grantor, grantee, privilege_type, is_grantable, n)
$$;

-- How that which a step alters or drops is set now; nothing where it is not there.
CREATE OR REPLACE FUNCTION public.task_usage_hourly_legacy_settings_now(p_step text)
RETURNS SETOF public.task_usage_hourly_legacy_settings
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    WITH tables AS (
        SELECT c.* FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname = ANY (CASE p_step
            WHEN '102' THEN ARRAY['task_usage_hourly', 'task_usage_hourly_dirty', 'task_usage_hourly_rollup_state']
            WHEN '103' THEN ARRAY[
                'task_usage_daily', 'task_usage_daily_dirty', 'task_usage_rollup_state',
                'task_usage_dashboard_daily', 'task_usage_dashboard_dirty', 'task_usage_dashboard_rollup_state']
            END)
    ), columns AS (
        SELECT a.* FROM pg_attribute a
        WHERE a.attnum > 0 AND NOT a.attisdropped AND (a.attrelid IN (SELECT t.oid FROM tables t)
            OR (p_step, a.attrelid, a.attname) = ('104', to_regclass('public.agent_runtime'), 'timezone'))
    ), functions AS (
        SELECT p.*, f.signature FROM unnest(ARRAY[
            'rollup_task_usage_daily()', 'rollup_task_usage_daily_window(timestamptz,timestamptz)',
            'task_usage_rollup_lag_seconds()', 'enqueue_task_usage_daily_dirty_for_atq()',
            'enqueue_task_usage_daily_dirty_for_tu()', 'rollup_task_usage_dashboard_daily()',
            'rollup_task_usage_dashboard_daily_window(timestamptz,timestamptz)',
            'task_usage_dashboard_rollup_lag_seconds()', 'enqueue_task_usage_dashboard_dirty_for_atq()',
            'enqueue_task_usage_dashboard_dirty_for_tu()', 'enqueue_task_usage_dashboard_dirty_for_issue_delete()',
            'enqueue_task_usage_dashboard_dirty_for_issue_project()']) AS f (signature)
        JOIN pg_proc p ON p.oid = to_regprocedure('public.' || f.signature)
        WHERE p_step = '103'
    )
    SELECT p_step, 'table', t.relname::text, ''::text, pg_get_userbyid(t.relowner),
        public.task_usage_hourly_acl(COALESCE(t.relacl, acldefault('r', t.relowner))), obj_description(t.oid, 'pg_class'),
        CASE t.relreplident WHEN 'd' THEN 'DEFAULT' WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' ELSE 'INDEX' END,
        (SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
         WHERE i.indrelid = t.oid AND i.indisreplident AND t.relreplident = 'i'),
        t.reloptions, NULL, NULL::boolean
    FROM tables t
    UNION ALL
    SELECT p_step, 'column', c.relname, a.attname, NULL, public.task_usage_hourly_acl(a.attacl),
        col_description(c.oid, a.attnum), NULL, NULL, NULL, NULL, NULL
    FROM columns a JOIN pg_class c ON c.oid = a.attrelid
    UNION ALL
    SELECT p_step, 'index', t.relname, x.relname, NULL, NULL, obj_description(x.oid, 'pg_class'), NULL, NULL,
        x.reloptions, NULL, NULL
    FROM tables t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class x ON x.oid = i.indexrelid
    UNION ALL
    SELECT p_step, 'constraint', t.relname, n.conname, NULL, NULL, obj_description(n.oid, 'pg_constraint'), NULL, NULL,
        NULL, NULL, NULL
    FROM tables t JOIN pg_constraint n ON n.conrelid = t.oid
    UNION ALL
    SELECT p_step, 'function', '', f.signature, pg_get_userbyid(f.proowner),
        public.task_usage_hourly_acl(COALESCE(f.proacl, acldefault('f', f.proowner))), obj_description(f.oid, 'pg_proc'),
        NULL, NULL, NULL, NULL, f.prosecdef
    FROM functions f
    UNION ALL
    SELECT p_step, 'trigger', c.relname, g.tgname, NULL, NULL, obj_description(g.oid, 'pg_trigger'), NULL, NULL, NULL,
        CASE g.tgenabled WHEN 'O' THEN 'ENABLE' WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA'
            ELSE 'ENABLE ALWAYS' END, NULL
    FROM functions f JOIN pg_trigger g ON g.tgfoid = f.oid JOIN pg_class c ON c.oid = g.tgrelid
    WHERE c.relnamespace = 'public'::regnamespace AND NOT g.tgisinternal
$$;

-- Called by a step on the way up, before it drops anything. What is gone already, because the product's own
-- runner was here, stays as it was last remembered.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_remember_legacy(p_step text)
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    INSERT INTO public.task_usage_hourly_legacy_settings AS s
    SELECT n.* FROM public.task_usage_hourly_legacy_settings_now(p_step) n
    ON CONFLICT (step, kind, relation, name) DO UPDATE SET owner = EXCLUDED.owner, acl = EXCLUDED.acl,
        comment = EXCLUDED.comment, replica_identity = EXCLUDED.replica_identity,
        replica_index = EXCLUDED.replica_index, options = EXCLUDED.options, enabled = EXCLUDED.enabled,
        security_definer = EXCLUDED.security_definer
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_remember_legacy(text) IS
    'Write down how that which a step is about to alter or drop is set.';

-- As an owner who lends their rights only to who becomes them; what is refused is left to the operator.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_restore_setting(p_owner text, p_statement text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_role CONSTANT text := current_user;
BEGIN
    IF NOT pg_has_role(p_owner, 'USAGE') AND pg_has_role(p_owner, 'MEMBER') THEN
        PERFORM set_config('role', p_owner, true);
    END IF;
    EXECUTE p_statement;
    PERFORM set_config('role', v_role, true);
EXCEPTION WHEN syntax_error_or_access_rule_violation OR invalid_grant_operation OR invalid_parameter_value
    OR object_not_in_prerequisite_state
THEN
    RAISE WARNING 'not as it was before the upgrade: % (%)', p_statement, SQLERRM;
END
$$;

-- Called by a step on the way back, after it has made things again. Every statement is put together here,
-- for things that are in the catalog and only where they differ; what was remembered fills in values and
-- names, quoted. All run as the owner of task_usage and those whom it may become, who may write these rows
-- as well: nobody lends it more rights.
CREATE OR REPLACE FUNCTION public.rollup_task_usage_hourly_restore_legacy(p_step text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
DECLARE
    v_gone text;
    v_owner text;
    v_statement text;
BEGIN
    SELECT string_agg(r.role, ', ' ORDER BY r.role) INTO v_gone
    FROM (
        SELECT s.owner AS role FROM public.task_usage_hourly_legacy_settings s WHERE s.step = p_step
        UNION
        SELECT g.role FROM public.task_usage_hourly_legacy_settings s
        CROSS JOIN jsonb_to_recordset(s.acl) AS g (role text) WHERE s.step = p_step
    ) AS r WHERE r.role NOT IN (SELECT p.rolname FROM pg_roles p);
    IF v_gone IS NOT NULL THEN
        RAISE WARNING 'what belonged to roles that are gone, or was granted to them, is not given back: %', v_gone;
    END IF;

    -- Owners first, because they own the rights as well.
    FOR v_owner, v_statement IN
        SELECT n.owner, format('ALTER %s public.%s OWNER TO %I', upper(n.kind),
            CASE n.kind WHEN 'table' THEN quote_ident(n.relation) ELSE n.name END, s.owner)
        FROM public.task_usage_hourly_legacy_settings s
        JOIN public.task_usage_hourly_legacy_settings_now(p_step) n USING (step, kind, relation, name)
        WHERE s.owner <> n.owner AND s.step <> '102' AND s.owner IN (SELECT p.rolname FROM pg_roles p)
        ORDER BY n.kind, n.relation, n.name
    LOOP
        PERFORM public.rollup_task_usage_hourly_restore_setting(v_owner, v_statement);
    END LOOP;

    FOR v_owner, v_statement IN
        WITH things AS (
            SELECT s.*, n.owner AS owner_now, n.acl AS acl_now, n.comment AS comment_now,
                n.replica_identity AS replica_identity_now, n.replica_index AS replica_index_now,
                n.options AS options_now, n.enabled AS enabled_now, n.security_definer AS security_definer_now,
                COALESCE(n.owner, (SELECT pg_get_userbyid(c.relowner) FROM pg_class c
                    WHERE c.oid = to_regclass(format('public.%I', n.relation)))) AS runs_as,
                CASE n.kind WHEN 'function' THEN 'public.' || n.name ELSE format('public.%I', n.relation) END AS whole,
                CASE n.kind WHEN 'table' THEN format('TABLE public.%I', n.relation)
                    WHEN 'column' THEN format('COLUMN public.%I.%I', n.relation, n.name)
                    WHEN 'index' THEN format('INDEX public.%I', n.name)
                    WHEN 'function' THEN 'FUNCTION public.' || n.name
                    ELSE format('%s %I ON public.%I', upper(n.kind), n.name, n.relation) END AS thing
            FROM public.task_usage_hourly_legacy_settings s
            JOIN public.task_usage_hourly_legacy_settings_now(p_step) n USING (step, kind, relation, name)
        ), rights AS (
            SELECT t.thing, g.role, g.grantable, MIN(g.n) AS n, string_agg(
                concat(g."right", CASE t.kind WHEN 'column' THEN format(' (%I)', t.name) END), ', ' ORDER BY g.n) AS list
            FROM things t
            CROSS JOIN ROWS FROM (jsonb_to_recordset(t.acl) AS (role text, "right" text, grantable boolean))
                WITH ORDINALITY AS g (role, "right", grantable, n)
            WHERE (g.role IS NULL OR g.role IN (SELECT p.rolname FROM pg_roles p)) AND g."right" IN (
                'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN', 'EXECUTE')
            GROUP BY 1, 2, 3
        ), statements (thing, runs_as, n, statement) AS (
            SELECT t.thing, t.runs_as, -2, format('COMMENT ON %s IS %L', t.thing, t.comment)
            FROM things t WHERE t.comment IS DISTINCT FROM t.comment_now
            UNION ALL
            SELECT t.thing, t.runs_as, -2, format('ALTER %s REPLICA IDENTITY %s', t.thing, CASE t.replica_identity
                WHEN 'FULL' THEN 'FULL' WHEN 'NOTHING' THEN 'NOTHING'
                WHEN 'INDEX' THEN format('USING INDEX %I', t.replica_index) ELSE 'DEFAULT' END)
            FROM things t
            WHERE (t.replica_identity, t.replica_index)
                IS DISTINCT FROM (t.replica_identity_now, t.replica_index_now)
            UNION ALL
            SELECT t.thing, t.runs_as, -2, format('ALTER %s SET (%s)', t.thing, (
                SELECT string_agg(format('%I = %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ')
                FROM unnest(t.options) AS o))
            FROM things t WHERE t.options IS DISTINCT FROM t.options_now AND t.options <> '{}' AND t.step <> '102'
            UNION ALL
            SELECT t.thing, t.runs_as, -2, format('ALTER TABLE %s %s TRIGGER %I', t.whole, CASE t.enabled
                WHEN 'DISABLE' THEN 'DISABLE' WHEN 'ENABLE REPLICA' THEN 'ENABLE REPLICA'
                WHEN 'ENABLE ALWAYS' THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END, t.name)
            FROM things t WHERE t.enabled <> t.enabled_now
            UNION ALL
            SELECT t.thing, t.runs_as, -2, format('ALTER %s SECURITY DEFINER', t.thing)
            FROM things t WHERE t.security_definer AND NOT t.security_definer_now
            UNION ALL
            -- An owner who is not the one there was keeps what is theirs.
            SELECT DISTINCT t.thing, t.runs_as, -1, format('REVOKE ALL%s ON %s FROM %s',
                CASE t.kind WHEN 'column' THEN format(' (%I)', t.name) END,
                CASE t.kind WHEN 'function' THEN t.thing ELSE t.whole END,
                COALESCE(quote_ident(g.role), 'PUBLIC'))
            FROM things t CROSS JOIN jsonb_to_recordset(t.acl_now) AS g (role text)
            WHERE t.acl <> t.acl_now AND t.step <> '102' AND (t.owner = t.owner_now OR g.role IS DISTINCT FROM t.owner_now)
            UNION ALL
            SELECT t.thing, t.runs_as, r.n, format('GRANT %s ON %s TO %s%s', r.list,
                CASE t.kind WHEN 'function' THEN t.thing ELSE t.whole END,
                COALESCE(quote_ident(r.role), 'PUBLIC'), CASE WHEN r.grantable THEN ' WITH GRANT OPTION' END)
            FROM things t JOIN rights r USING (thing)
            WHERE t.acl <> t.acl_now AND t.step <> '102'
        )
        -- Columns after their tables: what is revoked on the table is revoked on each of them.
        SELECT a.runs_as, a.statement FROM statements a
        ORDER BY starts_with(a.thing, 'COLUMN'), a.thing, a.n, a.statement
    LOOP
        PERFORM public.rollup_task_usage_hourly_restore_setting(v_owner, v_statement);
    END LOOP;
    DELETE FROM public.task_usage_hourly_legacy_settings s WHERE s.step = p_step;
END
$$;

COMMENT ON FUNCTION public.rollup_task_usage_hourly_restore_legacy(text) IS
    'Set what a step''s way back has made again as it was set before the step.';
