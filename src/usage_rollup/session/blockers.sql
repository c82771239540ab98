-- Who is in the way, for an operator, and how to end it. The gap :holders of `who` is one of the queries below
-- it: rows of (pid, virtualtransaction), as pg_locks has them. All speak of this database alone: advisory keys
-- are per database, and databases cloned from one template share their tables' oids.

-- name: who
WITH holders (pid, virtualtransaction) AS (
    :holders
), blockers AS (
    -- A session by pid, role, application, state and since when; a process of the server, autovacuum say, by its kind.
    SELECT DISTINCT
        format('pid %s (%s, %s, %s%s)', a.pid, COALESCE(a.usename, a.backend_type, 'no role'),
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

-- name: conflicts
-- Which held modes keep a wanted one out: PostgreSQL manual, table 13.2.
VALUES
    ('ACCESS SHARE', ARRAY['AccessExclusiveLock']),
    ('ROW SHARE', ARRAY['ExclusiveLock', 'AccessExclusiveLock']),
    ('ROW EXCLUSIVE', ARRAY['ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock']),
    ('SHARE UPDATE EXCLUSIVE', ARRAY['ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
        'ExclusiveLock', 'AccessExclusiveLock']),
    ('SHARE', ARRAY['RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
        'AccessExclusiveLock']),
    ('SHARE ROW EXCLUSIVE', ARRAY['RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock',
        'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock']),
    ('EXCLUSIVE', ARRAY['RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock',
        'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock']),
    ('ACCESS EXCLUSIVE', ARRAY['AccessShareLock', 'RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock',
        'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock']);

-- name: table_locks
-- Whoever holds what keeps out one of the rows (relation, mode) that are wanted.
SELECT l.pid, l.virtualtransaction FROM (
    :wanted
) AS w
JOIN (
    :conflicts
) AS c (mode, held) ON c.mode = w.mode
JOIN pg_locks l ON l.relation = w.relation AND l.mode = ANY (c.held)
WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());

-- name: lock_wait_message
SELECT COALESCE(string_agg(DISTINCT h.name, ', ' ORDER BY h.name), 'a table')
    || ' was not free in time: another session holds a lock that this needs'
FROM (
    :lock_wait
) AS h;

-- name: in_script
-- What follows is the end of a block that has a record v_blockers.
EXCEPTION WHEN lock_not_available THEN
    PERFORM pg_stat_clear_snapshot();
    SELECT * INTO STRICT v_blockers FROM (
        :blockers
    ) AS b;
    RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
        MESSAGE = (
            :message
        ),
        DETAIL = 'in the way: ' || v_blockers.who,
        HINT = v_blockers.hint || '; then ' || :again;
END;

-- name: lock_wait
-- Whoever a statement of ours may have waited for, and at which table. Its wait is over, so this goes by what
-- statements of ours need: of the tables they write, ROW EXCLUSIVE and single rows; of those they only read, and
-- of the catalog, no more than ACCESS SHARE. So a server that writes usage is never named. A mode that is still
-- waited for keeps out who comes later. Rows are held by who has a transaction id and wrote or locked there; only
-- the private queue has many such writers, none of whom can be waited for. Not named are this run's own workers,
-- who hold the advisory lock of the hourly rollup shared.
WITH here AS (
    SELECT d.oid FROM pg_database d WHERE d.datname = current_database()
), ledgers (name) AS (
    VALUES ('schema_migrations'),
        (COALESCE(NULLIF(current_setting('usage_rollup.version_table', true), ''), 'alembic_version'))
), ours AS (
    SELECT c.oid, c.relname::text AS name, n.nspname = 'cron' OR starts_with(c.relname, 'task_usage_hourly')
        OR c.relname IN (SELECT g.name FROM ledgers g) AS written
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND (n.nspname IN ('pg_catalog', 'cron')
        OR n.nspname ~ '^(public|legacy_usage(_[0-9]+)?)$' AND (starts_with(c.relname, 'task_usage')
            OR c.relname = ANY (:product) OR c.relname IN (SELECT g.name FROM ledgers g)))
)
SELECT l.pid, l.virtualtransaction, o.name
FROM pg_locks l
LEFT JOIN pg_index x ON x.indexrelid = l.relation
JOIN ours o ON o.oid = COALESCE(x.indrelid, l.relation)
WHERE l.locktype = 'relation' AND l.database = (SELECT h.oid FROM here h) AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND (l.mode = 'AccessExclusiveLock'
        OR o.written AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')
        OR o.written AND o.name <> 'task_usage_hourly_invalidation' AND l.granted
            AND l.mode IN ('RowShareLock', 'RowExclusiveLock') AND EXISTS (
                SELECT FROM pg_locks t
                WHERE t.locktype = 'transactionid' AND t.granted AND t.mode = 'ExclusiveLock'
                    AND t.virtualtransaction = l.virtualtransaction))
    AND NOT EXISTS (
        SELECT FROM pg_locks w
        WHERE w.locktype = 'advisory' AND w.objsubid = 1 AND w.mode = 'ShareLock' AND w.pid = l.pid
            AND w.database = l.database AND (w.classid::bigint << 32 | w.objid::bigint) = :hourly_rollup);
