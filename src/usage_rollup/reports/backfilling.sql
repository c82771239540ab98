-- A backfill: its plan, and the sessions at it.

-- name: plan
SELECT count(*) AS slices, count(walked_at) AS walked_slices,
    COALESCE(SUM(usage_rows), 0)::bigint AS usage_rows,
    COALESCE(SUM(usage_rows) FILTER (WHERE walked_at IS NOT NULL), 0)::bigint AS walked_rows
FROM public.task_usage_hourly_backfill;

-- name: at_work
-- Who holds advisory lock :key, as far as it is a run of ours or a script, and no tick. And who has given it up
-- for a moment between two slices of a plan: its last statement tells, or that it asks for the lock again. Another role's
-- statements cannot be seen, and are taken for a backfill's.
SELECT a.pid FROM pg_stat_activity a
LEFT JOIN (
    SELECT DISTINCT l.pid FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
        AND (l.classid::bigint << 32 | l.objid::bigint) = :key
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
) AS h ON h.pid = a.pid
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    AND CASE
        WHEN a.query ~ 'DO \$backfill\$' THEN a.state = 'active'
        WHEN a.application_name <> :application THEN false
        WHEN h.pid IS NOT NULL THEN a.query !~ 'rollup_task_usage_hourly\(\)|pg_try_advisory_xact_lock'
        ELSE :planned AND a.query ~ '^SELECT pg_(advisory_unlock|try_advisory_lock)(_shared)?\('
    END
ORDER BY a.backend_start, a.pid;
