"""103: its guard, what it drops and keeps, and the way back."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

UP = "alembic/versions/103_drop_legacy_daily_rollups.up.sql"
DOWN = "alembic/versions/103_drop_legacy_daily_rollups.down.sql"

GUARD = "tests/hourly/test_guard.py"
RELIED = "tests/stories/test_who_relied_on_it.py"
LOSSES = "tests/stories/test_losses.py"
BOTH_WAYS = "tests/stories/test_upgrade_both_ways.py"
DOWNGRADE = "tests/runner/test_downgrade.py"
WAY_BACK = "tests/runner/test_way_back.py"

_PROOF = "IF current_setting('usage_rollup.proof', true) IS DISTINCT FROM v_watermark::text THEN"
_NAMES = "n.name IN ('rollup_task_usage_daily', 'rollup_task_usage_dashboard_daily')"
_BEGAN = "COALESCE(NULLIF(current_setting('usage_rollup.began_as', true), ''), 'none')"
_IS_THERE = "to_regclass('public.task_usage_daily'), to_regclass('public.task_usage_daily_dirty'),"
_MAY_READ = """a.privilege_type = 'SELECT'
                    AND a.grantee = g.grantee)"""
_BOTH = "(to_regclass('public.task_usage_daily'), to_regclass('public.task_usage_dashboard_daily'))"

MUTANTS: list[Mutant] = [
    # The guard.
    Mutant(
        "any proof passes, whatever the watermark is now",
        UP,
        _PROOF,
        "IF COALESCE(current_setting('usage_rollup.proof', true), '') = '' THEN",
        f"{GUARD} -k proof",
    ),
    Mutant(
        "without a proof nothing is compared",
        UP,
        _PROOF,
        _PROOF.replace("IS DISTINCT FROM", "<>"),
        f"{GUARD} -k one_bucket",
    ),
    Mutant("what is proven is compared again", UP, _PROOF, "IF true THEN", f"{GUARD} -k proof"),
    Mutant(
        "a lag of exactly an hour is refused",
        UP,
        "ELSIF v_watermark < v_latest - interval '1 hour' THEN",
        "ELSIF v_watermark <= v_latest - interval '1 hour' THEN",
        f"{GUARD} -k lag",
    ),
    Mutant(
        "a watermark a little in the future is believed",
        UP,
        "ELSIF v_watermark > clock_timestamp() THEN",
        "ELSIF v_watermark > clock_timestamp() + interval '1 hour' THEN",
        f"{GUARD} -k future",
    ),
    Mutant(
        "without a state row nothing is refused",
        UP,
        "IF v_watermark IS NULL THEN",
        "IF v_watermark = '-infinity' THEN",
        f"{GUARD} -k state_row",
    ),
    Mutant(
        "what is queued is judged by the guard",
        UP,
        "timestamptz '-infinity', timestamptz 'infinity', false) AS d",
        "timestamptz '-infinity', timestamptz 'infinity', true) AS d",
        f"{GUARD} -k over_what_is_queued",
    ),
    Mutant(
        "one legacy table gone, and nothing is guarded",
        UP,
        "to_regclass('public.task_usage_dashboard_rollup_state')) = 0",
        "to_regclass('public.task_usage_dashboard_rollup_state')) < 6",
        f"{GUARD} -k one_legacy_table",
    ),
    Mutant(
        "a legacy table that is there is not seen",
        UP,
        _IS_THERE,
        _IS_THERE.removeprefix("to_regclass('public.task_usage_daily'), "),
        f"{GUARD} -k one_legacy_table",
    ),
    Mutant(
        "without usage what is left over is not seen",
        UP,
        "AND NOT EXISTS (SELECT FROM public.task_usage)",
        "OR NOT EXISTS (SELECT FROM public.task_usage)",
        f"{GUARD} -k left_over",
    ),
    Mutant(
        "a table locked by anybody ends the wait for 4246",
        UP,
        "WHERE pid = pg_backend_pid() AND locktype = 'relation' AND mode = 'AccessExclusiveLock'",
        "WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock'",
        f"{GUARD} -k waits",
    ),
    Mutant(
        "4246 is waited for under table locks",
        UP,
        "v_deadline := '-infinity';",
        "NULL;",
        f"{GUARD} -k under_table_locks",
    ),
    Mutant(
        "4246 is held beyond the transaction",
        UP,
        "WHILE NOT pg_try_advisory_xact_lock(4246) LOOP",
        "WHILE NOT pg_try_advisory_lock(4246) LOOP",
        f"{GUARD} -k holds_4246",
    ),
    Mutant(
        "the hourly table is not missed",
        UP,
        "        OR to_regclass('public.task_usage_hourly') IS NULL\n",
        "",
        f"{GUARD} -k without_the_hourly",
    ),
    # Jobs.
    Mutant(
        "jobs of other databases are unscheduled too",
        UP,
        "WHERE j.database = current_database() AND (",
        "WHERE (",
        f"{RELIED} -k other_databases",
    ),
    Mutant(
        "jobs of other databases are unscheduled where they call what goes",
        UP,
        f"{_NAMES} OR j.command ~* $1)",
        f"{_NAMES}) OR j.command ~* $1",
        f"{RELIED} -k other_databases",
    ),
    Mutant(
        "jobs of other databases are unscheduled where they bear the product's names",
        UP,
        f"WHERE j.database = current_database() AND (\n                {_NAMES} OR j.command ~* $1)",
        f"WHERE j.database = current_database() AND j.command ~* $1 OR {_NAMES}",
        f"{RELIED} -k other_databases",
    ),
    Mutant(
        "a ticker by one of the product's names is unscheduled",
        UP,
        "                    AND j.command !~* 'rollup_task_usage_hourly'\n",
        "",
        f"{RELIED} -k products_names",
    ),
    Mutant(
        "a job without a name that does something else is unscheduled",
        UP,
        "IF v_job.ends IS NOT TRUE THEN",
        "IF NOT v_job.ends THEN",
        f"{RELIED} -k something_else",
    ),
    Mutant(
        "jobs are looked for as the owner of task_usage",
        UP,
        f"PERFORM set_config('role', {_BEGAN}, true),\n",
        "PERFORM set_config('role', v_role, true),\n",
        f"{RELIED} -k superuser_who",
    ),
    Mutant(
        "pg_cron's policy is an error",
        UP,
        "set_config('row_security', 'on', true);",
        "set_config('row_security', 'off', true);",
        f"{RELIED} -k owner_ends",
    ),
    Mutant(
        "whoever may not use pg_cron is stopped",
        UP,
        "c.relname = 'job' AND has_schema_privilege(n.oid, 'USAGE')",
        "c.relname = 'job'",
        f"{RELIED} -k owner_ends",
    ),
    Mutant(
        "what follows the jobs runs as the session's role",
        UP,
        "PERFORM set_config('role', v_role, true), set_config('row_security', v_row_security, true);",
        "PERFORM set_config('row_security', v_row_security, true);",
        f"{BOTH_WAYS} -k belong",
    ),
    # Readers.
    Mutant(
        "columns of one table hide a right on all of the other",
        UP,
        "bool_and(g.of_columns) AS of_columns",
        "bool_or(g.of_columns) AS of_columns",
        f"{RELIED} -k could",
    ),
    Mutant(
        "who writes columns is taken for a reader",
        UP,
        f"WHERE c.attrelid IN {_BOTH}\n                AND a.privilege_type = 'SELECT'",
        f"WHERE c.attrelid IN {_BOTH}",
        f"{RELIED} -k could",
    ),
    Mutant(
        "who may write the hourly rollup is taken for its reader",
        UP,
        _MAY_READ,
        "a.grantee = g.grantee)",
        f"{RELIED} -k way_back",
    ),
    Mutant(
        "the owner of the hourly rollup is taken for a reader",
        UP,
        """AND g.grantee <> (
            SELECT h.relowner FROM pg_class h WHERE h.oid = to_regclass('public.task_usage_hourly'))""",
        "",
        f"{WAY_BACK} -k comments",
    ),
    Mutant(
        "who could read the hourly rollup before may not after the way back",
        UP,
        _MAY_READ,
        "false)",
        f"{RELIED} -k way_back",
    ),
    Mutant(
        "who could let others read may not any more",
        UP,
        "CASE WHEN v_reader.may_grant THEN ' WITH GRANT OPTION' ELSE '' END",
        "''",
        f"{RELIED} -k could",
    ),
    Mutant(
        "what readers were given is not remembered",
        UP,
        "IF to_regclass('public.task_usage_hourly_legacy_settings') IS NOT NULL THEN",
        "IF to_regclass('public.task_usage_hourly_legacy_settings') IS NULL THEN",
        f"{RELIED} -k way_back",
    ),
    # Drops.
    Mutant(
        "a function is left behind",
        UP,
        "DROP FUNCTION IF EXISTS public.task_usage_dashboard_rollup_lag_seconds();\n",
        "",
        f"{GUARD} -k nothing_of",
    ),
    Mutant(
        "a function that is gone already stops 103",
        UP,
        "DROP FUNCTION IF EXISTS public.enqueue_task_usage_daily_dirty_for_tu();",
        "DROP FUNCTION public.enqueue_task_usage_daily_dirty_for_tu();",
        "tests/runner/test_runner_lock.py -k go_runner",
    ),
    # Kept tables.
    Mutant(
        "the schema belongs to who migrates",
        UP,
        "EXECUTE format('CREATE SCHEMA %I AUTHORIZATION %I', v_schema, v_role);",
        "EXECUTE format('CREATE SCHEMA %I', v_schema);",
        f"{BOTH_WAYS} -k belong",
    ),
    Mutant(
        "the schema is made as the owner of task_usage, who may not",
        UP,
        f"PERFORM set_config('role', {_BEGAN}, true);\n",
        "\n",
        f"{BOTH_WAYS} -k belong",
    ),
    Mutant(
        "an older copy is in the way",
        UP,
        "AND (c.relname = ANY (v_tables) OR c.relname IN (",
        "AND (c.relname IN (",
        f"{LOSSES} -k schema",
    ),
    Mutant(
        "an index of the same name is in the way",
        UP,
        """(c.relname = ANY (v_tables) OR c.relname IN (
                        SELECT i.relname FROM unnest(v_tables) AS t
                        JOIN pg_index AS x ON x.indrelid = to_regclass('public.' || t)
                        JOIN pg_class AS i ON i.oid = x.indexrelid)))""",
        "c.relname = ANY (v_tables))",
        f"{LOSSES} -k schema",
    ),
    Mutant(
        "a schema that a superuser made for them is not used",
        UP,
        "NOT ((o.rolsuper OR o.rolname = v_role)\n",
        "NOT ((o.rolname = v_role)\n",
        f"{LOSSES} -k schema",
    ),
    Mutant(
        "the array types of the legacy tables meet no name",
        UP,
        "ON z.oid = c.reltype OR z.typelem = c.reltype",
        "ON z.oid = c.reltype",
        f"{LOSSES} -k schema",
    ),
    Mutant(
        "the row types of the legacy tables meet no name",
        UP,
        "ON z.oid = c.reltype OR z.typelem = c.reltype",
        "ON z.typelem = c.reltype",
        f"{LOSSES} -k schema",
    ),
    Mutant(
        "a schema of anybody's is used",
        UP,
        "NOT ((o.rolsuper OR o.rolname = v_role)\n                AND has_schema",
        "NOT (has_schema",
        "tests/runner/test_checks.py -k legacy_usage",
    ),
    Mutant(
        "a schema is used that the owner may not look into",
        UP,
        " AND has_schema_privilege(v_role, n.oid, 'USAGE')",
        "",
        f"{LOSSES} -k schema",
    ),
    Mutant(
        "an empty setting counts as a total",
        UP,
        "NULLIF(current_setting('usage_rollup.legacy_excess', true), '')",
        "current_setting('usage_rollup.legacy_excess', true)",
        f"{LOSSES} -k by_hand",
    ),
    Mutant(
        "undated usage keeps nothing",
        UP,
        "\n            OR EXISTS (SELECT FROM public.task_usage_hourly_undated())\n",
        "\n",
        f"{LOSSES} -k readable_years",
    ),
    Mutant(
        "usage that is set aside keeps nothing",
        UP,
        "IF EXISTS (SELECT FROM public.task_usage_hourly_set_aside)\n            OR EXISTS",
        "IF EXISTS",
        f"{LOSSES} -k set_aside",
    ),
    Mutant(
        "who wants the legacy tables dropped keeps them",
        UP,
        "ELSIF v_choice <> 'false' AND to_regclass",
        "ELSIF to_regclass",
        f"{LOSSES} -k operator",
    ),
    # The way back.
    Mutant(
        "readers whom readers let read stop the way back",
        DOWN,
        "FROM %s CASCADE', v_reader)",
        "FROM %s', v_reader)",
        f"{RELIED} -k way_back",
    ),
    Mutant(
        "a reader that is gone stops the way back",
        DOWN,
        "AND (s.name = '' OR s.name IN (SELECT r.rolname FROM pg_roles AS r))",
        "",
        f"{WAY_BACK} -k gone",
    ),
    Mutant(
        "readers are remembered for ever",
        DOWN,
        "DELETE FROM public.task_usage_hourly_legacy_settings AS s WHERE",
        "DELETE FROM public.task_usage_hourly_legacy_settings AS s WHERE false AND",
        f"{WAY_BACK} -k remembered",
        equivalent="the end of the same transaction deletes every row of step 103 anyway",
    ),
    Mutant(
        "transactions of other databases hold the legacy watermarks back",
        DOWN,
        "WHERE s.datid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())\n",
        "WHERE true\n",
        f"{DOWNGRADE} -k watermarks",
    ),
    Mutant(
        "a session without a transaction takes the legacy watermarks back",
        DOWN,
        " AND num_nonnulls(s.xact_start, l.pid) > 0;",
        ";",
        f"{DOWNGRADE} -k watermarks",
    ),
    Mutant(
        "the legacy watermarks pass a transaction that has not written yet",
        DOWN,
        "ELSE LEAST(v_watermark, MIN(s.xact_start)) END",
        "ELSE v_watermark END",
        f"{DOWNGRADE} -k watermarks",
    ),
    Mutant(
        "a transaction that hides its start holds nothing back",
        DOWN,
        "CASE WHEN bool_or(s.xact_start IS NULL) THEN '-infinity' ELSE LEAST",
        "CASE WHEN false THEN '-infinity' ELSE LEAST",
        f"{DOWNGRADE} -k watermarks",
    ),
    Mutant(
        "an hourly watermark in the future is believed on the way back",
        DOWN,
        "FROM public.task_usage_hourly_rollup_state AS s WHERE s.watermark_at < now();",
        "FROM public.task_usage_hourly_rollup_state AS s;",
        f"{DOWNGRADE} -k watermarks",
    ),
    Mutant(
        "without a watermark there is none",
        DOWN,
        "v_watermark := GREATEST(v_watermark, 'epoch');",
        "NULL;",
        f"{DOWNGRADE} -k watermarks",
    ),
    Mutant(
        "somebody's own copy moves back",
        DOWN,
        "WHERE n.nspname ~ '^legacy_usage(_[0-9]+)?$' AND",
        "WHERE n.nspname ~ '^legacy_usage' AND",
        f"{DOWNGRADE} -k kept",
    ),
    Mutant(
        "the second copy counts as newer than the tenth",
        DOWN,
        "ORDER BY length(n.nspname) DESC, n.nspname DESC",
        "ORDER BY n.nspname DESC",
        f"{DOWNGRADE} -k kept",
    ),
    Mutant(
        "kept watermarks go back",
        DOWN,
        "SET watermark_at = GREATEST(watermark_at, $1)', v_name)",
        "SET watermark_at = $1', v_name)",
        f"{DOWNGRADE} -k kept_watermarks",
    ),
    Mutant(
        "a model name that is too long for a kept rollup stops the way back",
        DOWN,
        "WHEN data_exception OR program_limit_exceeded THEN\n                -- Usage",
        "WHEN data_exception THEN\n                -- Usage",
        f"{DOWNGRADE} -k too_long_a_model_name",
    ),
    Mutant(
        "half a copy moves back",
        DOWN,
        "IF v_kept @> v_tables THEN",
        "IF v_kept && v_tables THEN",
        f"{DOWNGRADE} -k copy",
    ),
    Mutant(
        "what moves back keeps the settings it had before 103",
        DOWN,
        "WHERE step = '103' AND kind NOT IN ('function', 'trigger');",
        "WHERE step = '103' AND kind NOT IN ('table', 'column');",
        f"{WAY_BACK} -k kept",
    ),
    Mutant(
        "a model name is measured in letters",
        DOWN,
        """        AND octet_length(tu.provider) + octet_length(tu.model) <= 2600
    GROUP BY 1, 2, 3, 4, 5;

    INSERT""",
        """        AND length(tu.provider) + length(tu.model) <= 2600
    GROUP BY 1, 2, 3, 4, 5;

    INSERT""",
        f"{DOWNGRADE} -k bytes",
    ),
    Mutant(
        "a task counts once a provider",
        DOWN,
        "count(DISTINCT tu.task_id), count(*)",
        "count(*), count(*)",
        f"{DOWNGRADE} -k each_zone",
    ),
    Mutant(
        "usage without an issue is not rebuilt",
        DOWN,
        "LEFT JOIN public.issue AS i ON i.id = q.issue_id",
        "JOIN public.issue AS i ON i.id = q.issue_id",
        f"{DOWNGRADE} -k each_zone",
    ),
    Mutant(
        "days are rebuilt by UTC for every runtime",
        DOWN,
        "(tu.created_at AT TIME ZONE r.zone)::date",
        "(tu.created_at AT TIME ZONE 'UTC')::date",
        f"{DOWNGRADE} -k each_zone",
    ),
    Mutant(
        "a published queue refuses the server's deletions",
        DOWN,
        "AND (p.pubupdate OR p.pubdelete))",
        "AND p.pubupdate)",
        f"{WAY_BACK} -k publication",
    ),
    Mutant(
        "a published queue without any replica identity refuses the server's updates",
        DOWN,
        "                WHEN 'n' THEN true END\n    LOOP",
        "                END\n    LOOP",
        f"{WAY_BACK} -k publish",
    ),
    Mutant(
        "a kept queue without any replica identity refuses the windows",
        DOWN,
        "                WHEN 'n' THEN true END\n        LOOP",
        "                END\n        LOOP",
        f"{WAY_BACK} -k publish",
    ),
    Mutant(
        "a kept queue without a key refuses the windows",
        DOWN,
        "                WHEN 'd' THEN NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND"
        " i.indisprimary)\n                WHEN 'n' THEN true END\n        LOOP",
        "                WHEN 'n' THEN true END\n        LOOP",
        "tests/runner/test_downgrade.py tests/runner/test_way_back.py -k publi",
    ),
]
