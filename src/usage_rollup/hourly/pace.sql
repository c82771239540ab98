-- Whether more sessions would be in nobody's way.

-- name: has_room
-- No other client of this database is at work just now, and a quarter of what server, database and role allow stays
-- free. What somebody else's session does this role may not be allowed to see: then it counts as at work.
WITH clients AS (
    SELECT a.* FROM pg_stat_activity AS a
    WHERE a.backend_type = 'client backend'
        OR a.backend_type IS NULL AND num_nulls(a.datid, a.usesysid) = 0
), limits (most, used) AS (
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - COALESCE(current_setting('reserved_connections', true), '0')::int,
        (SELECT COUNT(*) FROM clients)
    UNION ALL
    SELECT d.datconnlimit, (SELECT COUNT(*) FROM clients AS c WHERE c.datid = d.oid)
    FROM pg_database AS d WHERE d.datname = current_database()
    UNION ALL
    SELECT r.rolconnlimit, (SELECT COUNT(*) FROM clients AS c WHERE c.usesysid = r.oid)
    FROM pg_roles AS r WHERE r.rolname = session_user
)
SELECT
    NOT EXISTS (SELECT FROM limits AS l WHERE l.most >= 0 AND l.used + CAST(:more AS int) > l.most * 3 / 4)
    AND NOT EXISTS (
        SELECT FROM clients AS c
        WHERE c.datname = current_database() AND COALESCE(c.state, 'active') = 'active'
            AND c.application_name <> current_setting('application_name'));
