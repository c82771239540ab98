-- name: suitability
-- New objects belong to the owner of task_usage, who must therefore be able to alter its neighbours.
WITH owner AS (
    SELECT COALESCE(
        (SELECT relowner FROM pg_class WHERE oid = to_regclass('public.task_usage')),
        (SELECT oid FROM pg_roles WHERE rolname = current_user)) AS oid
)
SELECT
    pg_backend_pid() AS backend_pid,
    current_user AS role,
    quote_ident(current_user) AS quoted_role,
    pg_get_userbyid(owner.oid) AS owner,
    quote_ident(pg_get_userbyid(owner.oid)) AS quoted_owner,
    pg_is_in_recovery() AS standby,
    current_setting('transaction_read_only') AS read_only,
    has_schema_privilege(owner.oid, 'public', 'CREATE') AS may_create,
    (SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
     FROM pg_class c
     WHERE c.relnamespace = 'public'::regnamespace
        AND c.relname IN ('user', 'agent_runtime', 'agent', 'issue', 'agent_task_queue',
            'task_usage', 'schema_migrations', 'alembic_version')
        AND NOT (
            pg_has_role(current_user, owner.oid, 'USAGE')
            -- SET is a privilege of its own since 16.
            AND CASE WHEN current_setting('server_version_num')::int >= 160000
                     THEN pg_has_role(current_user, owner.oid, 'SET') ELSE true END
            AND (pg_has_role(owner.oid, c.relowner, 'USAGE')
                -- The two ledgers are written by the session's own role.
                OR c.relname IN ('schema_migrations', 'alembic_version')
                    AND has_table_privilege(c.oid, 'SELECT')
                    AND has_table_privilege(c.oid, 'INSERT')
                    AND has_table_privilege(c.oid, 'DELETE')))) AS not_ours,
    (SELECT string_agg(n.nspname, ', ' ORDER BY n.nspname)
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relname = 'task_usage' AND c.relkind = 'r'
        AND to_regclass('public.task_usage') IS NULL) AS elsewhere
FROM owner;

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
SELECT string_agg(DISTINCT b.rolname, ', ' ORDER BY b.rolname) AS roles,
    string_agg(DISTINCT b.relname, ', ' ORDER BY b.relname) AS tables,
    (SELECT string_agg(p.polname, ', ' ORDER BY p.polname) FROM pg_policy p
     WHERE p.polrelid = ANY (array_agg(b.oid))) AS policies,
    concat_ws(' or, as a superuser, ',
        CASE WHEN bool_and(b.forced) THEN string_agg(DISTINCT format(
            'ALTER TABLE public.%I NO FORCE ROW LEVEL SECURITY', b.relname), '; ') END,
        string_agg(DISTINCT format('ALTER ROLE %I BYPASSRLS', b.rolname), '; ')) AS mend
FROM bound b HAVING COUNT(*) > 0;
