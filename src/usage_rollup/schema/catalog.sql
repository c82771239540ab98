-- name: catalog
-- One line a row. Contype n are the NOT NULLs that PostgreSQL 18 calls constraints; columns show them.
WITH relation AS (
    SELECT c.oid, c.relname, c.relname = ANY (:products) AS products,
        c.relreplident, c.relpersistence, c.relrowsecurity
    FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        AND (c.relname LIKE 'task\_usage\_hourly%'
            OR c.relname = ANY (:products) OR c.relname = ANY (:legacy_tables))
), function AS (
    SELECT p.oid, p.proname, oidvectortypes(p.proargtypes) AS arguments
    FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.prokind <> 'a'
        AND (p.proname ~ '^(enqueue_|prune_|rollup_)?task_usage_hour(_bucket|ly)'
            OR p.proname = ANY (:legacy_functions))
)
SELECT 'table ' || r.relname AS object, concat_ws(' ', 'column', quote_ident(a.attname),
    format_type(a.atttypid, a.atttypmod),
    CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || a.attcollation::regcollation END,
    CASE WHEN a.attnotnull THEN 'NOT NULL' END,
    CASE WHEN NOT r.products THEN CASE a.attgenerated WHEN '' THEN 'DEFAULT ' ELSE 'GENERATED ' END
        || pg_get_expr(d.adbin, d.adrelid) END,
    CASE WHEN a.attidentity <> '' THEN 'IDENTITY' END) AS line
FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped
    AND (NOT r.products OR r.relname || '.' || a.attname = ANY (:columns))
UNION ALL
SELECT 'table ' || r.relname,
    concat_ws(' ', 'constraint', quote_ident(c.conname), pg_get_constraintdef(c.oid))
FROM relation r JOIN pg_constraint c ON c.conrelid = r.oid
WHERE NOT r.products AND c.contype NOT IN ('n', 't')
UNION ALL
SELECT 'table ' || r.relname, concat_ws(' ', 'index', quote_ident(x.relname),
    CASE WHEN i.indisunique THEN 'UNIQUE' END, substring(pg_get_indexdef(x.oid) FROM ' USING (.*)'),
    CASE WHEN NOT i.indisvalid THEN 'INVALID' END)
FROM relation r JOIN pg_index i ON i.indrelid = r.oid JOIN pg_class x ON x.oid = i.indexrelid
WHERE CASE WHEN r.products THEN x.relname = ANY (:indexes)
    ELSE NOT i.indisvalid OR NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid) END
UNION ALL
SELECT 'table ' || r.relname, property
FROM relation r CROSS JOIN LATERAL (VALUES
    ('replica identity ' || CASE r.relreplident
        WHEN 'd' THEN 'default' WHEN 'f' THEN 'full' WHEN 'n' THEN 'nothing' ELSE 'index' END),
    (CASE WHEN r.relpersistence <> 'p' THEN 'unlogged' END),
    (CASE WHEN r.relrowsecurity THEN 'row security' END)) AS properties (property)
WHERE NOT r.products AND property IS NOT NULL
UNION ALL
SELECT 'table ' || r.relname, concat_ws(' ', 'comment', quote_ident(a.attname), quote_literal(d.description))
FROM relation r JOIN pg_description d ON d.classoid = 'pg_class'::regclass AND d.objoid = r.oid
LEFT JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
WHERE NOT r.products
UNION ALL
SELECT format('trigger %s.%s', r.relname, t.tgname), line
FROM relation r JOIN pg_trigger t ON t.tgrelid = r.oid
CROSS JOIN LATERAL (VALUES (pg_get_triggerdef(t.oid)),
    (CASE t.tgenabled WHEN 'O' THEN 'enabled' WHEN 'D' THEN 'disabled'
        WHEN 'R' THEN 'enabled for replicas only' ELSE 'enabled always' END)) AS lines (line)
WHERE NOT t.tgisinternal
    AND (NOT r.products OR t.tgname LIKE '%dirty\_hourly%' OR t.tgname = ANY (:legacy_triggers)
        OR t.tgfoid IN (SELECT oid FROM function))
UNION ALL
SELECT format('function %s(%s)', f.proname, f.arguments), line
FROM function f
CROSS JOIN LATERAL (VALUES (rtrim(pg_get_functiondef(f.oid), E'\n')),
    ('comment ' || quote_literal(obj_description(f.oid, 'pg_proc')))) AS lines (line)
WHERE line IS NOT NULL;
