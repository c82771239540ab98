-- The checks that preflight, upgrade, downgrade and scripts share: each a query of (message, hint) over the
-- catalog, no rows where nothing is wrong. checks.py closes the gaps, and puts `who` (session/suitability.sql) and
-- the three queries below before them. They read, and lock nothing that a server could notice.

-- name: trusted
-- Who may own what we read, write or call: who could act for the owner of task_usage anyway, the groups it and
-- the session belong to, and superusers.
groups (oid) AS (
    (SELECT owner FROM who UNION SELECT me FROM who)
    UNION
    SELECT m.roleid FROM groups AS g JOIN pg_auth_members AS m ON m.member = g.oid
), trusted (oid) AS (
    SELECT r.oid FROM pg_roles AS r
    WHERE r.rolsuper OR r.oid IN (SELECT g.oid FROM groups AS g)
        OR pg_has_role(r.oid, (SELECT owner FROM who), 'MEMBER')
)

-- name: public_objects
-- Relations and functions of schema public that bear a name the steps care for.
relations AS (
    SELECT c.*, format('public.%I', c.relname) AS whole,
        CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'i' THEN 'index'
            WHEN 'I' THEN 'index' WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'type'
            ELSE 'table' END AS kind,
        c.relname = ANY (:altered_tables) AS altered
    FROM pg_class AS c
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
), functions AS (
    SELECT p.oid, p.proname, p.proowner, p.prokind,
        CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END AS kind,
        format('public.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) AS whole,
        f.altered, f.made, f.used, replace(oidvectortypes(p.proargtypes), 'public.', '') <> f.types AS overload,
        p.prokind = 'f' AND p.pronargdefaults <= f.defaults
            AND replace(pg_get_function_result(p.oid), 'public.', '') = f.result
            AND COALESCE(p.proargnames[1:p.pronargs], '{}') = f.arguments AS fits
    FROM jsonb_to_recordset(:functions) AS f (
        name text, arguments text[], types text, defaults int, result text, altered boolean, made boolean, used boolean)
    JOIN pg_proc AS p ON p.proname = f.name AND p.pronargs = cardinality(f.arguments)
    WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
)

-- name: ledgers
-- Written by the session's own role, and read before anything else is known.
SELECT format('%s %s is not what a version table is', r.kind, r.relname) AS message,
    format('DROP %s %s; or where somebody needs it, :another_table', upper(r.kind), r.whole) AS hint
FROM relations AS r WHERE r.relname = :version_table AND (r.kind <> 'table' OR NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = r.oid AND a.attname = 'version_num'))
UNION ALL
SELECT format('%s %s belongs to %s, who is neither the owner of task_usage nor a superuser', r.kind, r.relname,
        pg_get_userbyid(r.relowner)),
    format('ALTER TABLE %s OWNER TO %I%s', r.whole, w.owner_name,
        CASE WHEN r.relname = :version_table THEN '; or where it is another application''s, :another_table' ELSE '' END)
FROM relations AS r, who AS w
WHERE r.relname IN (:version_table, 'schema_migrations') AND r.kind = 'table'
    AND r.relowner NOT IN (SELECT t.oid FROM trusted AS t)
UNION ALL
SELECT format('%s %s on %s would be run by every step', x.kind, x.name, r.relname),
    format('DROP %s %I ON %s', upper(x.kind), x.name, r.whole)
FROM relations AS r
JOIN (
    SELECT 'trigger' AS kind, t.tgname AS name, t.tgrelid AS relation, p.proowner AS owner
    FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'rule', w.rulename, w.ev_class, c.relowner
    FROM pg_rewrite AS w JOIN pg_class AS c ON c.oid = w.ev_class WHERE w.rulename <> '_RETURN'
) AS x ON x.relation = r.oid
-- On the product's ledger somebody may rely on one; it is none of ours.
WHERE r.relname = :version_table
    OR r.relname = 'schema_migrations' AND x.owner NOT IN (SELECT t.oid FROM trusted AS t)
