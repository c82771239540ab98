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
