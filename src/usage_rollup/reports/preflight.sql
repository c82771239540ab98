-- name: server
SELECT current_setting('server_version') AS version, current_database() AS database, current_user AS role,
    (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('public.task_usage')) AS owner,
    pg_database_size(current_database()) AS bytes;

-- name: holders
-- Who holds a mode that keeps out the one that is wanted. A prepared transaction has no session that could end;
-- one that is older than a step's patience may not end either.
-- Databases cloned from one template number their tables alike, hence the comparison of databases.
WITH here AS (SELECT oid FROM pg_database WHERE datname = current_database())
SELECT h.pid, h.virtualtransaction, string_agg(DISTINCT h.what, ', ' ORDER BY h.what) AS what,
    bool_or(h.in_vain) AS in_vain
FROM (
    SELECT l.pid, l.virtualtransaction, t.name AS what, l.pid IS NULL
        OR COALESCE(s.xact_start < clock_timestamp() - make_interval(secs => :patience_s), false) AS in_vain
    FROM here d
    CROSS JOIN unnest(CAST(:tables AS text[]), CAST(:modes AS text[])) AS t (name, mode)
    JOIN (
        :conflicts
    ) AS c (mode, held) ON c.mode = t.mode
    JOIN pg_locks l ON l.relation = to_regclass(format('public.%I', t.name)) AND l.database = d.oid
        AND l.mode = ANY (c.held)
    LEFT JOIN pg_stat_activity s ON s.pid = l.pid
    WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
    UNION ALL
    SELECT l.pid, l.virtualtransaction, k.name, false
    FROM here d
    CROSS JOIN unnest(CAST(:keys AS bigint[]), CAST(:names AS text[])) AS k (key, name)
    JOIN pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 1
        AND (l.classid::bigint << 32 | l.objid::bigint) = k.key
        AND l.database = d.oid
    WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
) AS h
GROUP BY 1, 2 ORDER BY 3;
