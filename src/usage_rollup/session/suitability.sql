-- What a session must be to run the upgrade on, as rows (message, hint) of what it is not. runner/checks.py asks
-- the same and more, and puts the same text into scripts.

-- name: who
-- New objects belong to the owner of task_usage, whom a step becomes. A login may switch its role at once (ALTER
-- ROLE ... SET role): whom it may become is asked about the login, what it may do about the role.
who AS (
    SELECT me.oid AS me, me.rolname::text AS role, login.oid AS login,
        COALESCE(t.relowner, me.oid) AS owner, pg_get_userbyid(COALESCE(t.relowner, me.oid))::text AS owner_name
    FROM pg_roles AS me
    JOIN pg_roles AS login ON login.rolname = session_user
    LEFT JOIN pg_class AS t
        ON t.relname = 'task_usage' AND t.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
    WHERE me.rolname = current_user
)

-- name: server
SELECT 'this server is a standby: it replays a primary and cannot be changed' AS message,
    'point DATABASE_URL at the primary' AS hint
WHERE pg_is_in_recovery()
UNION ALL
-- A standby says so of itself besides. Asked by the default, because preflight's own transaction is read-only.
SELECT format('sessions of role %s are read-only here (default_transaction_read_only)', current_user),
    'ALTER DATABASE or ALTER ROLE ... RESET default_transaction_read_only'
WHERE current_setting('default_transaction_read_only') = 'on' AND NOT pg_is_in_recovery()

-- name: schema
-- With these nothing else can be asked.
SELECT 'task_usage is in schema ' || string_agg(n.nspname, ', ' ORDER BY n.nspname) || ', not in public' AS message,
    'the product keeps its tables in schema public; nothing else is supported' AS hint
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relname = 'task_usage' AND c.relkind = 'r' AND NOT pg_is_other_temp_schema(n.oid)
    AND NOT EXISTS (
        SELECT FROM pg_class AS t JOIN pg_namespace AS p ON p.oid = t.relnamespace
        WHERE t.relname = 'task_usage' AND p.nspname = 'public')
HAVING COUNT(*) > 0
UNION ALL
-- What this login would find is what its server works on: the copy in public may be an old one. By the path of role
-- and database, because the session's own is pinned.
SELECT format('task_usage is in schema %s for role %s, by its search_path, and another one is in public', l.found, l.role),
    format('the product keeps its tables in schema public; nothing else is supported: where those of public are in use,'
        ' ALTER ROLE %I IN DATABASE %I SET search_path = public', l.role, current_database())
FROM (
    SELECT w.role, (
        SELECT n.nspname FROM pg_settings AS s
        CROSS JOIN LATERAL regexp_matches(s.reset_val, '"((?:[^"]|"")+)"|([^",[:space:]]+)', 'g')
            WITH ORDINALITY AS p (name, place)
        JOIN pg_namespace AS n ON n.nspname = CASE
            WHEN COALESCE(p.name[1], p.name[2]) = '$user' THEN w.role
            ELSE COALESCE(replace(p.name[1], '""', '"'), lower(p.name[2])) END
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'task_usage' AND c.relkind IN ('r', 'p', 'v')
        WHERE s.name = 'search_path' AND has_schema_privilege(w.me, n.oid, 'USAGE')
        ORDER BY p.place LIMIT 1) AS found
    FROM who AS w
) AS l
WHERE l.found <> 'public' AND EXISTS (
    SELECT FROM pg_class AS t JOIN pg_namespace AS p ON p.oid = t.relnamespace
    WHERE t.relname = 'task_usage' AND p.nspname = 'public')
UNION ALL
SELECT format('role %s may not use schema public', r.name), format('GRANT USAGE%s ON SCHEMA public TO %I',
        CASE WHEN r.name = w.owner_name AND NOT has_schema_privilege(r.name, 'public', 'CREATE') THEN ', CREATE' ELSE '' END,
        r.name)
FROM who AS w CROSS JOIN LATERAL (SELECT w.role UNION SELECT w.owner_name) AS r (name)
WHERE NOT EXISTS (
    SELECT FROM pg_namespace AS n WHERE n.nspname = 'public' AND has_schema_privilege(r.name, n.oid, 'USAGE'))
UNION ALL
SELECT format('role %s may not use the language %s', r.name, l.lanname),
    format('GRANT USAGE ON LANGUAGE %I TO %I', l.lanname, r.name)
FROM (SELECT role FROM who UNION SELECT owner_name FROM who) AS r (name)
CROSS JOIN pg_language AS l
WHERE l.lanname IN ('plpgsql', 'sql') AND NOT has_language_privilege(r.name, l.oid, 'USAGE')

-- name: acting
SELECT format('role %s may not act for the owner of: %s', r.name, (
        SELECT COALESCE(string_agg(c.relname, ', ' ORDER BY c.relname), 'task_usage') FROM pg_class AS c
        WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public') AND c.relowner = w.owner
            AND c.relname IN ('user', 'agent_runtime', 'agent', 'issue', 'agent_task_queue', 'task_usage'))) AS message,
    format('connect as their owner, or: GRANT %I TO %I; ALTER ROLE %2$I INHERIT'
        ' (from PostgreSQL 16: GRANT ... WITH INHERIT TRUE, SET TRUE)', w.owner_name, r.name) AS hint
FROM who AS w
CROSS JOIN LATERAL (
    SELECT w.role WHERE NOT pg_has_role(w.me, w.owner, 'USAGE')
    UNION
    -- SET is a privilege of its own since 16.
    SELECT session_user::text WHERE NOT pg_has_role(w.login, w.owner,
        CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END)
) AS r (name)

-- name: row_security
-- Tables whose policies bind a role that acts: the session's own and the owner of task_usage, as whom the
-- steps run and the triggers queue. The ledgers only the session's own role reads and writes.
WITH acting AS (
    SELECT r.oid, r.rolname, r.rolname = current_user AS is_session FROM pg_roles r
    WHERE NOT r.rolsuper AND NOT r.rolbypassrls AND (r.rolname = current_user
        OR r.oid = (SELECT c.relowner FROM pg_class c WHERE c.oid = to_regclass('public.task_usage')))
), bound AS (
    SELECT a.rolname, c.oid, c.relname, pg_has_role(a.oid, c.relowner, 'USAGE') AS forced
    FROM acting a JOIN pg_class c ON c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        AND c.relrowsecurity AND (c.relforcerowsecurity OR NOT pg_has_role(a.oid, c.relowner, 'USAGE'))
    WHERE c.relname IN ('agent', 'agent_runtime', 'agent_task_queue', 'issue', 'task_usage')
        OR starts_with(c.relname, 'task_usage_')
        OR a.is_session AND c.relname IN ('schema_migrations', 'alembic_version')
)
SELECT format('row security would hide rows from role %s: %s (policies: %s)',
        string_agg(DISTINCT b.rolname, ', ' ORDER BY b.rolname),
        string_agg(DISTINCT b.relname, ', ' ORDER BY b.relname),
        COALESCE((SELECT string_agg(p.polname, ', ' ORDER BY p.polname) FROM pg_policy p
            WHERE p.polrelid = ANY (array_agg(b.oid))), 'none, so all of them')) AS message,
    concat_ws(' or, as a superuser, ',
        CASE WHEN bool_and(b.forced) THEN string_agg(DISTINCT format(
            'ALTER TABLE public.%I NO FORCE ROW LEVEL SECURITY', b.relname), '; ') END,
        string_agg(DISTINCT format('ALTER ROLE %I BYPASSRLS', b.rolname), '; ')) AS hint
FROM bound b HAVING COUNT(*) > 0