UNION ALL
SELECT q.message, q.hint FROM (
    :row_security
) AS q
WHERE EXISTS (
    SELECT FROM relations AS r
    WHERE r.relname IN (:version_table, 'schema_migrations') AND r.relkind IN ('r', 'p') AND row_security_active(r.oid))
UNION ALL
-- Who cannot act for the owner lacks what the owner may do, and is told that.
SELECT format('role %s may not read %s', w.role, r.relname),
    format('GRANT %s ON %s TO %I', string_agg(p.privilege, ', ' ORDER BY p.n), r.whole, w.role)
FROM who AS w, relations AS r
CROSS JOIN unnest(CASE WHEN r.relname = :version_table THEN ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']
    WHEN :up THEN ARRAY['SELECT', 'INSERT'] ELSE ARRAY['SELECT', 'DELETE'] END) WITH ORDINALITY AS p (privilege, n)
WHERE r.relname IN (:version_table, 'schema_migrations') AND r.kind IN ('table', 'view')
    AND NOT has_table_privilege(r.oid, 'SELECT') AND NOT has_table_privilege(r.oid, p.privilege)
    AND (pg_has_role(w.me, w.owner, 'USAGE') OR NOT has_table_privilege(w.owner, r.oid, 'SELECT'))
GROUP BY w.role, r.relname, r.whole

-- name: unreadable
SELECT q.message, q.hint FROM (
    :acting
) AS q
WHERE EXISTS (
    SELECT FROM relations AS r
    WHERE r.relname IN (:version_table, 'schema_migrations') AND r.kind = 'table'
        AND NOT has_table_privilege(r.oid, 'SELECT'))

-- name: writing
-- The version table and the ledger, once something is to be recorded in them.
SELECT format('role %s may not write %s: it lacks %s', w.role, r.relname, string_agg(p.privilege, ', ')) AS message,
    format('GRANT %s ON %s TO %I', string_agg(p.privilege, ', '), r.whole, w.role) AS hint
FROM who AS w, relations AS r
CROSS JOIN unnest(CASE WHEN r.relname = :version_table THEN ARRAY['INSERT', 'UPDATE', 'DELETE']
    WHEN :up THEN ARRAY['INSERT'] ELSE ARRAY['DELETE'] END) AS p (privilege)
WHERE :writes AND r.relname IN (:version_table, 'schema_migrations')
    AND NOT has_table_privilege(r.oid, p.privilege) AND pg_has_role(w.me, w.owner, 'USAGE')
GROUP BY w.role, r.relname, r.whole
UNION ALL
-- Alembic makes its table as the session's role, the steps make theirs as the owner.
SELECT format('role %s may not create objects in schema public', r.name),
    format('GRANT CREATE ON SCHEMA public TO %I', r.name)
FROM (
    SELECT w.role FROM who AS w
    WHERE :writes AND pg_has_role(w.me, w.owner, 'USAGE') AND :version_table NOT IN (SELECT r.relname FROM relations AS r)
    UNION
    SELECT w.owner_name FROM who AS w WHERE :creates
    UNION
    -- The hook builds what an unfinished walk has dropped.
    SELECT w.role FROM who AS w
    WHERE :backfills AND EXISTS (SELECT FROM relations AS r WHERE r.relname = 'task_usage_hourly') AND EXISTS (
        SELECT FROM unnest(:built_by_the_walk) AS i (name) WHERE to_regclass(format('public.%I', i.name)) IS NULL)
) AS r (name)
WHERE NOT has_schema_privilege(r.name, 'public', 'CREATE')

-- name: owners
-- The steps run as the owner of task_usage, who must be able to alter what they alter; and what belongs to
-- nobody we trust could be replaced under a function that runs with our rights.
SELECT format('not all that the steps alter or call belongs to the owner of task_usage, %s: %s', w.owner_name,
        string_agg(format('%s %s (%s)', o.kind, replace(o.whole, 'public.', ''), pg_get_userbyid(o.owner)), ', '
            ORDER BY o.kind <> 'table', o.whole)) AS message,
    string_agg(format('ALTER %s %s OWNER TO %I', upper(o.kind), o.whole, w.owner_name), '; '
        ORDER BY o.kind <> 'table', o.whole) AS hint
