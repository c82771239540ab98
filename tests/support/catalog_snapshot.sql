-- All that a refusal must leave as it was, a line each: the rows of the system catalogs that describe what
-- somebody made in this database, and a count and a digest of every table.
--
-- The rows as they are, oids included: an object that was dropped and made again is another one. Left out are
-- temporary objects, what VACUUM and ANALYZE change, and what PostgreSQL counts by itself.

-- name: snapshot
WITH temporary AS (
    SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_'
), relations AS (
    SELECT c.* FROM pg_catalog.pg_class c
    WHERE c.oid >= 16384 AND c.relnamespace NOT IN (SELECT oid FROM temporary)
), lines (what, line) AS (
    SELECT 'pg_class', to_jsonb(c) - '{relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,relminmxid,relhasindex,relhassubclass}'::text[]
    FROM relations c
    UNION ALL
    SELECT 'pg_attribute', to_jsonb(a) FROM pg_catalog.pg_attribute a WHERE a.attrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_attrdef', to_jsonb(a) FROM pg_catalog.pg_attrdef a WHERE a.adrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_index', to_jsonb(i) FROM pg_catalog.pg_index i WHERE i.indrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_constraint', to_jsonb(c) FROM pg_catalog.pg_constraint c
    WHERE c.oid >= 16384 AND c.connamespace NOT IN (SELECT oid FROM temporary)
    UNION ALL
    SELECT 'pg_trigger', to_jsonb(t) FROM pg_catalog.pg_trigger t WHERE t.tgrelid IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_rewrite', to_jsonb(r) FROM pg_catalog.pg_rewrite r WHERE r.ev_class IN (SELECT oid FROM relations)
    UNION ALL
    SELECT 'pg_policy', to_jsonb(p) FROM pg_catalog.pg_policy p
    UNION ALL
    SELECT 'pg_proc', to_jsonb(p) FROM pg_catalog.pg_proc p
    WHERE p.oid >= 16384 AND p.pronamespace NOT IN (SELECT oid FROM temporary)
    UNION ALL
    SELECT 'pg_type', to_jsonb(t) FROM pg_catalog.pg_type t
    WHERE t.oid >= 16384 AND t.typnamespace NOT IN (SELECT oid FROM temporary)
    UNION ALL
    SELECT 'pg_operator', to_jsonb(o) FROM pg_catalog.pg_operator o WHERE o.oid >= 16384
    UNION ALL
    SELECT 'pg_cast', to_jsonb(c) FROM pg_catalog.pg_cast c WHERE c.oid >= 16384
    UNION ALL
    SELECT 'pg_inherits', to_jsonb(i) FROM pg_catalog.pg_inherits i
    UNION ALL
    SELECT 'pg_statistic_ext', to_jsonb(s) FROM pg_catalog.pg_statistic_ext s
    UNION ALL
    SELECT 'pg_sequence', to_jsonb(s) FROM pg_catalog.pg_sequence s
    UNION ALL
    SELECT 'pg_publication', to_jsonb(p) FROM pg_catalog.pg_publication p
    UNION ALL
    SELECT 'pg_publication_rel', to_jsonb(p) FROM pg_catalog.pg_publication_rel p
    UNION ALL
    SELECT 'pg_publication_namespace', to_jsonb(p) FROM pg_catalog.pg_publication_namespace p
    UNION ALL
    SELECT 'pg_event_trigger', to_jsonb(e) FROM pg_catalog.pg_event_trigger e
    UNION ALL
    SELECT 'pg_language', to_jsonb(l) FROM pg_catalog.pg_language l
    UNION ALL
    SELECT 'pg_extension', to_jsonb(e) FROM pg_catalog.pg_extension e
    UNION ALL
    SELECT 'pg_default_acl', to_jsonb(d) FROM pg_catalog.pg_default_acl d
    UNION ALL
    SELECT 'pg_namespace', to_jsonb(n) FROM pg_catalog.pg_namespace n WHERE n.oid NOT IN (SELECT oid FROM temporary)
    UNION ALL
    SELECT 'pg_description', to_jsonb(d) FROM pg_catalog.pg_description d
    WHERE d.objoid >= 16384 OR d.classoid = 'pg_catalog.pg_namespace'::regclass
    UNION ALL
    SELECT 'pg_depend', to_jsonb(d) FROM pg_catalog.pg_depend d
    WHERE (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid IN (SELECT oid FROM relations)) OR d.deptype = 'e'
    UNION ALL
    SELECT 'pg_database', to_jsonb(d) - '{datfrozenxid,datminmxid}'::text[] FROM pg_catalog.pg_database d
    WHERE d.datname = current_database()
    UNION ALL
    SELECT 'pg_db_role_setting', to_jsonb(s) FROM pg_catalog.pg_db_role_setting s
    JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase WHERE d.datname = current_database()
    UNION ALL
    SELECT 'rows', jsonb_build_object('table', c.oid::regclass, 'digest', (xpath('/row/rows/text()', query_to_xml(format(
        'SELECT concat(count(*), '' '', md5(string_agg(r::text, '' '' ORDER BY r::text COLLATE "C"))) AS rows FROM ONLY %s AS r',
        c.oid::regclass), false, true, '')))[1]::text)
    FROM relations c
    WHERE c.relkind = 'r' AND c.relpersistence <> 't'
)
SELECT what, line::text FROM lines ORDER BY 1, 2;
