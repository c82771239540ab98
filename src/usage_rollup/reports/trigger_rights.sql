-- name: trigger_rights
-- By owner of the rollup's trigger functions, which act with its rights. What a table lacks that is missing
-- itself, `usage-rollup check` tells.
WITH functions AS (
    SELECT p.oid, p.proowner FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef AND p.prorettype = 'trigger'::regtype
        AND starts_with(p.proname, 'enqueue_task_usage_hourly_')
), usage AS (
    SELECT relowner FROM pg_class WHERE oid = to_regclass('public.task_usage')
)
SELECT pg_get_userbyid(f.proowner) AS owner, quote_ident(pg_get_userbyid(f.proowner)) AS quoted_owner,
    pg_get_userbyid(u.relowner) AS usage_owner,
    ARRAY(
        SELECT r.what FROM (VALUES
            (1, 'USAGE ON SCHEMA public', has_schema_privilege(f.proowner, 'public', 'USAGE')),
            (2, 'SELECT ON public.task_usage_hourly_rollup_state', has_table_privilege(
                f.proowner, to_regclass('public.task_usage_hourly_rollup_state')::oid, 'SELECT')),
            (3, 'INSERT ON public.task_usage_hourly_invalidation', has_table_privilege(
                f.proowner, to_regclass('public.task_usage_hourly_invalidation')::oid, 'INSERT'))
        ) AS r (n, what, is_there) WHERE NOT r.is_there ORDER BY r.n) AS missing,
    ARRAY(
        SELECT c.oid::regclass::text FROM pg_class c JOIN pg_roles r ON r.oid = f.proowner
        WHERE c.oid IN (to_regclass('public.task_usage_hourly_rollup_state'),
                to_regclass('public.task_usage_hourly_invalidation'))
            AND c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
            AND (c.relforcerowsecurity OR NOT pg_has_role(f.proowner, c.relowner, 'USAGE'))
        ORDER BY 1) AS policed,
    string_agg(format('ALTER FUNCTION %s OWNER TO %I', f.oid::regprocedure, pg_get_userbyid(u.relowner)), '; '
        ORDER BY f.oid::regprocedure::text) AS altered
FROM functions f CROSS JOIN usage u
GROUP BY f.proowner, u.relowner ORDER BY 1;