FROM who AS w
JOIN (
    SELECT r.kind, r.whole, r.relowner AS owner, r.altered, r.relname = ANY (:hourly_tables) AS used FROM relations AS r
    WHERE r.relkind IN ('r', 'p') AND (r.altered OR r.relname = ANY (:hourly_tables))
    UNION ALL
    SELECT f.kind, f.whole, f.proowner, f.altered, f.used FROM functions AS f WHERE NOT f.overload
    UNION ALL
    -- A column of a table is one of its children's, too.
    SELECT 'table', format('%I.%I', n.nspname, c.relname), c.relowner, true, false
    FROM relations AS r JOIN pg_inherits AS i ON i.inhparent = r.oid
    JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE r.altered AND r.relname IN ('user', 'agent_runtime')
    UNION ALL
    -- What 103 has kept and its way back takes.
    SELECT 'table', format('%I.%I', n.nspname, c.relname), c.relowner, true, true
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE :takes_back AND n.nspname ~ '^legacy_usage(_[0-9]+)?$' AND c.relname = ANY (:legacy_tables) AND c.relkind = 'r'
) AS o ON o.altered AND NOT pg_has_role(w.owner, o.owner, 'USAGE')
    OR o.used AND o.owner NOT IN (SELECT t.oid FROM trusted AS t)
GROUP BY w.owner_name

-- name: in_the_way
-- Objects of names that the steps are about to make or drop, and that are not what bears them.
SELECT format('%s %s is in the way: it is neither the product''s nor this chain''s', o.kind, o.name) AS message,
    format('if nobody needs it: DROP %s %s', upper(o.kind), o.statement) AS hint
FROM (
    SELECT r.kind, r.relname::text AS name, r.whole AS statement FROM relations AS r
    WHERE r.relkind <> 'c' AND (
        r.relname IN (SELECT t.name FROM jsonb_to_recordset(:taken) AS t (kind text, name text) WHERE t.kind = 'relation')
        OR r.relname = ANY (:altered_tables) AND r.relkind NOT IN ('r', 'p')
        OR r.altered AND EXISTS (
            SELECT FROM jsonb_to_recordset(:private) AS t (name text, columns text[])
            WHERE t.name = r.relname AND NOT t.columns <@ ARRAY(
                SELECT a.attname::text FROM pg_attribute AS a
                WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped)))
    UNION ALL
    SELECT CASE y.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, y.typname, format('public.%I', y.typname)
    FROM pg_type AS y
    LEFT JOIN pg_class AS c ON c.oid = y.typrelid
    WHERE y.typnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
        AND (y.typrelid = 0 AND y.typelem = 0 OR c.relkind = 'c') AND y.typname IN (
            SELECT t.name FROM jsonb_to_recordset(:taken) AS t (kind text, name text) WHERE t.kind = 'relation'
            UNION ALL
            SELECT t.name FROM jsonb_to_recordset(:private) AS t (name text))
    UNION ALL
    SELECT f.kind, f.whole, f.whole FROM functions AS f
    WHERE f.made AND NOT f.fits OR f.altered AND f.prokind <> 'f'
        -- A call could come to mean it.
        OR f.overload AND f.proowner NOT IN (SELECT t.oid FROM trusted AS t)
        OR f.proname IN (SELECT t.name FROM jsonb_to_recordset(:taken) AS t (kind text, name text) WHERE t.kind = 'function')
    UNION ALL
    SELECT 'trigger', format('%s on %s', t.tgname, r.relname), format('%I ON %s', t.tgname, r.whole)
    FROM jsonb_to_recordset(:triggers) AS x ("table" text, name text, function text)
    JOIN relations AS r ON r.relname = x."table"
    JOIN pg_trigger AS t ON t.tgrelid = r.oid AND t.tgname = x.name AND NOT t.tgisinternal
    JOIN pg_proc AS p ON p.oid = t.tgfoid
    WHERE p.proname <> x.function OR t.tgconstraint <> 0
        OR p.pronamespace <> (SELECT oid FROM pg_namespace WHERE nspname = 'public')
    UNION ALL
    SELECT 'trigger', format('%s on %s', t.tgname, r.relname), format('%I ON %s', t.tgname, r.whole)
    FROM jsonb_to_recordset(:taken) AS x (kind text, name text, "table" text)
    JOIN relations AS r ON r.relname = x."table"
    JOIN pg_trigger AS t ON t.tgrelid = r.oid AND t.tgname = x.name AND NOT t.tgisinternal
    WHERE x.kind = 'trigger'
) AS o

