-- What a client of a pooler asks before its session is pinned. Whatever the search path is, every name is
-- qualified; times are seconds since 1970, whatever the DateStyle is.

-- name: own
-- Which server process serves this statement, and when it began: query_start, for whoever looks at that process.
SELECT pg_catalog.pg_backend_pid(), pg_catalog.date_part('epoch', pg_catalog.statement_timestamp())

-- name: transaction
BEGIN;
SELECT pg_catalog.pg_backend_pid()

-- name: look
-- In a transaction that stays open. As the login, which sees all of its own sessions, whatever role it switches to.
BEGIN;
SET LOCAL ROLE NONE;
SELECT pg_catalog.pg_backend_pid(), a.pid,
    pg_catalog.date_part('epoch', a.backend_start), pg_catalog.date_part('epoch', a.query_start)
FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid OPERATOR(pg_catalog.=) ANY (pg_catalog.array_append(ARRAY[:pids]::pg_catalog.int4[], pg_catalog.pg_backend_pid()))
