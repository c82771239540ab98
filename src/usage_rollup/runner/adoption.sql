-- Where a database stands, said once: the runner asks it, a script embeds it.
--
-- What: `standing` reads alembic_version, the ledger of the product's own runner and the catalog, asks
--   `decision`, and leaves its answer in the setting usage_rollup.standing, as JSON.
-- Why together: the product's runner writes its ledger row in a transaction after the step's, so a crash leaves
--   the schema one step ahead of the ledger.
-- Assumes: nothing; it writes nothing. Locks: ACCESS SHARE on the two ledgers and, on the way to nothing, on
--   the product's tables; who keeps it from them for longer than lock_timeout is named.
-- Gaps are closed by adoption.py from contract.py.

-- name: standing
DO $standing$
DECLARE
    c_version_table CONSTANT text := COALESCE(
        NULLIF(current_setting('usage_rollup.version_table', true), ''), 'alembic_version');
    v_version text;
    v_versions text[];
    v_ledger text[];
    v_foreign_ledger boolean := false;
    v_objects text[];
    v_filled text[];
    v_table text;
    v_is_filled boolean;
    v_standing jsonb;
    v_blockers record;
BEGIN
    IF to_regclass(format('public.%I', c_version_table)) IS NOT NULL THEN
        EXECUTE format(
            'SELECT MAX(version_num), array_agg(version_num::text ORDER BY 1) FROM public.%I', c_version_table)
        INTO v_version, v_versions;
    END IF;
    IF to_regclass('public.schema_migrations') IS NOT NULL THEN
        v_foreign_ledger := NOT EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = to_regclass('public.schema_migrations') AND a.attname = 'version'
                AND a.atttypid = 'text'::regtype);
        IF NOT v_foreign_ledger THEN
            v_ledger := ARRAY(SELECT version FROM public.schema_migrations);
        END IF;
    END IF;
    -- Also at the newest revision: a version is easily stamped, and says nothing about the schema.
    v_objects := ARRAY(
        :objects);
    IF :to_nothing THEN
        FOREACH v_table IN ARRAY :product LOOP
            IF to_regclass(format('public.%I', v_table)) IS NOT NULL THEN
                EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', v_table) INTO v_is_filled;
                v_filled := CASE WHEN v_is_filled THEN array_append(v_filled, v_table) ELSE v_filled END;
            END IF;
        END LOOP;
    END IF;

    SELECT to_jsonb(d) INTO STRICT v_standing FROM (
        :decision
    ) AS d;
    PERFORM set_config('usage_rollup.standing', v_standing::text, false);
:name_the_holder
$standing$;

-- name: objects
-- The catalog, one name a row, in the words of contract.py. Objects of extensions are not the product's.
WITH relations AS (
    SELECT c.oid, c.relname FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        AND c.relname NOT IN (
            'alembic_version', COALESCE(current_setting('usage_rollup.version_table', true), ''))
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
)
SELECT 'table ' || relname FROM relations
UNION ALL
SELECT 'column ' || r.relname || '.' || a.attname FROM relations r
JOIN pg_attribute a ON a.attrelid = r.oid WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'trigger ' || r.relname || '.' || t.tgname FROM relations r
JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL
SELECT 'index ' || i.relname FROM relations r
JOIN pg_index x ON x.indrelid = r.oid JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indisvalid
UNION ALL
SELECT DISTINCT 'function ' || p.proname FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.prokind = 'f';