-- name: planted_code
-- Written by our functions, also by those that run with their owner's rights.
SELECT format('trigger %s on %s would run code of %s with the rights of whoever writes there', t.tgname, r.relname,
        pg_get_userbyid(p.proowner)) AS message,
    format('DROP TRIGGER %I ON %s', t.tgname, r.whole) AS hint
FROM relations AS r
JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal
JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE r.relname = ANY (:hourly_tables) AND p.proowner NOT IN (SELECT u.oid FROM trusted AS u)
UNION ALL
SELECT format('rule %s on %s changes what is written there', w.rulename, r.relname),
    format('DROP RULE %I ON %s', w.rulename, r.whole)
FROM relations AS r JOIN pg_rewrite AS w ON w.ev_class = r.oid
WHERE r.relname = ANY (:hourly_tables) AND w.rulename <> '_RETURN'

-- name: emptied
-- The way back to nothing looks whether the product's tables are empty, as the owner of task_usage; of the
-- other tables row_security tells.
SELECT format('row security would hide rows from role %s: %s', w.owner_name, string_agg(r.relname, ', ' ORDER BY r.relname))
        AS message,
    format('as a superuser, ALTER ROLE %I BYPASSRLS; or %s', w.owner_name, string_agg(format(
        'ALTER TABLE %s DISABLE ROW LEVEL SECURITY', r.whole), '; ' ORDER BY r.relname)) AS hint
FROM who AS w JOIN pg_roles AS o ON o.oid = w.owner AND NOT o.rolsuper AND NOT o.rolbypassrls
CROSS JOIN relations AS r
WHERE :empties AND r.relname IN ('user', 'workspace', 'project')
    AND r.relrowsecurity AND (r.relforcerowsecurity OR NOT pg_has_role(w.owner, r.relowner, 'USAGE'))
GROUP BY w.owner_name

-- name: calls
-- Functions of pg_catalog that everybody may call, unless somebody took that away.
SELECT format('role %s may not call %s', r.name, string_agg(p.whole, ', ' ORDER BY p.whole)) AS message,
    string_agg(format('GRANT EXECUTE ON FUNCTION pg_catalog.%s TO %I', p.whole, r.name), '; ' ORDER BY p.whole) AS hint
FROM (SELECT role FROM who UNION SELECT owner_name FROM who) AS r (name)
JOIN (
    SELECT f.oid, format('%I(%s)', f.proname, oidvectortypes(f.proargtypes)) AS whole FROM pg_proc AS f
    WHERE f.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'pg_catalog')
        AND f.proacl IS NOT NULL AND f.prokind IN ('f', 'w', 'a') AND f.proname IN (
            'acldefault', 'aclexplode', 'clock_timestamp', 'current_setting', 'date_bin', 'date_trunc', 'gen_random_uuid',
            'md5', 'pg_advisory_unlock', 'pg_backend_pid', 'pg_get_functiondef', 'pg_get_userbyid', 'pg_has_role',
            'pg_sleep', 'pg_sleep_for', 'pg_try_advisory_lock', 'pg_try_advisory_xact_lock', 'row_security_active',
            'set_config', 'statement_timestamp', 'to_regclass', 'to_regprocedure', 'unnest')
) AS p ON NOT has_function_privilege(r.name, p.oid, 'EXECUTE')
GROUP BY r.name

