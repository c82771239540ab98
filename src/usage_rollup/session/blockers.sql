-- Who is in the way, for an operator, and how to end it. The gap :holders of `who` is one of the queries below
-- it: rows of (pid, virtualtransaction), as pg_locks has them. All speak of this database alone: advisory keys
-- are per database, and databases cloned from one template share their tables' oids.

-- name: who
WITH holders (pid, virtualtransaction) AS (
    :holders
), blockers AS (
    -- A session by pid, role, application, state and since when.
    SELECT DISTINCT
        format('pid %s (%s, %s, %s%s)', a.pid, COALESCE(a.usename, 'no role'),
            COALESCE(NULLIF(a.application_name, ''), 'no application name'),
            COALESCE(a.state, 'state not visible to this role'), ' since ' || to_char(
                COALESCE(a.xact_start, a.state_change, a.backend_start), 'YYYY-MM-DD HH24:MI:SS TZ')) AS who,
        format('SELECT pg_terminate_backend(%s)', a.pid) AS ended_by
    FROM holders h JOIN pg_stat_activity a ON a.pid = h.pid
    UNION ALL
    -- A prepared transaction, which has no pid, by its name.
    SELECT DISTINCT
        format('prepared transaction %L (%s, since %s)', p.gid, p.owner,
            to_char(p.prepared, 'YYYY-MM-DD HH24:MI:SS TZ')),
        format('ROLLBACK PREPARED %1$L or COMMIT PREPARED %1$L', p.gid)
    FROM holders h
    JOIN pg_locks l ON l.locktype = 'transactionid' AND l.virtualtransaction = h.virtualtransaction
    JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
    WHERE h.pid IS NULL AND l.pid IS NULL AND p.database = current_database()
)
SELECT
    COALESCE(string_agg(b.who, ', ' ORDER BY b.who), 'a session that has just ended') AS who,
    COALESCE('wait for that session, or end it: ' || string_agg(b.ended_by, '; ' ORDER BY b.who), 'try again')
        AS hint
FROM blockers b;

-- name: given
SELECT * FROM unnest(CAST(:pids AS int[]), CAST(:transactions AS text[]));

-- name: advisory_lock
-- A bigint key is split into classid and objid; objsubid 1 marks that form.
SELECT l.pid, l.virtualtransaction FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
    AND (l.classid::bigint << 32 | l.objid::bigint) = :key
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());

-- name: table_locks
SELECT l.pid, l.virtualtransaction FROM unnest(CAST(:tables AS text[])) AS t (name)
JOIN pg_locks l ON l.relation = to_regclass(format('public.%I', t.name))
WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
