-- What field/catalog-<release>.json tells of a database, read from one: under search_path = public, where names are
-- as short as they are there.

-- name: tables
SELECT c.relname AS name, jsonb_build_object(
    'columns', (
        SELECT jsonb_agg(jsonb_build_object(
            'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
            'default', pg_get_expr(d.adbin, d.adrelid), 'not_null', a.attnotnull,
            'has_comment', col_description(c.oid, a.attnum) IS NOT NULL) ORDER BY a.attnum)
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    -- The NOT NULLs that PostgreSQL 18 calls constraints are told with the columns.
    'constraints', (
        SELECT jsonb_object_agg(k.conname, pg_get_constraintdef(k.oid)) FROM pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype NOT IN ('n', 't')),
    'indexes', (
        SELECT jsonb_object_agg(x.relname, substring(pg_get_indexdef(x.oid) FROM ' USING (.*)'))
        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid),
    'triggers', (
        SELECT jsonb_object_agg(t.tgname, substring(pg_get_triggerdef(t.oid) FROM 'CREATE TRIGGER \S+ (.*)'))
        FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
    'replica_identity', c.relreplident) AS facts
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname = ANY (%(tables)s);

-- name: functions
SELECT jsonb_build_object(
    'signature', p.oid::regprocedure, 'arguments', pg_get_function_arguments(p.oid),
    'result', pg_get_function_result(p.oid), 'settings', p.proconfig, 'security_definer', p.prosecdef)
FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE '%%task\_usage%%'
ORDER BY p.oid::regprocedure::text;

-- name: all_tables
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' ORDER BY c.relname COLLATE "C";

-- name: referenced_by
SELECT DISTINCT format('%%s -> %%s', k.conrelid::regclass, k.confrelid::regclass) COLLATE "C"
FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid
WHERE k.contype = 'f' AND c.relname = ANY (%(tables)s) ORDER BY 1;