-- name: keeping
-- Only the owner of the database, or who is granted it, may make the schema to keep the legacy tables in.
SELECT format('role %s may not create schema legacy_usage to keep the legacy rollups in', w.role) AS message,
    format('GRANT CREATE ON DATABASE %I TO %I, or drop them: alembic -x keep-legacy=false upgrade head',
        current_database(), w.role) AS hint
FROM who AS w
WHERE :keeps AND NOT has_database_privilege(w.role, current_database(), 'CREATE')
    AND EXISTS (SELECT FROM relations AS r WHERE r.relname = ANY (:legacy_tables) AND r.relkind IN ('r', 'p'))
    -- The one that was made before, if it is still ours and empty.
    AND NOT EXISTS (
        SELECT FROM pg_namespace AS n JOIN pg_roles AS o ON o.oid = n.nspowner
        WHERE n.nspname = 'legacy_usage' AND (o.rolsuper OR o.oid = w.owner)
            AND has_schema_privilege(w.owner, n.oid, 'CREATE') AND has_schema_privilege(w.owner, n.oid, 'USAGE')
            AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid)
            AND NOT EXISTS (SELECT FROM pg_type AS y WHERE y.typnamespace = n.oid))

-- name: scheduler
-- A step ends jobs of pg_cron, as the role that began.
SELECT format('role %s may use pg_cron and not read its jobs', w.role) AS message,
    format('GRANT SELECT ON cron.job TO %I', w.role) AS hint
FROM who AS w, pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE :unschedules AND n.nspname = 'cron' AND c.relname = 'job' AND has_schema_privilege(n.oid, 'USAGE')
    AND NOT has_table_privilege(c.oid, 'SELECT')

-- name: doubts
-- Nobody can tell what they will do. Event triggers of extensions are there for the extension.
SELECT format('event trigger %s calls %s() whenever a step makes, alters or drops something, and may refuse it',
        e.evtname, p.proname) AS message,
    format('if it does: ALTER EVENT TRIGGER %I DISABLE', e.evtname) AS hint
FROM pg_event_trigger AS e JOIN pg_proc AS p ON p.oid = e.evtfoid
WHERE e.evtenabled <> 'D' AND e.evtevent <> 'login' AND NOT EXISTS (
    SELECT FROM pg_depend AS d
    WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
UNION ALL
SELECT format('trigger %s on schema_migrations calls %s() for each step that is recorded, and may refuse it', t.tgname,
        p.proname), format('if it does: ALTER TABLE schema_migrations DISABLE TRIGGER %I', t.tgname)
FROM relations AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE r.relname = 'schema_migrations'
UNION ALL
SELECT format('trigger %s on %s calls %s() for what is rolled up, and may refuse or change it', t.tgname, r.relname,
        p.proname), format('if it does: ALTER TABLE %s DISABLE TRIGGER %I', r.whole, t.tgname)
FROM relations AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE r.relname = ANY (:hourly_tables) AND p.proowner IN (SELECT u.oid FROM trusted AS u)
UNION ALL
-- It stops at the first row of a table, or with a column, that is gone here and not where it comes from.
SELECT format('subscription %s stops where its publisher still has %s', s.subname,
        string_agg(d.name || COALESCE('.' || NULLIF(d.part, ''), ''), ', ' ORDER BY d.name)),
    format('upgrade the publisher first, or keep it still until then: ALTER SUBSCRIPTION %I DISABLE', s.subname)
FROM pg_subscription AS s JOIN pg_subscription_rel AS t ON t.srsubid = s.oid
JOIN relations AS r ON r.oid = t.srrelid
JOIN jsonb_to_recordset(:gone) AS d (name text, part text) ON d.name = r.relname
GROUP BY s.subname
