-- Whether what the steps read and write is as it was made: rights that its owner gave up, types, columns and
-- constraints that somebody added, parts that somebody took. Rows of (message, hint); as_made.py closes the gaps.

-- name: rights
-- The hook reads and writes as the session's role, a step as the owner, who may have revoked rights of its own.
SELECT format('role %s lacks %s on %s', n.role, n.privileges, n.name) AS message,
    format('GRANT %s ON %s%s TO %I', n.privileges, CASE n.kind WHEN 'table' THEN '' ELSE upper(n.kind) || ' ' END, n.whole,
        n.role) AS hint
FROM (
    SELECT a.role, 'table' AS kind, r.relname::text AS name, r.whole,
        string_agg(p.privilege, ', ' ORDER BY p.n) AS privileges
    FROM (SELECT w.role, w.owner, false AS is_owner FROM who AS w
            WHERE w.role <> w.owner_name AND pg_has_role(w.me, w.owner, 'USAGE')
        UNION ALL SELECT w.owner_name, w.owner, true FROM who AS w) AS a
    CROSS JOIN jsonb_to_recordset(:needs) AS t ("table" text, privileges text[], of_owner text[])
    JOIN relations AS r ON r.relname = t."table" AND r.relkind IN ('r', 'p')
    CROSS JOIN unnest(t.privileges || CASE WHEN a.is_owner THEN t.of_owner ELSE '{}' END)
        WITH ORDINALITY AS p (privilege, n)
    -- What belongs to somebody else, and must not, is told as such.
    WHERE NOT has_table_privilege(a.role, r.oid, p.privilege) AND (pg_has_role(a.owner, r.relowner, 'USAGE')
        OR NOT (r.altered OR r.relname = ANY (:hourly_tables)))
    GROUP BY a.role, r.relname, r.whole
    UNION ALL
    SELECT a.role, 'function', f.proname::text, f.whole, 'EXECUTE'
    FROM (SELECT w.role, w.owner FROM who AS w WHERE pg_has_role(w.me, w.owner, 'USAGE')
        UNION SELECT w.owner_name, w.owner FROM who AS w) AS a
    CROSS JOIN functions AS f
    WHERE f.used AND f.fits AND :calls AND NOT has_function_privilege(a.role, f.oid, 'EXECUTE')
        AND pg_has_role(a.owner, f.proowner, 'USAGE')
) AS n
UNION ALL
SELECT format('role %s may not create objects in tablespace %s (default_tablespace)', a.role, s.spcname),
    format('GRANT CREATE ON TABLESPACE %I TO %I', s.spcname, a.role)
FROM (SELECT role FROM who UNION SELECT owner_name FROM who) AS a (role), pg_tablespace AS s, pg_database AS d
WHERE :writes AND s.spcname = current_setting('default_tablespace') AND d.datname = current_database()
    AND s.oid <> d.dattablespace AND NOT has_tablespace_privilege(a.role, s.oid, 'CREATE')

-- name: types
SELECT format('column %s of %s is %s, not %s', c.name, c."table", t.type, c.type) AS message,
    format('ALTER TABLE %s ALTER COLUMN %I TYPE %s', r.whole, c.name, c.type) AS hint
FROM jsonb_to_recordset(:columns) AS c ("table" text, name text, type text)
JOIN relations AS r ON r.relname = c."table" AND r.relkind IN ('r', 'p')
JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attname = c.name AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN LATERAL format_type(a.atttypid, a.atttypmod) AS t (type)
WHERE t.type <> c.type
UNION ALL
SELECT format('column version_num of %s is %s, which holds no revision', r.relname, t.type),
    format('ALTER TABLE %s ALTER COLUMN version_num TYPE varchar(32)', r.whole)
FROM relations AS r
JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attname = 'version_num'
CROSS JOIN LATERAL format_type(a.atttypid, a.atttypmod) AS t (type)
WHERE :writes AND r.relname = :version_table AND a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype)
    AND a.atttypmod BETWEEN 0 AND 4 + 2

-- name: additions
-- Columns that nobody fills and constraints that nobody knows refuse what is written.
SELECT format('%s takes no row of ours: nothing fills column %s', r.relname,
        string_agg(a.attname, ', ' ORDER BY a.attname)) AS message,
    string_agg(format('ALTER TABLE %s ALTER COLUMN %I %s', r.whole, a.attname,
        CASE WHEN a.attname = 'applied_at' THEN 'SET DEFAULT now()' ELSE 'DROP NOT NULL' END), '; ' ORDER BY a.attname) AS hint
FROM jsonb_to_recordset(:written) AS t ("table" text, columns text[])
JOIN relations AS r ON r.relname = t."table" AND r.relkind IN ('r', 'p')
JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attname <> ALL (t.columns)
    -- Of another application's ledger it is said already that it is one.
    AND (r.relname <> 'schema_migrations' OR EXISTS (
        SELECT FROM pg_attribute AS v
        WHERE v.attrelid = r.oid AND v.attname = 'version' AND v.atttypid = 'text'::regtype))
GROUP BY r.relname, r.whole
UNION ALL
SELECT format('constraint %s on %s is none of this chain''s and may refuse what is written there', k.conname, r.relname),
    format('ALTER TABLE %s DROP CONSTRAINT %I', r.whole, k.conname)
FROM jsonb_to_recordset(:written) AS t ("table" text, columns text[])
JOIN relations AS r ON r.relname = t."table" AND r.relkind IN ('r', 'p')
JOIN pg_constraint AS k ON k.conrelid = r.oid
WHERE (k.contype IN ('c', 'f', 'x') OR k.contype = 'u' AND r.relname <> 'schema_migrations')
    AND k.conname <> ALL (:constraints)

-- name: parts
-- 103 proves by what 102 made.
SELECT 'refusing to drop legacy daily rollups: the hourly pipeline is not installed: parts of 102_task_usage_hourly_pipeline'
        ' are missing: ' || string_agg(m.part, ', ' ORDER BY m.part) AS message,
    'put them back: `alembic downgrade 100`, then `alembic upgrade head`' AS hint
FROM (
    SELECT 'function ' || f.name AS part FROM jsonb_to_recordset(:functions) AS f (name text, arguments text[], used boolean)
    WHERE f.used AND NOT EXISTS (
        SELECT FROM pg_proc AS p
        WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')
            AND p.proname = f.name AND p.pronargs = cardinality(f.arguments))
    UNION ALL
    SELECT 'table ' || t.name FROM unnest(:hourly_tables) AS t (name)
    WHERE t.name NOT IN (SELECT r.relname FROM relations AS r WHERE r.relkind IN ('r', 'p'))
) AS m
WHERE :stands_on_102
HAVING COUNT(*) > 0