-- name: decision
-- `start` is the revision an upgrade goes on from, NULL for nothing; `reason` says why that is another than
-- alembic_version's, and `missing_stems` what the ledger then lacks. Refusals are about an upgrade, a downgrade,
-- the way to nothing (`base`) or the ledger itself; of several, the first counts.
WITH seen AS (
    SELECT COALESCE(v_ledger, '{}') AS ledger, COALESCE(v_objects, '{}') AS objects,
        (SELECT MAX(l COLLATE "C") FROM unnest(v_ledger) AS l) AS newest,
        :baseline AS baseline, :baseline_tables AS baseline_tables, :hourly AS hourly,
        :legacy AS legacy, :legacy_tables AS legacy_tables
), facts AS (
    SELECT s.*, p.piped, p.piped AND NOT s.objects && s.legacy_tables AS dropped,
        :our_functions = ANY (s.objects) AS ours,
        -- At the head, where a later release has not gone on with what it has made of it.
        (v_version IN ('102', '103') OR v_version = :head AND COALESCE(s.newest, :head_stem) = :head_stem)
            AND :pipeline <> ALL (s.objects)
            AND (:our_functions = ANY (s.objects) OR 'table task_usage_hourly' = ANY (s.objects)) AS half_undone,
        -- Later releases changed more of the schema than this chain knows; only the ledger counts, unless the
        -- legacy rollups are all there.
        l.told AND NOT s.legacy_tables <@ s.objects AS past, l.told
    FROM seen s
    CROSS JOIN LATERAL (SELECT COALESCE(s.newest >= :head_stem COLLATE "C", false) AS told) AS l
    CROSS JOIN LATERAL (
        -- A function of that name without any table of 101 is somebody else's.
        SELECT :pipeline_stem = ANY (s.ledger) OR :pipeline = ANY (s.objects) AND s.hourly && s.objects AS piped) AS p
), steps AS (
    SELECT left(stem, 3) AS revision, stem, stem = ANY (f.ledger) AS recorded,
        CASE left(stem, 3)
            WHEN '097' THEN true
            WHEN '100' THEN :user_timezone = ANY (f.objects)
            WHEN '101' THEN f.hourly <@ (f.objects
                || CASE WHEN 'table task_usage_hourly_backfill' = ANY (f.objects) THEN :built_by_the_walk END)
            WHEN '102' THEN f.piped
            WHEN '103' THEN f.dropped
            WHEN '104' THEN f.dropped AND :runtime_timezone <> ALL (f.objects) END AS done
    FROM facts f, unnest(:stems) AS stem
), place AS (
    SELECT s.revision AS reached, s.stem,
        -- The functions of the Go release's 102 count for nothing: ours replace them.
        CASE WHEN s.revision = '102' THEN '101' ELSE s.revision END AS goes_on,
        CASE WHEN s.revision = '102' AND NOT f.ours THEN '101' ELSE s.revision END AS shown
    FROM steps s, facts f WHERE s.done OR f.past ORDER BY s.revision DESC LIMIT 1
), listed (list, name) AS (
    SELECT 'v0.3.4', o FROM facts, unnest(baseline || legacy) AS o WHERE o <> ALL (objects)
    UNION ALL
    SELECT 'baseline', o FROM facts, unnest(baseline) AS o WHERE o <> ALL (objects)
    UNION ALL
    SELECT 'used', o FROM facts, unnest(baseline) AS o
    WHERE o <> ALL (objects) AND o ~ '^(table|column) ' AND NOT (o = :runtime_timezone AND dropped)
    UNION ALL
    SELECT 'hourly', o FROM facts, unnest(hourly) AS o WHERE o <> ALL (objects)
    UNION ALL
    SELECT 'left over', o FROM facts, unnest(legacy_tables) AS o WHERE o = ANY (objects)
), lists AS (
    SELECT l.list, concat(
        array_to_string((array_agg(l.name ORDER BY l.name NOT LIKE 'table %', l.name COLLATE "C"))[:8], ', '),
        CASE WHEN COUNT(*) > 8 THEN format(' and %s more', COUNT(*) - 8) END) AS names
    FROM listed l
    -- A missing table says enough about its columns.
    WHERE NOT EXISTS (
        SELECT FROM listed t
        WHERE t.list = l.list AND starts_with(l.name, replace(t.name, 'table ', 'column ') || '.'))
    GROUP BY l.list
), gaps (n, stem, although) AS (
    SELECT 3, s.stem, f.newest FROM steps s, facts f WHERE f.told AND NOT s.recorded
    UNION ALL
    SELECT 3, s.stem, p.stem FROM steps s, facts f, place p
    WHERE NOT f.told AND s.revision < p.reached AND NOT s.done
    UNION ALL
    -- A crash of the Go runner leaves its last step unrecorded, and no other.
    SELECT 5, s.stem, p.stem FROM steps s, facts f, place p
    WHERE NOT f.past AND s.revision < p.reached AND NOT s.recorded
), problems (n, message, hint) AS (
    SELECT 1, 'this is not the product''s database: it holds a schema_migrations table and none of the'
        ' product''s tables', 'point DATABASE_URL at the right database'
    FROM facts WHERE NOT objects && baseline_tables
    UNION ALL
    SELECT 2, concat('this database is older than v0.3.4: its ledger lacks ', s.stem, ', its schema ' || l.names),
        'upgrade the product to v0.3.4 first, then run this again'
    FROM steps s LEFT JOIN lists l ON l.list = 'v0.3.4' WHERE s.revision = '097' AND NOT s.recorded
    UNION ALL
    SELECT g.n, format('a step is missing in the middle: %s is not recorded or not done, although %s is',
        string_agg(g.stem, ', ' ORDER BY g.stem), g.although),
        'restore the database from a backup taken before the steps were mixed up'
    FROM gaps g GROUP BY g.n, g.although
    UNION ALL
    SELECT 4, format('the ledger records %s, but the schema does not show it: %s', s.stem, CASE s.revision
            WHEN '100' THEN 'missing ' || :user_timezone
            WHEN '101' THEN 'missing ' || (SELECT names FROM lists WHERE list = 'hourly')
            ELSE 'still there: ' || (SELECT names FROM lists WHERE list = 'left over') END),
        'restore what is named above, or, if the step was undone on purpose, delete its row from schema_migrations'
    FROM steps s, facts f WHERE s.recorded AND NOT s.done AND NOT f.past
    UNION ALL
    -- Of a database of ours, the chain's own steps and the guard of 103 say it.
    SELECT 6, 'this database is not a complete v0.3.4: missing ' || l.names,
        'upgrade the product to v0.3.4 first, then run this again'
    FROM lists l, place p
    WHERE v_version IS NULL AND p.goes_on <> :head
        AND l.list = CASE WHEN p.goes_on = '103' THEN 'baseline' ELSE 'v0.3.4' END
), start AS (
    SELECT CASE WHEN v_version = :head OR v_ledger IS NULL OR EXISTS (SELECT FROM problems) THEN v_version
                ELSE GREATEST(v_version, p.goes_on) END AS revision
    FROM place p
), missing AS (
    SELECT s.stem FROM steps s, start t
    WHERE t.revision IS DISTINCT FROM v_version AND s.revision <= t.revision AND NOT s.recorded
), refusals (about, n, message, hint) AS (
    SELECT a.about, 0, 'schema_migrations is not the product''s ledger: it has no column version of type text',
        'point DATABASE_URL at the product''s database'
    FROM (VALUES ('ledger'), ('upgrade'), ('downgrade')) AS a (about)
    WHERE v_foreign_ledger
    UNION ALL
    SELECT a.about, 1, format('alembic_version holds %s, which is no revision of this chain', v_version),
        'point DATABASE_URL at the product''s database, or use the release of this package that wrote it; where'
            ' the table is another application''s, :another_table'
    FROM (VALUES ('upgrade'), ('downgrade')) AS a (about)
    WHERE v_version NOT IN (SELECT s.revision FROM steps s)
    UNION ALL
    SELECT a.about, 0, format('alembic_version holds several rows: %s', array_to_string(v_versions, ', ')),
        CASE WHEN v_versions <@ ARRAY(SELECT s.revision FROM steps s)
            THEN format('put it right, then run this again: alembic stamp --purge %s', p.shown)
            ELSE 'where they are another application''s, :another_table' END
    FROM place p, (VALUES ('upgrade'), ('downgrade')) AS a (about) WHERE cardinality(v_versions) > 1
    UNION ALL
    SELECT 'upgrade', 2, 'this database holds tables but no ledger (schema_migrations) and no alembic_version,'
        ' so nothing says which product release made it',
        'start the product''s release v0.3.4 on it once, or point DATABASE_URL at the right database'
    FROM facts f WHERE v_ledger IS NULL AND v_version IS NULL
        AND EXISTS (SELECT FROM unnest(f.objects) AS o WHERE o LIKE 'table %')
    UNION ALL
    -- With a revision of ours there is nothing to skip.
    SELECT 'upgrade', 2 + p.n, p.message, p.hint FROM problems p WHERE v_ledger IS NOT NULL AND v_version IS NULL
    UNION ALL
    SELECT 'upgrade', 8, 'this database is not a complete v0.3.4: missing ' || l.names,
        'upgrade the product to v0.3.4 first, then run this again'
    FROM lists l, start t WHERE l.list = 'used' AND v_version IS NOT NULL AND t.revision < :head
    UNION ALL
    -- Stamped, or restored beside: no step makes up for what is only said.
    SELECT a.about, CASE a.about WHEN 'upgrade' THEN 7 ELSE 1 END, concat(format('alembic_version says %s, but ', v.stem),
            CASE WHEN v_ledger IS NOT NULL THEN 'ledger and ' END, format('schema show %s', p.stem),
            CASE WHEN v.revision = '101' THEN ': missing ' || (SELECT names FROM lists WHERE list = 'hourly') END),
        format('put it right, then run this again: alembic stamp --purge %s', p.shown)
    FROM steps v, facts f, place p, (VALUES ('upgrade'), ('downgrade')) AS a (about)
    WHERE v.revision = v_version AND v_version > p.shown AND NOT f.half_undone
    UNION ALL
    SELECT 'upgrade', 8, format('schema_migrations lacks %s, although alembic_version says %s',
            string_agg(s.stem, ', ' ORDER BY s.stem), v_version),
        'INSERT INTO public.schema_migrations (version) VALUES '
            || string_agg(format('(%L)', s.stem), ', ' ORDER BY s.stem)
    FROM steps s, start t
    WHERE v_ledger IS NOT NULL AND NOT v_foreign_ledger AND s.revision <= v_version AND t.revision = v_version
        AND NOT s.recorded
    HAVING COUNT(*) > 0
    UNION ALL
    -- The Go release's own way back takes the contract's functions, and leaves alembic_version and ours.
    SELECT 'upgrade', 6, format('alembic_version says %s, but somebody else has undone %s: missing %s',
        v_version, :pipeline_stem, :pipeline), 'put it back: `alembic downgrade 100`, then `alembic upgrade head`'
    FROM facts f WHERE f.half_undone
    UNION ALL
    SELECT 'upgrade', 9, format('the hourly rollup is not whole at %s: missing %s', t.revision,
        string_agg(o, ', ' ORDER BY o)), CASE WHEN f.ours
            THEN 'put it back: `alembic downgrade 100`, then `alembic upgrade head`'
            ELSE 'restore what is named above from a backup, or as ' || (
                SELECT s.stem FROM steps s WHERE s.revision = '101') || ' made it' END
    FROM facts f, start t, unnest(f.hourly) AS o
    WHERE t.revision >= '102' AND COALESCE(f.newest, :head_stem) <= :head_stem COLLATE "C"
        AND o <> ALL (f.objects || :built_by_the_walk)
        -- Before 103 its guard speaks of tables.
        AND (t.revision = :head OR NOT EXISTS (
            SELECT FROM unnest(f.hourly) AS h WHERE h LIKE 'table %' AND h <> ALL (f.objects)))
    GROUP BY t.revision, f.ours
    UNION ALL
    SELECT 'downgrade', 2, format('refusing to downgrade: the product''s own runner has gone on to %s, and its later'
        ' steps stand on this schema', f.newest),
        'to go back, restore a backup taken before the upgrade; to stay, alembic upgrade head'
    FROM facts f WHERE f.newest > :next_stem COLLATE "C"
    UNION ALL
    SELECT 'downgrade', 3, 'refusing to downgrade: the functions of the hourly rollup here are the product''s own,'
        ' not those of this chain',
        'at 101, `alembic upgrade 102` replaces them with some that can be undone; later, restore a backup taken'
        ' before the upgrade'
    FROM facts f WHERE :pipeline = ANY (f.objects) AND NOT f.ours
    UNION ALL
    SELECT 'downgrade', 4, format('refusing to downgrade: alembic_version says %s, and ledger and schema show %s',
        v_version, t.revision), '`alembic upgrade head` takes the database over where it stands'
    FROM start t WHERE v_version < t.revision
    UNION ALL
    SELECT 'base', 5, 'refusing to remove the v0.3.4 baseline: ' || b.because,
        'v0.3.4 itself is `alembic downgrade 097`; to discard the data, drop the whole database instead'
    FROM (VALUES
        (CASE WHEN v_ledger IS NOT NULL
            THEN 'the product''s own runner made this database, its ledger schema_migrations exists'
            ELSE 'these tables hold rows: ' || array_to_string(v_filled, ', ') END)) AS b (because)
    WHERE b.because IS NOT NULL
)
SELECT v_version AS version, v_ledger AS ledger, t.revision AS start, p.shown, :pipeline = ANY (f.objects) AS has_pipeline,
    ARRAY(SELECT m.stem FROM missing m ORDER BY m.stem) AS missing_stems,
    CASE WHEN t.revision IS DISTINCT FROM v_version THEN
        format('adopting a database of the product''s own runner at %s (%s rows in its ledger%s)',
            (SELECT s.stem FROM steps s WHERE s.revision = t.revision), cardinality(f.ledger),
            (SELECT '; the schema is ahead of it by ' || MIN(m.stem) FROM missing m)) END AS reason,
    (SELECT COALESCE(jsonb_agg(r ORDER BY r.n, r.message), '[]') FROM refusals r) AS refusals
FROM facts f, start t, place p;
