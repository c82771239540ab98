-- Who stands on what the steps drop. DROP goes without CASCADE, so that nothing of somebody else's goes with it:
-- here all of them are named at once, before the first step.

-- name: roots
-- What is dropped, in order; `parts` is what goes with it unasked (indexes, row types, a table's own triggers).
roots AS (
    SELECT d.n, d.kind, format('%s %s%s', d.kind, d.name, CASE WHEN d.kind IN ('column', 'trigger')
            THEN '.' || d.part ELSE '' END) AS name, x.classid, x.objid, x.objsubid
    FROM jsonb_to_recordset(:drops) AS d (n int, kind text, name text, part text)
    CROSS JOIN (SELECT oid FROM pg_namespace WHERE nspname = 'public') AS s
    CROSS JOIN LATERAL (
        SELECT 'pg_class'::regclass AS classid, c.oid AS objid, 0 AS objsubid FROM pg_class AS c
        WHERE d.kind = 'table' AND c.relnamespace = s.oid AND c.relname = d.name AND c.relkind IN ('r', 'p')
        UNION ALL
        SELECT 'pg_class'::regclass, a.attrelid, a.attnum FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = d.part
        WHERE d.kind = 'column' AND c.relnamespace = s.oid AND c.relname = d.name
        UNION ALL
        SELECT 'pg_trigger'::regclass, t.oid, 0 FROM pg_class AS c
        JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = d.part
        WHERE d.kind = 'trigger' AND c.relnamespace = s.oid AND c.relname = d.name
        UNION ALL
        SELECT 'pg_proc'::regclass, p.oid, 0 FROM pg_proc AS p
        WHERE d.kind = 'function' AND p.pronamespace = s.oid AND p.proname = d.name AND p.pronargs::text = d.part
    ) AS x
), parts AS (
    SELECT n, classid::oid, objid, objsubid FROM roots
    UNION
    SELECT p.n, d.classid, d.objid, d.objsubid FROM parts AS p
    JOIN pg_depend AS d ON d.refclassid = p.classid AND d.refobjid = p.objid
        AND (p.objsubid = 0 OR d.refobjsubid = p.objsubid)
    WHERE d.deptype IN ('a', 'i', 'P', 'S')
), blocking AS (
    SELECT p.n, d.classid, d.objid, d.objsubid FROM parts AS p
    JOIN pg_depend AS d ON d.refclassid = p.classid AND d.refobjid = p.objid
        AND (p.objsubid = 0 OR d.refobjsubid = p.objsubid)
    WHERE d.deptype = 'n' AND NOT EXISTS (
        SELECT FROM parts AS q
        WHERE q.classid = d.classid AND q.objid = d.objid AND q.objsubid IN (0, d.objsubid) AND q.n <= p.n)
), victims AS (
    -- A view stands on a table by its rule. `n` edges are objects of their own, others go with what they belong to.
    SELECT b.n, 1 AS depth, true AS by_name, v.* FROM blocking AS b
    CROSS JOIN LATERAL (
        SELECT 'pg_class'::regclass::oid AS classid, w.ev_class AS objid, 0 AS objsubid FROM pg_rewrite AS w
        WHERE b.classid = 'pg_rewrite'::regclass AND w.oid = b.objid AND w.rulename = '_RETURN'
        UNION ALL
        SELECT b.classid, b.objid, b.objsubid WHERE NOT EXISTS (
            SELECT FROM pg_rewrite AS w
            WHERE b.classid = 'pg_rewrite'::regclass AND w.oid = b.objid AND w.rulename = '_RETURN')
    ) AS v
    UNION
    SELECT v.n, v.depth + 1, d.deptype = 'n', x.* FROM victims AS v
    JOIN pg_depend AS d ON d.refclassid = v.classid AND d.refobjid = v.objid
        AND (v.objsubid = 0 OR d.refobjsubid = v.objsubid)
    CROSS JOIN LATERAL (
        SELECT 'pg_class'::regclass::oid AS classid, w.ev_class AS objid, 0 AS objsubid FROM pg_rewrite AS w
        WHERE d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid AND w.rulename = '_RETURN'
        UNION ALL
        SELECT d.classid, d.objid, d.objsubid WHERE NOT EXISTS (
            SELECT FROM pg_rewrite AS w
            WHERE d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid AND w.rulename = '_RETURN')
    ) AS x
    WHERE v.depth < 20 AND d.deptype IN ('n', 'a', 'i', 'P', 'S')
        AND (x.classid, x.objid, x.objsubid) IS DISTINCT FROM (v.classid, v.objid, v.objsubid)
), dependents AS (
    SELECT v.classid, v.objid, v.objsubid, MAX(v.depth) AS depth,
        -- Moving a table keeps what stands on it.
        bool_and(r.kind = 'table') AS by_tables_only
    FROM victims AS v JOIN (SELECT DISTINCT n, kind FROM roots) AS r USING (n)
    GROUP BY v.classid, v.objid, v.objsubid
    HAVING bool_and(v.by_name)
), extensions AS (
    SELECT e.extname, r.name, i.type, i.identity, r.kind FROM roots AS r
    JOIN pg_depend AS d ON d.classid = r.classid AND d.objid = r.objid AND d.deptype = 'e'
    JOIN pg_extension AS e ON e.oid = d.refobjid
    CROSS JOIN LATERAL pg_identify_object(r.classid, r.objid, 0) AS i
)

-- name: dependents
SELECT 'others stand on what is about to be dropped: ' || string_agg(g.what, ', ' ORDER BY g.depth DESC, g.what) AS message,
    string_agg(g.mend, '; ' ORDER BY g.depth DESC, g.what)
        || CASE WHEN g.by_tables_only
            THEN '; or keep them and the legacy tables: alembic -x keep-legacy=true upgrade head' ELSE '' END AS hint
FROM (
    SELECT d.by_tables_only AND :may_keep AS by_tables_only, d.depth, pg_describe_object(d.classid, d.objid, d.objsubid) AS what,
        CASE
            WHEN k.conrelid <> 0 THEN format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname)
            WHEN k.contypid <> 0 THEN format('ALTER DOMAIN %s DROP CONSTRAINT %I', k.contypid::regtype, k.conname)
            WHEN a.attgenerated <> '' THEN format('ALTER TABLE %s DROP COLUMN %I', f.adrelid::regclass, a.attname)
            WHEN f.oid IS NOT NULL
                THEN format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', f.adrelid::regclass, a.attname)
            WHEN b.prrelid IS NOT NULL THEN format('ALTER PUBLICATION %I DROP TABLE %s', u.pubname, b.prrelid::regclass)
            WHEN d.classid = 'pg_class'::regclass AND d.objsubid > 0
                THEN format('ALTER TABLE %s DROP COLUMN %I', d.objid::regclass,
                    (SELECT c.attname FROM pg_attribute AS c WHERE c.attrelid = d.objid AND c.attnum = d.objsubid))
            ELSE format('DROP %s %s', upper(CASE i.type WHEN 'statistics object' THEN 'statistics'
                WHEN 'composite type' THEN 'type' ELSE i.type END), i.identity) END AS mend
    FROM dependents AS d
    CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) AS i
    LEFT JOIN pg_constraint AS k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
    LEFT JOIN pg_attrdef AS f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid
    LEFT JOIN pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
    LEFT JOIN pg_publication_rel AS b ON d.classid = 'pg_publication_rel'::regclass AND b.oid = d.objid
    LEFT JOIN pg_publication AS u ON u.oid = b.prpubid
) AS g
GROUP BY g.by_tables_only
UNION ALL
SELECT format('%s belongs to extension %s', e.name, e.extname),
    format('ALTER EXTENSION %I DROP %s %s', e.extname, upper(e.type), e.identity)
FROM extensions AS e
