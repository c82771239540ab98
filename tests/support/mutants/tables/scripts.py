"""SQL that the runner and the scripts use, outside the revisions."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

_SRC = "src/usage_rollup"
BACKFILL = f"{_SRC}/hourly/backfill.sql"
VERIFY = f"{_SRC}/hourly/verify.sql"
UNSEEN = f"{_SRC}/hourly/unseen.sql"
SCHEDULE = f"{_SRC}/hourly/schedule.sql"
SCRIPT = f"{_SRC}/runner/script.sql"
TABLE_LOCKS = f"{_SRC}/runner/table_locks.sql"
CHECKS = f"{_SRC}/runner/checks.sql"
DEPENDENTS = f"{_SRC}/runner/dependents.sql"
ADOPTION = f"{_SRC}/runner/adoption.sql"
BLOCKERS = f"{_SRC}/session/blockers.sql"

OF_SCRIPTS = "tests/runner/test_script.py"
BOTH_WAYS = "tests/stories/test_upgrade_both_ways.py"
OF_VERIFY = "tests/hourly/test_verify.py"
OF_UNSEEN = "tests/hourly/test_unseen.py"
OF_SCHEDULE = "tests/hourly/test_schedule.py"
OF_CHECKS = "tests/runner/test_checks.py"
OF_DEPENDENTS = "tests/runner/test_dependents.py"
OF_ADOPTION = "tests/runner/test_adoption.py"
OF_BLOCKERS = "tests/session/test_blockers.py"
LOCKS_HELD = "tests/stories/test_locks_held.py"

_HERE = "(SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"
_OF_THE_ROLLUP = "JOIN pg_proc AS p ON p.oid = t.tgfoid\nWHERE r.relname = ANY (:hourly_tables)"
_KEY = "(l.classid::bigint << 32 | l.objid::bigint) = :key"
_ROWS_HELD = "o.written AND o.name <> 'task_usage_hourly_invalidation' AND l.granted"

MUTANTS: list[Mutant] = [
    # The walk of a script.
    Mutant(
        "a script walks on without 4246 after a rest",
        BACKFILL,
        "            v_has_lock := false;\n            COMMIT;\n",
        "            COMMIT;\n",
        f"{OF_SCRIPTS} -k 4246",
    ),
    Mutant(
        "a script gives 4246 to nobody who is blocked on it",
        BACKFILL,
        "IF v_has_walked AND (c_rest > interval '0' OR EXISTS (",
        "IF v_has_walked AND (c_rest > interval '0' OR false AND EXISTS (",
        f"{OF_SCRIPTS} -k 4246",
    ),
    Mutant(
        "a script gives 4246 to nobody of this database",
        BACKFILL,
        "AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())))",
        "AND l.database <> (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())))",
        f"{OF_SCRIPTS} -k 4246",
    ),
    Mutant(
        "a script gives 4246 away for somebody of another database",
        BACKFILL,
        f"\n                AND l.database = {_HERE}))",
        "))",
        f"{OF_SCRIPTS} -k 4246",
    ),
    Mutant(
        "a script rests only for somebody who is blocked",
        BACKFILL,
        "IF v_has_walked AND (c_rest > interval '0' OR EXISTS (",
        "IF v_has_walked AND (EXISTS (",
        f"{OF_SCRIPTS} -k 4246",
    ),
    Mutant(
        "a script keeps 4246 while it rests",
        BACKFILL,
        "            PERFORM pg_advisory_unlock(:hourly_rollup);\n",
        "",
        f"{OF_SCRIPTS} -k 4246",
    ),
    Mutant(
        "a script commits when all is walked",
        BACKFILL,
        "        COMMIT;\n        IF v_said IS NOT NULL THEN",
        "        IF v_said IS NOT NULL THEN",
        f"{OF_SCRIPTS} -k slices",
    ),
    Mutant(
        "a script waits for a table that is being vacuumed",
        BACKFILL,
        "EXECUTE format('ANALYZE (SKIP_LOCKED) public.%I', v_table);",
        "EXECUTE format('ANALYZE public.%I', v_table);",
        f"{BOTH_WAYS} -k vacuuming",
    ),
    Mutant(
        "a script waits for the rollup while it is being vacuumed",
        BACKFILL,
        "ANALYZE (SKIP_LOCKED) public.task_usage_hourly\n",
        "ANALYZE public.task_usage_hourly\n",
        f"{BOTH_WAYS} -k vacuuming",
    ),
    Mutant(
        "a script walks at a lag of exactly an hour",
        BACKFILL,
        "(v_state.no_usage OR v_state.lag > :lag_threshold AND NOT v_planned) THEN",
        "(v_state.no_usage OR v_state.lag >= :lag_threshold AND NOT v_planned) THEN",
        f"{BOTH_WAYS} -k hour",
    ),
    Mutant(
        "a script refuses a lag of exactly an hour",
        BACKFILL,
        "ELSIF v_phase = 'history' AND v_state.lag > :lag_threshold THEN",
        "ELSIF v_phase = 'history' AND v_state.lag >= :lag_threshold THEN",
        f"{BOTH_WAYS} -k hour",
    ),
    Mutant(
        "a script leaves said what was left out once",
        BACKFILL,
        "                DELETE FROM public.task_usage_hourly_left_out;\n",
        "",
        f"{BOTH_WAYS} -k left_out",
    ),
    Mutant(
        "a script leaves what is queued",
        BACKFILL,
        "PERFORM public.rollup_task_usage_hourly_window(timestamptz '-infinity', timestamptz '-infinity');",
        "NULL;",
        f"{BOTH_WAYS} -k queued",
    ),
    Mutant(
        "a script puts no state row back",
        BACKFILL,
        "INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO NOTHING;",
        "NULL;",
        f"{BOTH_WAYS} -k state_row",
    ),
    Mutant(
        "a script recomputes what differs once more",
        BACKFILL,
        "v_phase = 'proof' AND v_repairs < :repairs THEN",
        "v_phase = 'proof' AND v_repairs <= :repairs THEN",
        f"{BOTH_WAYS} -k differ",
    ),
    Mutant(
        "a script goes on although hours still differ",
        BACKFILL,
        "                IF v_count > 0 THEN\n                    RAISE EXCEPTION USING",
        "                IF v_count > 1000000 THEN\n                    RAISE EXCEPTION USING",
        f"{BOTH_WAYS} -k differ",
    ),
    Mutant(
        "a script leaves no proof to 103",
        BACKFILL,
        "PERFORM set_config('usage_rollup.proof', s.watermark_at::text, false)",
        "PERFORM set_config('usage_rollup.proof', s.watermark_at::text, true)",
        f"{OF_SCRIPTS} -k leaves",
    ),
    Mutant(
        "a script leaves no count of legacy totals to 103",
        BACKFILL,
        "PERFORM set_config('usage_rollup.legacy_excess', v_count::text, false);",
        "PERFORM set_config('usage_rollup.legacy_excess', v_count::text, true);",
        f"{OF_SCRIPTS} -k leaves",
    ),
    Mutant(
        "a script says nothing of what is set aside",
        BACKFILL,
        "SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_set_aside;",
        "v_count := 0;",
        f"{BOTH_WAYS} -k does_not_show",
    ),
    Mutant(
        "a script says nothing of usage without a date",
        BACKFILL,
        "SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_undated();",
        "v_count := 0;",
        f"{BOTH_WAYS} -k does_not_show",
    ),
    Mutant(
        "a script takes legacy totals that exist only there for none",
        BACKFILL,
        "SELECT COUNT(*) INTO v_count FROM public.task_usage_hourly_legacy_excess();",
        "v_count := 0;",
        f"{BOTH_WAYS} -k does_not_show",
    ),
    Mutant(
        "a script goes on without a horizon",
        BACKFILL,
        "IF v_horizon = '-infinity' AND NOT v_state.no_usage THEN",
        "IF false AND NOT v_state.no_usage THEN",
        f"{OF_SCRIPTS} -k horizon",
    ),
    Mutant(
        "a script believes a watermark in the future",
        BACKFILL,
        "IF v_state.watermark_at > clock_timestamp() THEN",
        "IF v_state.watermark_at > clock_timestamp() + interval '2 days' THEN",
        f"{BOTH_WAYS} -k future",
    ),
    Mutant(
        "a script analyses what has statistics and not what has none",
        BACKFILL,
        "WHERE NOT EXISTS (SELECT FROM pg_stats s",
        "WHERE EXISTS (SELECT FROM pg_stats s",
        f"{BOTH_WAYS} -k statistics",
    ),
    # verify.
    Mutant(
        "hours before the question are counted as pending",
        VERIFY,
        "\n     WHERE CAST(:since AS timestamptz) IS NULL\n"
        "        OR p.hour >= public.task_usage_hour_bucket(CAST(:since AS timestamptz)))",
        "\n     WHERE CAST(:since AS timestamptz) IS NULL OR true)",
        f"{OF_VERIFY} -k begins_where",
    ),
    Mutant(
        "the hour in which the question begins is not pending",
        VERIFY,
        "OR p.hour >= public.task_usage_hour_bucket(CAST(:since AS timestamptz)))",
        "OR p.hour >= CAST(:since AS timestamptz))",
        f"{OF_VERIFY} -k begins_where",
    ),
    Mutant(
        "hours that differ without a bucket are not judged",
        VERIFY,
        "    UNION SELECT unnest(CAST(:differing AS timestamptz[]))\n",
        "    WHERE CAST(:differing AS timestamptz[]) IS NOT NULL\n",
        f"{OF_VERIFY} -k without_any_bucket",
    ),
    Mutant(
        "buckets that no client can read count as judged",
        VERIFY,
        "WHERE bucket_hour < '9999-01-01 00:00:00+00' AND bucket_hour >= GREATEST(",
        "WHERE bucket_hour >= GREATEST(",
        f"{OF_VERIFY} -k only_the_products",
    ),
    Mutant(
        "what is pending counts as judged",
        VERIFY,
        "WHERE h.hour NOT IN (SELECT public.task_usage_hourly_pending_hours());",
        "WHERE true;",
        f"{OF_VERIFY} -k begins_where",
    ),
    Mutant(
        "the newest hour is one that reports cannot show",
        VERIFY,
        "FROM public.task_usage\n     WHERE public.task_usage_hourly_dated(created_at)),",
        "FROM public.task_usage),",
        f"{OF_VERIFY} -k newest",
    ),
    Mutant(
        "the newest hour is not looked for in the rollup",
        VERIFY,
        "FROM public.task_usage_hourly WHERE public.task_usage_hourly_dated(bucket_hour)));",
        "FROM public.task_usage_hourly WHERE false));",
        f"{OF_VERIFY} -k newest",
    ),
    Mutant(
        "what is pending is told as a difference",
        VERIFY,
        "timestamptz '9999-01-01 00:00:00+00', false) AS d (hour)",
        "timestamptz '9999-01-01 00:00:00+00', true) AS d (hour)",
        f"{OF_VERIFY} -k judges",
    ),
    # What nobody sees.
    Mutant(
        "a subscription that writes the rollup is not named",
        UNSEEN,
        " OR starts_with(c.relname, 'task_usage_hourly'))",
        ")",
        f"{OF_UNSEEN} -k by_what_it_writes",
    ),
    Mutant(
        "a subscription that writes anything is named",
        UNSEEN,
        "    AND (c.relname IN ('agent', 'agent_task_queue', 'issue', 'task_usage')"
        " OR starts_with(c.relname, 'task_usage_hourly'))\n",
        "",
        f"{OF_UNSEEN} -k by_what_it_writes",
    ),
    Mutant(
        "a trigger of ours for sessions of origin alone is well",
        UNSEEN,
        "THEN t.tgenabled <> 'A' ELSE",
        "THEN t.tgenabled IN ('D', 'R') ELSE",
        f"{OF_UNSEEN} -k trigger",
    ),
    Mutant(
        "a trigger of the product's for replicas alone is well",
        UNSEEN,
        "ELSE t.tgenabled IN ('D', 'R') END",
        "ELSE t.tgenabled = 'D' END",
        f"{OF_UNSEEN} -k trigger",
    ),
    Mutant(
        "a trigger of the contract's that does nothing here is missed",
        UNSEEN,
        "    AND substring(p.proname FROM 37) IN ('tu', 'atq', 'issue_delete', 'issue_project')"
        " <> CAST(:ours AS boolean)\n",
        "",
        f"{OF_UNSEEN} -k trigger",
    ),
    Mutant(
        "anybody's trigger that is switched off is ours",
        UNSEEN,
        "    AND p.pronamespace = 'public'::regnamespace"
        " AND starts_with(p.proname, 'enqueue_task_usage_hourly_dirty_for_')\n",
        "    AND starts_with(p.proname, 'enqueue_')\n",
        f"{OF_UNSEEN} -k trigger",
    ),
    Mutant(
        "replicas of other databases are named",
        UNSEEN,
        "WHERE (s.setdatabase = 0 OR d.datname = current_database())",
        "WHERE true",
        f"{OF_UNSEEN} -k replica",
    ),
    Mutant(
        "replicas of every database are not named",
        UNSEEN,
        "WHERE (s.setdatabase = 0 OR d.datname = current_database())",
        "WHERE d.datname = current_database()",
        f"{OF_UNSEEN} -k replica",
    ),
    Mutant(
        "replicas by database alone are not named",
        UNSEEN,
        "LEFT JOIN pg_catalog.pg_roles r",
        "JOIN pg_catalog.pg_roles r",
        f"{OF_UNSEEN} -k replica",
    ),
    Mutant(
        "whoever sets the role of its sessions plays replica",
        UNSEEN,
        "'^session_replication_role=replica'",
        "'^session_replication_role='",
        f"{OF_UNSEEN} -k replica",
    ),
    # pg_cron.
    Mutant(
        "the job of another database is unscheduled",
        SCHEDULE,
        "WHERE database = current_database() AND jobname = :job",
        "WHERE jobname = :job",
        f"{OF_SCHEDULE} -k job",
    ),
    Mutant(
        "every job of this database is unscheduled",
        SCHEDULE,
        "WHERE database = current_database() AND jobname = :job",
        "WHERE database = current_database() AND :job IS NOT NULL",
        f"{OF_SCHEDULE} -k job",
    ),
    Mutant(
        "whoever may not read the jobs may use pg_cron",
        SCHEDULE,
        "has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS usable",
        "has_schema_privilege(n.oid, 'USAGE') AS usable",
        f"{OF_SCHEDULE} -k not_read_the_jobs",
    ),
    Mutant(
        "anybody's schema cron is pg_cron",
        SCHEDULE,
        "\n        AND n.nspowner IN (SELECT r.oid FROM pg_roles r WHERE r.rolsuper)",
        "",
        f"{OF_SCHEDULE} -k superuser",
    ),
    # Around the steps of a script.
    Mutant(
        "a session that goes on after a script keeps 4246",
        SCRIPT,
        "FROM (VALUES (:run), (:rollup)) AS l (key)",
        "FROM (VALUES (:run)) AS l (key)",
        f"{OF_SCRIPTS} -k goes_on",
    ),
    Mutant(
        "a step of a script is done although the one before it was not",
        SCRIPT,
        "IS DISTINCT FROM :version THEN",
        "IS NULL AND :version IS NULL THEN",
        f"{OF_SCRIPTS} -k later_step",
    ),
    Mutant(
        "a script begins anywhere",
        SCRIPT,
        "IF c_here <> c_start AND v_reasons = '[]' THEN",
        "IF c_here < c_start AND v_reasons = '[]' THEN",
        f"{OF_SCRIPTS} -k another_place",
    ),
    Mutant(
        "a way back begins where an upgrade goes on",
        SCRIPT,
        "CASE c_command WHEN 'upgrade' THEN 'start' ELSE 'version' END",
        "CASE c_command WHEN 'upgrade' THEN 'start' ELSE 'start' END",
        f"{OF_SCRIPTS} -k another_place",
    ),
    Mutant(
        "a script adopts without recording what was done",
        SCRIPT,
        "SELECT jsonb_array_elements_text(c_standing -> 'missing_stems') ON CONFLICT DO NOTHING;",
        "SELECT 'none' WHERE false;",
        f"{BOTH_WAYS} -k not_recorded",
    ),
    # Table locks.
    Mutant(
        "a step goes on with the short waits of its table locks",
        TABLE_LOCKS,
        "            PERFORM set_config('lock_timeout', c_lock_timeout, true);\n            RETURN;",
        "            RETURN;",
        "tests/hourly/test_guard.py -k may_wait",
    ),
    Mutant(
        "who may only add to the ledger is refused",
        TABLE_LOCKS,
        "WHEN w.number < 0 AND NOT has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE') THEN",
        "WHEN false THEN",
        "tests/stories/test_least_role.py -k only_add",
    ),
    Mutant(
        "tables kept in the second schema are not locked",
        TABLE_LOCKS,
        "regexp_replace(n.nspname, '_[0-9]+$', '') || '.' || c.relname = w.name",
        "n.nspname || '.' || c.relname = w.name",
        f"{LOCKS_HELD} -k kept",
    ),
    Mutant(
        "tables of one name in any schema are locked",
        TABLE_LOCKS,
        "    ELSE n.nspname = 'public' END",
        "    ELSE true END",
        f"{LOCKS_HELD} -k other_schemas",
    ),
    Mutant(
        "a ledger is locked after the tables",
        TABLE_LOCKS,
        "GROUP BY w.number, w.mode ORDER BY w.number",
        "GROUP BY w.number, w.mode ORDER BY w.number DESC",
        f"{LOCKS_HELD} -k asked_for_before_the",
    ),
    Mutant(
        "table locks are waited for and never given way",
        TABLE_LOCKS,
        "current_setting('deadlock_timeout')::interval) * 800 / v_lock.all_tables)::text, true);",
        "current_setting('deadlock_timeout')::interval) * 8000000 / v_lock.all_tables)::text, true);",
        "tests/hourly/test_guard.py -k gives_way",
    ),
    # Checks.
    Mutant(
        "a group of the owner's is a stranger",
        CHECKS,
        "SELECT m.roleid FROM groups AS g JOIN pg_auth_members AS m ON m.member = g.oid",
        "SELECT g.oid FROM groups AS g",
        f"{OF_CHECKS} -k no_stranger",
    ),
    Mutant(
        "a member of the owner is a stranger",
        CHECKS,
        "\n        OR pg_has_role(r.oid, (SELECT owner FROM who), 'MEMBER')",
        "",
        f"{OF_CHECKS} -k no_stranger",
    ),
    Mutant(
        "a trigger that somebody relies on stops the upgrade",
        CHECKS,
        "OR r.relname = 'schema_migrations' AND x.owner NOT IN (SELECT t.oid FROM trusted AS t)",
        "OR r.relname = 'schema_migrations'",
        f"{OF_CHECKS} -k doubt",
    ),
    Mutant(
        "a rule on what is written is nothing",
        CHECKS,
        "WHERE r.relname = ANY (:hourly_tables) AND w.rulename <> '_RETURN'",
        "WHERE false",
        f"{OF_CHECKS} -k rule",
    ),
    Mutant(
        "a stranger's trigger on what is written is nothing",
        CHECKS,
        "WHERE r.relname = ANY (:hourly_tables) AND p.proowner NOT IN (SELECT u.oid FROM trusted AS u)",
        "WHERE false",
        f"{OF_CHECKS} -k strangers",
    ),
    Mutant(
        "one table of the product's may hide rows from the way back to nothing",
        CHECKS,
        "WHERE :empties AND r.relname IN ('user', 'workspace', 'project')",
        "WHERE :empties AND r.relname IN ('user', 'project')",
        f"{OF_CHECKS} -k row_security",
    ),
    Mutant(
        "a schema that holds something will do for the legacy tables",
        CHECKS,
        "            AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = n.oid)\n",
        "",
        f"{OF_CHECKS} -k spares",
    ),
    Mutant(
        "a table of somebody else's that no step alters need not be read",
        f"{_SRC}/runner/as_made.sql",
        "(pg_has_role(a.owner, r.relowner, 'USAGE')\n"
        "        OR NOT (r.altered OR r.relname = ANY (:hourly_tables)))",
        "pg_has_role(a.owner, r.relowner, 'USAGE')",
        "tests/runner/test_as_made.py -k somebody_else",
    ),
    Mutant(
        "the way back asks for no right to read",
        f"{_SRC}/runner/as_made.py",
        'for table in (*_READ, "agent_runtime") if "103" in steps else ():',
        'for table in (*_READ, "agent_runtime") if "102" in steps else ():',
        "tests/runner/test_as_made.py -k way_back_reads",
    ),
    Mutant(
        "a schema that holds a type will do for the legacy tables",
        CHECKS,
        "\n            AND NOT EXISTS (SELECT FROM pg_type AS y WHERE y.typnamespace = n.oid))",
        ")",
        f"{OF_CHECKS} -k spares",
    ),
    Mutant(
        "a schema of anybody's will do for the legacy tables",
        CHECKS,
        "WHERE n.nspname = 'legacy_usage' AND (o.rolsuper OR o.oid = w.owner)",
        "WHERE n.nspname = 'legacy_usage'",
        f"{OF_CHECKS} -k spares",
    ),
    Mutant(
        "a superuser's schema will not do for the legacy tables",
        CHECKS,
        "WHERE n.nspname = 'legacy_usage' AND (o.rolsuper OR o.oid = w.owner)",
        "WHERE n.nspname = 'legacy_usage' AND (o.oid = w.owner)",
        f"{OF_CHECKS} -k spares",
    ),
    Mutant(
        "whoever may not read the jobs of pg_cron finds out at 103",
        CHECKS,
        "    AND NOT has_table_privilege(c.oid, 'SELECT')\n\n-- name: doubts",
        "    AND false\n\n-- name: doubts",
        f"{OF_CHECKS} -k pg_cron",
    ),
    Mutant(
        "an event trigger that is switched off is a doubt",
        CHECKS,
        "WHERE e.evtenabled <> 'D' AND e.evtevent",
        "WHERE e.evtevent",
        f"{OF_CHECKS} -k doubt",
    ),
    Mutant(
        "a trigger of the rollup's that is switched off is a doubt",
        CHECKS,
        f" AND t.tgenabled <> 'D'\n{_OF_THE_ROLLUP}",
        f"\n{_OF_THE_ROLLUP}",
        f"{OF_CHECKS} -k doubt",
    ),
    Mutant(
        "the indexes that a killed walk dropped need no right to be built",
        CHECKS,
        "SELECT w.role FROM who AS w\n    WHERE :backfills AND",
        "SELECT w.role FROM who AS w\n    WHERE false AND",
        f"{OF_CHECKS} -k killed_walk",
    ),
    Mutant(
        "children of what is altered belong to nobody",
        CHECKS,
        "WHERE r.altered AND r.relname IN ('user', 'agent_runtime')",
        "WHERE r.altered AND r.relname IN ('user')",
        f"{OF_CHECKS} -k children",
    ),
    Mutant(
        "kept tables of somebody else's are taken back",
        CHECKS,
        "WHERE :takes_back AND n.nspname",
        "WHERE false AND n.nspname",
        f"{OF_CHECKS} -k taken_over",
    ),
    Mutant(
        "any table of that name is a version table",
        CHECKS,
        "AND (r.kind <> 'table' OR NOT EXISTS (",
        "AND (r.kind <> 'table' AND NOT EXISTS (",
        f"{OF_CHECKS} -k planted",
    ),
    Mutant(
        "a stranger's overload is in nobody's way",
        CHECKS,
        "        OR f.overload AND f.proowner NOT IN (SELECT t.oid FROM trusted AS t)\n",
        "",
        f"{OF_CHECKS} -k overload",
    ),
    Mutant(
        "the way back adds to the ledger",
        CHECKS,
        "WHEN :up THEN ARRAY['INSERT'] ELSE ARRAY['DELETE'] END) AS p (privilege)",
        "WHEN :up THEN ARRAY['INSERT'] ELSE ARRAY['INSERT'] END) AS p (privilege)",
        "tests/stories/test_least_role.py -k missing",
    ),
    # Who stands on what is dropped.
    Mutant(
        "what stands on a table and on a function could be kept with the table",
        DEPENDENTS,
        "bool_and(r.kind = 'table') AS by_tables_only",
        "bool_or(r.kind = 'table') AS by_tables_only",
        f"{OF_DEPENDENTS} -k named_before",
    ),
    Mutant(
        "who wants the tables dropped is told to keep them",
        DEPENDENTS,
        "SELECT d.by_tables_only AND :may_keep AS by_tables_only,",
        "SELECT d.by_tables_only AS by_tables_only,",
        f"{OF_DEPENDENTS} -k told_to_keep",
    ),
    Mutant(
        "a function of one name and other arguments counts as dropped",
        DEPENDENTS,
        " AND p.pronargs::text = d.part",
        "",
        f"{OF_DEPENDENTS} -k nobodys_way",
    ),
    Mutant(
        "a table of one name in another schema counts as dropped",
        DEPENDENTS,
        "WHERE d.kind = 'table' AND c.relnamespace = s.oid AND c.relname = d.name",
        "WHERE d.kind = 'table' AND c.relname = d.name",
        f"{OF_DEPENDENTS} -k nobodys_way",
    ),
    Mutant(
        "what stands on one column stands on the one that is dropped",
        DEPENDENTS,
        "SELECT 'pg_class'::regclass, a.attrelid, a.attnum FROM pg_class AS c",
        "SELECT 'pg_class'::regclass, a.attrelid, 0 FROM pg_class AS c",
        f"{OF_DEPENDENTS} -k nobodys_way",
    ),
    Mutant(
        "what is to be dropped first is named last",
        DEPENDENTS,
        "string_agg(g.mend, '; ' ORDER BY g.depth DESC, g.what)",
        "string_agg(g.mend, '; ' ORDER BY g.depth, g.what)",
        f"{OF_DEPENDENTS} -k named_before",
    ),
    Mutant(
        "what goes unasked stands in the way",
        DEPENDENTS,
        "WHERE d.deptype IN ('a', 'i', 'P', 'S')\n), blocking",
        "WHERE d.deptype IN ('i', 'P', 'S')\n), blocking",
        f"{OF_DEPENDENTS} -k named_before",
    ),
    # Where a database stands.
    Mutant(
        "tables of extensions count as the product's",
        ADOPTION,
        "\n        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')",
        "",
        f"{OF_ADOPTION} -k extension",
    ),
    # Who is in the way.
    Mutant(
        "holders of an advisory lock in other databases are counted",
        BLOCKERS,
        f"    AND {_KEY}\n    AND l.database = {_HERE};",
        f"    AND {_KEY};",
        f"{OF_BLOCKERS} -k advisory",
    ),
    Mutant(
        "who waits for an advisory lock holds it",
        BLOCKERS,
        "WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted\n",
        "WHERE l.locktype = 'advisory' AND l.objsubid = 1\n",
        f"{OF_BLOCKERS} -k advisory",
    ),
    Mutant(
        "a key of two halves is the whole one",
        BLOCKERS,
        "WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted\n",
        "WHERE l.locktype = 'advisory' AND l.granted\n",
        f"{OF_BLOCKERS} -k advisory",
    ),
    Mutant(
        "a key that ends alike is the same",
        BLOCKERS,
        f"    AND {_KEY}\n",
        "    AND l.objid::bigint = :key\n",
        f"{OF_BLOCKERS} -k advisory",
    ),
    Mutant(
        "readers are named as in the way of SHARE ROW EXCLUSIVE",
        BLOCKERS,
        "('SHARE ROW EXCLUSIVE', ARRAY['RowExclusiveLock',",
        "('SHARE ROW EXCLUSIVE', ARRAY['AccessShareLock', 'RowExclusiveLock',",
        f"{OF_BLOCKERS} -k way_of",
    ),
    Mutant(
        "who locks rows is named as in the way of SHARE ROW EXCLUSIVE",
        BLOCKERS,
        "('SHARE ROW EXCLUSIVE', ARRAY['RowExclusiveLock',",
        "('SHARE ROW EXCLUSIVE', ARRAY['RowShareLock', 'RowExclusiveLock',",
        f"{OF_BLOCKERS} -k way_of",
    ),
    Mutant(
        "writers are not in the way of SHARE ROW EXCLUSIVE",
        BLOCKERS,
        "('SHARE ROW EXCLUSIVE', ARRAY['RowExclusiveLock', ",
        "('SHARE ROW EXCLUSIVE', ARRAY[",
        f"{OF_BLOCKERS} -k way_of",
    ),
    Mutant(
        "who locks rows is not in the way of EXCLUSIVE",
        BLOCKERS,
        "('EXCLUSIVE', ARRAY['RowShareLock', ",
        "('EXCLUSIVE', ARRAY[",
        f"{OF_BLOCKERS} -k modes",
    ),
    Mutant(
        "holders of tables in other databases are counted",
        BLOCKERS,
        f"WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()\n    AND l.database = {_HERE};",
        "WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid();",
        f"{OF_BLOCKERS} -k same_number",
    ),
    Mutant(
        "who waits for a table holds it",
        BLOCKERS,
        "WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()\n    AND l.database",
        "WHERE l.pid IS DISTINCT FROM pg_backend_pid()\n    AND l.database",
        f"{OF_BLOCKERS} -k only_waits",
    ),
    Mutant(
        "a prepared transaction holds no table",
        BLOCKERS,
        "WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()\n    AND l.database",
        "WHERE l.granted AND l.pid <> pg_backend_pid()\n    AND l.database",
        f"{OF_BLOCKERS} -k prepared",
    ),
    Mutant(
        "this very session is in its own way",
        BLOCKERS,
        "WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()\n    AND l.database",
        "WHERE l.granted\n    AND l.database",
        f"{OF_BLOCKERS} -k very_session",
    ),
    Mutant(
        "whoever holds a lock in another database keeps a statement waiting",
        BLOCKERS,
        "l.locktype = 'relation' AND l.database = (SELECT h.oid FROM here h) AND l.pid",
        "l.locktype = 'relation' AND l.pid",
        f"{OF_BLOCKERS} -k another_database",
    ),
    Mutant(
        "a statement waits for its own session",
        BLOCKERS,
        "l.database = (SELECT h.oid FROM here h) AND l.pid IS DISTINCT FROM pg_backend_pid()",
        "l.database = (SELECT h.oid FROM here h)",
        f"{OF_BLOCKERS} -k another_database",
    ),
    Mutant(
        "whoever locks an index locks no table",
        BLOCKERS,
        "JOIN ours o ON o.oid = COALESCE(x.indrelid, l.relation)",
        "JOIN ours o ON o.oid = l.relation",
        f"{OF_BLOCKERS} -k statement_of_ours",
    ),
    Mutant(
        "who queues a change keeps statements waiting",
        BLOCKERS,
        _ROWS_HELD,
        "o.written AND l.granted",
        f"{OF_BLOCKERS} -k statement_of_ours",
    ),
    Mutant(
        "who holds no row keeps statements waiting",
        BLOCKERS,
        """ AND EXISTS (
                SELECT FROM pg_locks t
                WHERE t.locktype = 'transactionid' AND t.granted AND t.mode = 'ExclusiveLock'
                    AND t.virtualtransaction = l.virtualtransaction))""",
        ")",
        f"{OF_BLOCKERS} -k statement_of_ours",
    ),
    Mutant(
        "who keeps writers from a table that is only read keeps statements waiting",
        BLOCKERS,
        "OR o.written AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')",
        "OR l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')",
        f"{OF_BLOCKERS} -k statement_of_ours",
    ),
    Mutant(
        "a mode that is waited for keeps nobody waiting",
        BLOCKERS,
        "    AND (l.mode = 'AccessExclusiveLock'\n",
        "    AND (l.mode = 'AccessExclusiveLock' AND l.granted\n",
        f"{OF_BLOCKERS} -k still_waited_for",
    ),
    Mutant(
        "a worker of the run keeps the run waiting",
        BLOCKERS,
        "w.mode = 'ShareLock' AND w.pid = l.pid",
        "w.mode = 'ExclusiveLock' AND w.pid = l.pid",
        f"{OF_BLOCKERS} -k statement_of_ours",
    ),
    Mutant(
        "another version table is nobody's",
        BLOCKERS,
        "(COALESCE(NULLIF(current_setting('usage_rollup.version_table', true), ''), 'alembic_version'))",
        "('alembic_version')",
        f"{OF_BLOCKERS} -k statement_of_ours",
    ),
]
