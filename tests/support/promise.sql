-- What a play does to its database besides the changes it draws, and asks of it at the end.

-- name: give_to_owner
DO $$ DECLARE o record; BEGIN
    FOR o IN SELECT format('ALTER TABLE %s OWNER TO :owner', oid::regclass) AS change FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm')
        UNION ALL SELECT format('ALTER ROUTINE %s OWNER TO :owner', oid::regprocedure) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    LOOP EXECUTE o.change; END LOOP;
END $$;
GRANT USAGE, CREATE ON SCHEMA public TO :owner;

-- name: undone
-- What a database at head has, or has no more, whatever alembic_version says.
WITH columns AS (
    SELECT table_name AS t, column_name AS c FROM information_schema.columns WHERE table_schema = 'public'
)
SELECT 'alembic_version' AS what WHERE ARRAY(SELECT version_num::text FROM public.alembic_version) <> '{104}'
UNION ALL
SELECT name FROM unnest(ARRAY['task_usage_hourly', 'task_usage_hourly_dirty', 'task_usage_hourly_rollup_state']) AS name
WHERE name NOT IN (SELECT t FROM columns)
UNION ALL
SELECT 'rollup_task_usage_hourly()' WHERE to_regprocedure('public.rollup_task_usage_hourly()') IS NULL
UNION ALL
SELECT 'user.timezone' WHERE ('user', 'timezone') NOT IN (SELECT t, c FROM columns)
UNION ALL
SELECT t || '.' || c FROM columns
WHERE (t, c) = ('agent_runtime', 'timezone')
    OR t IN ('task_usage_daily', 'task_usage_daily_dirty', 'task_usage_rollup_state', 'task_usage_dashboard_daily',
        'task_usage_dashboard_dirty', 'task_usage_dashboard_rollup_state');
