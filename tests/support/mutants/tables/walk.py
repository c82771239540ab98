"""102: plan, slices, finish, repair, and the way back."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant, within

_UP = "alembic/versions/102_task_usage_hourly_pipeline.up"
_SLICES, _BACKFILL = f"{_UP}/35_slices.sql", f"{_UP}/60_backfill.sql"
_DOWN = "alembic/versions/102_task_usage_hourly_pipeline.down.sql"

_OF_SLICES = "tests/hourly/test_slices.py"

# Tests by name, of one file.
_COVERED = f"{_OF_SLICES}::test_slices_cover_their_ranges_exactly_by_hours_and_rows"
_EIGHTHS = f"{_OF_SLICES}::test_slices_are_an_eighth_of_all_where_that_is_less_than_what_is_asked_for"
_SETTING = f"{_OF_SLICES}::test_setting_that_is_no_number_of_rows_leaves_the_slices_as_they_are"
_UNTOUCHED = f"{_OF_SLICES}::test_untouched_rollup_has_every_day_from_the_first_to_the_last_to_walk"
_FIRST_EVENT = f"{_OF_SLICES}::test_first_event_decides_by_the_time_it_goes_by"
_TOUCHED = f"{_OF_SLICES}::test_above_the_first_event_only_days_touched_since_the_watermark_are_to_walk"
_UNDATED = f"{_OF_SLICES}::test_rows_that_belong_to_no_hour_are_not_to_walk"
_PASSED_OVER = f"{_OF_SLICES}::test_slice_that_another_session_walks_is_passed_over_and_not_waited_for"
_UNFINISHED = f"{_OF_SLICES}::test_backfill_is_not_finished_before_its_last_slice_is_walked"
_SETTINGS = f"{_OF_SLICES}::test_settings_of_a_plan_and_a_slice_end_with_their_transactions"
_NOTHING = f"{_OF_SLICES}::test_plan_of_nothing_takes_the_watermark_forward_and_never_back"
_LEFT_OUT = f"{_OF_SLICES}::test_what_is_left_out_is_what_was_acknowledged_last_and_by_whom"
_MEETS = f"{_OF_SLICES}::test_repair_that_meets_slices_of_an_unfinished_walk_has_them_walked_whole_again"
_BESIDE = f"{_OF_SLICES}::test_repair_beside_an_unfinished_walk_claims_no_more_than_was_claimed_before"
_DIFFERS = f"{_OF_SLICES}::test_repair_finds_what_differs_itself_and_takes_whole_hours"
_OLD_SNAPSHOT = "tests/hourly/test_window.py -k snapshot_is_older_than_what_the_last_writer_left"
_JOBS = "tests/stories/test_who_relied_on_it.py -k 102_goes"
_CATALOGS = "tests/stories/test_chain.py -k each_downgrade_removes"


_FROM_NULL = (
    "updated_at IS NULL AND created_at >= v_watermark\n"
    "                AND public.task_usage_hourly_dated(created_at)"
)
_FROM_UPDATED = "updated_at >= v_watermark\n                AND public.task_usage_hourly_dated(created_at)"

MUTANTS: list[Mutant] = [
    # What is left to walk
    Mutant(
        "unwalked: a watermark at the first event has passed it",
        _SLICES,
        "WHERE v_watermark <= v_first_event AND",
        "WHERE v_watermark < v_first_event AND",
        _UNTOUCHED,
    ),
    Mutant(
        "unwalked: the first event is never one without updated_at",
        _SLICES,
        "(SELECT MIN(created_at) FROM public.task_usage WHERE updated_at IS NULL))\n    INTO v_first_event;",
        "NULL)\n    INTO v_first_event;",
        _FIRST_EVENT,
    ),
    Mutant(
        "unwalked: the first event is never one with updated_at",
        _SLICES,
        "(SELECT MIN(updated_at) FROM public.task_usage),\n",
        "NULL,\n",
        _FIRST_EVENT,
    ),
    Mutant(
        "unwalked: the first event is where it was created",
        _SLICES,
        "(SELECT MIN(created_at) FROM public.task_usage WHERE updated_at IS NULL))\n    INTO v_first_event;",
        "(SELECT MIN(created_at) FROM public.task_usage))\n    INTO v_first_event;",
        f"{_OF_SLICES} -k all_was_corrected",
    ),
    within("unwalked: updated at the watermark", _SLICES, _FROM_UPDATED, ">=", ">", _TOUCHED),
    within("unwalked: created at the watermark", _SLICES, _FROM_NULL, ">=", ">", _FIRST_EVENT),
    within(
        "unwalked: created_at of what was updated since",
        _SLICES,
        _FROM_NULL,
        "updated_at IS NULL",
        "true",
        _TOUCHED,
    ),
    within(
        "unwalked: undated rows that were updated",
        _SLICES,
        _FROM_UPDATED,
        "dated(created_at)",
        "dated(now())",
        _UNDATED,
    ),
    within(
        "unwalked: undated rows that never were",
        _SLICES,
        _FROM_NULL,
        "dated(created_at)",
        "dated(now())",
        _UNDATED,
    ),
    within(
        "unwalked: undated rows of a whole history",
        _SLICES,
        "WHERE v_watermark <= v_first_event AND public.task_usage_hourly_dated(created_at)",
        "dated(created_at)",
        "dated(now())",
        _UNDATED,
    ),
    Mutant(
        "unwalked: without usage everything",
        _SLICES,
        ") AS d WHERE d.first_day IS NOT NULL)",
        ") AS d)",
        f"{_OF_SLICES} -k nothing_is_to_walk",
    ),
    Mutant(
        "unwalked: the last day",
        _SLICES,
        "tstzrange(d.first_day, d.last_day + interval '1 day')",
        "tstzrange(d.first_day, d.last_day)",
        _UNTOUCHED,
    ),
    Mutant(
        "unwalked: days of the session's zone",
        _SLICES,
        "SET search_path = pg_catalog, pg_temp SET row_security = off SET timezone = 'UTC' SET"
        " plan_cache_mode",
        "SET search_path = pg_catalog, pg_temp SET row_security = off SET plan_cache_mode",
        _UNTOUCHED,
    ),
    # Slices
    Mutant(
        "slices: the hour after a range",
        _SLICES,
        "tu.created_at >= r.range_from AND tu.created_at < r.range_to",
        "tu.created_at >= r.range_from AND tu.created_at <= r.range_to",
        _COVERED,
    ),
    Mutant(
        "slices: ranges without usage",
        _SLICES,
        "LEFT JOIN LATERAL (\n            SELECT date_bin",
        "JOIN LATERAL (\n            SELECT date_bin",
        f"{_OF_SLICES} -k range_without_events",
    ),
    Mutant(
        "slices: ranges share their budgets",
        _SLICES,
        "SUM(h.events) OVER (PARTITION BY h.range_from ORDER BY h.hour)",
        "SUM(h.events) OVER (ORDER BY h.hour)",
        _COVERED,
    ),
    Mutant(
        "slices: a range begins with its first usage",
        _SLICES,
        "CASE WHEN n.number = 0 THEN n.range_from ELSE MIN(n.hour) END",
        "MIN(n.hour)",
        f"{_OF_SLICES} -k belong_to_the_slice_before",
    ),
    Mutant(
        "slices: a range ends with its last slice's begin",
        _SLICES,
        "LEAD(s.first_hour, 1, s.range_to)",
        "LEAD(s.first_hour, 1, s.first_hour + interval '1 hour')",
        _COVERED,
    ),
    Mutant(
        "slices: as large as may be",
        _SLICES,
        "LEAST(p_rows, GREATEST(50000, div(SUM(h.events) OVER (), 8) + 1))",
        "p_rows",
        _EIGHTHS,
    ),
    Mutant(
        "slices: larger than may be",
        _SLICES,
        "LEAST(p_rows, GREATEST(50000, div(SUM(h.events) OVER (), 8) + 1))",
        "GREATEST(50000, div(SUM(h.events) OVER (), 8) + 1)",
        _EIGHTHS,
    ),
    Mutant(
        "slices: the first is as large as the others",
        _SLICES,
        "div(c.before + div(c.most, 2), c.most)",
        "div(c.before, c.most)",
        _EIGHTHS,
    ),
    Mutant(
        "slices: of no rows",
        _SLICES,
        "'^[1-9][0-9]{0,8}$'",
        "'^[0-9]{1,9}$'",
        _SETTING,
    ),
    Mutant(
        "slices: of whatever begins with a number",
        _SLICES,
        "'^[1-9][0-9]{0,8}$'",
        "'[1-9][0-9]{0,8}'",
        _SETTING,
    ),
    # Plan
    Mutant(
        "indexes: locked although they are there",
        _BACKFILL,
        "to_regclass('public.idx_task_usage_hourly_workspace_project_time')) = 4",
        "to_regclass('public.idx_task_usage_hourly_workspace_project_time')) = 5",
        f"{_OF_SLICES} -k not_built_again",
    ),
    Mutant(
        "indexes: one is enough",
        _BACKFILL,
        "to_regclass('public.idx_task_usage_hourly_workspace_project_time')) = 4",
        "to_regclass('public.idx_task_usage_hourly_workspace_project_time')) >= 0",
        f"{_OF_SLICES} -k builds_the_indexes_again",
    ),
    Mutant(
        "indexes: one is not built again",
        _BACKFILL,
        "    CREATE INDEX IF NOT EXISTS idx_task_usage_hourly_runtime_time\n"
        "    ON public.task_usage_hourly (runtime_id, bucket_hour DESC);\n",
        "",
        f"{_OF_SLICES} -k builds_the_indexes_again",
    ),
    Mutant(
        "indexes: of projects, too, that are none",
        _BACKFILL,
        "(workspace_id, project_id, bucket_hour DESC) WHERE project_id IS NOT NULL;",
        "(workspace_id, project_id, bucket_hour DESC);",
        f"{_OF_SLICES} -k builds_the_indexes_again",
    ),
    Mutant(
        "plan: on top of an older one",
        _BACKFILL,
        "BEGIN\n    DELETE FROM public.task_usage_hourly_backfill;\n",
        "BEGIN\n",
        "tests/hourly/test_backfill_hook.py -k leaves_no_plan_behind",
    ),
    Mutant(
        "plan: without anything to walk the watermark goes back",
        _BACKFILL,
        "SET watermark_at = GREATEST(watermark_at, p_horizon)",
        "SET watermark_at = p_horizon",
        _NOTHING,
    ),
    Mutant(
        "plan: without anything to walk the watermark stays",
        _BACKFILL,
        "SET watermark_at = GREATEST(watermark_at, p_horizon)",
        "SET watermark_at = LEAST(watermark_at, p_horizon)",
        _NOTHING,
    ),
    Mutant(
        "plan: without anything to walk the indexes stay away",
        _BACKFILL,
        "        WHERE id = 1;\n        PERFORM public.rollup_task_usage_hourly_build_indexes();\n",
        "        WHERE id = 1;\n",
        f"{_OF_SLICES} -k usage_emptied",
    ),
    Mutant(
        "plan: a filled table loses its indexes",
        _BACKFILL,
        "ELSIF NOT EXISTS (SELECT FROM public.task_usage_hourly) AND has_schema",
        "ELSIF has_schema",
        f"{_OF_SLICES} -k table_that_holds_rows",
    ),
    Mutant(
        "plan: indexes go that nobody may build again",
        _BACKFILL,
        " AND has_schema_privilege('public', 'CREATE')\n",
        "\n",
        f"{_OF_SLICES} -k could_not_build_them_again",
    ),
    Mutant(
        "plan: a short walk does without the indexes",
        _BACKFILL,
        "SUM(b.usage_rows) > LEAST(p_rows, 50000)",
        "SUM(b.usage_rows) >= LEAST(p_rows, 50000)",
        f"{_OF_SLICES} -k one_slices_worth",
    ),
    Mutant(
        "plan: a long walk keeps the indexes where a slice may hold it all",
        _BACKFILL,
        "SUM(b.usage_rows) > LEAST(p_rows, 50000)",
        "SUM(b.usage_rows) > p_rows",
        f"{_OF_SLICES} -k whatever_its_slices_may_hold",
    ),
    Mutant(
        "plan: waits for who reads",
        _BACKFILL,
        "        PERFORM set_config('lock_timeout', '500ms', true);\n",
        "",
        f"{_OF_SLICES} -k somebody_reads",
    ),
    Mutant(
        "plan: its lock_timeout stays in the session",
        _BACKFILL,
        "set_config('lock_timeout', '500ms', true)",
        "set_config('lock_timeout', '500ms', false)",
        _SETTINGS,
    ),
    Mutant(
        "plan: whatever keeps the indexes is taken for a reader",
        _BACKFILL,
        "EXCEPTION WHEN lock_not_available THEN",
        "EXCEPTION WHEN OTHERS THEN",
        f"{_OF_SLICES} -k anything_but_a_reader",
    ),
    Mutant(
        "plan: what is left out is walked",
        _BACKFILL,
        "task_usage_hourly_slices(v_unwalked - v_left_out, p_rows)",
        "task_usage_hourly_slices(v_unwalked, p_rows)",
        _LEFT_OUT,
    ),
    Mutant(
        "plan: something is left out always",
        _BACKFILL,
        "IF NOT isempty(v_left_out) THEN",
        "IF p_from > '-infinity' THEN",
        _LEFT_OUT,
    ),
    Mutant(
        "plan: nothing is left out ever",
        _BACKFILL,
        "IF NOT isempty(v_left_out) THEN",
        "IF isempty(v_left_out) THEN",
        _LEFT_OUT,
    ),
    Mutant(
        "left out: the first acknowledgement stands",
        _BACKFILL,
        "ON CONFLICT (id) DO UPDATE SET before_hour = EXCLUDED.before_hour,\n"
        "            acknowledged_at = EXCLUDED.acknowledged_at, acknowledged_by = EXCLUDED.acknowledged_by;",
        "ON CONFLICT (id) DO NOTHING;",
        _LEFT_OUT,
    ),
    Mutant(
        "left out: there is but one acknowledgement",
        _BACKFILL,
        "\n        ON CONFLICT (id) DO UPDATE SET before_hour = EXCLUDED.before_hour,\n"
        "            acknowledged_at = EXCLUDED.acknowledged_at, acknowledged_by = EXCLUDED.acknowledged_by;",
        ";",
        _LEFT_OUT,
    ),
    *(
        within(
            f"left out: {column} of the first acknowledgement stands",
            _BACKFILL,
            f"{column} = EXCLUDED.{column}",
            "EXCLUDED",
            "task_usage_hourly_left_out",
            _LEFT_OUT,
        )
        for column in ("before_hour", "acknowledged_at", "acknowledged_by")
    ),
    # Repair
    Mutant(
        "repair: parts of hours",
        _BACKFILL,
        "SELECT DISTINCT public.task_usage_hour_bucket(h) AS hour",
        "SELECT DISTINCT h AS hour",
        _DIFFERS,
    ),
    Mutant(
        "repair: what is pending, too",
        _BACKFILL,
        "task_usage_hourly_differences(timestamptz '-infinity', timestamptz 'infinity', false)",
        "task_usage_hourly_differences(timestamptz '-infinity', timestamptz 'infinity', true)",
        _DIFFERS,
    ),
    Mutant(
        "repair: moves the watermark",
        _BACKFILL,
        "(SELECT watermark_at FROM public.task_usage_hourly_rollup_state WHERE id = 1)\n        FROM",
        "now()\n        FROM",
        _DIFFERS,
    ),
    Mutant(
        "repair: a slice that begins there stays walked",
        _BACKFILL,
        "SET walked_at = NULL, to_hour = GREATEST(b.to_hour, EXCLUDED.to_hour)",
        "SET to_hour = GREATEST(b.to_hour, EXCLUDED.to_hour)",
        _MEETS,
    ),
    Mutant(
        "repair: a slice that begins there is cut short",
        _BACKFILL,
        "to_hour = GREATEST(b.to_hour, EXCLUDED.to_hour)",
        "to_hour = EXCLUDED.to_hour",
        _MEETS,
    ),
    Mutant(
        "repair: ends where a slice that begins there does",
        _BACKFILL,
        "to_hour = GREATEST(b.to_hour, EXCLUDED.to_hour)",
        "to_hour = b.to_hour",
        _MEETS,
    ),
    Mutant(
        "repair: leaves a slice that begins there alone",
        _BACKFILL,
        "ON CONFLICT (from_hour) DO UPDATE\n"
        "        SET walked_at = NULL, to_hour = GREATEST(b.to_hour, EXCLUDED.to_hour)",
        "ON CONFLICT (from_hour) DO NOTHING",
        _MEETS,
    ),
    # Slice
    Mutant(
        "slice: commits lazily ever after",
        _BACKFILL,
        "set_config('synchronous_commit', 'off', true)",
        "set_config('synchronous_commit', 'off', false)",
        _SETTINGS,
    ),
    Mutant(
        "slice: waits for the disk",
        _BACKFILL,
        "    PERFORM set_config('synchronous_commit', 'off', true);\n",
        "",
        _SETTINGS,
    ),
    Mutant(
        "slice: waits for who walks one",
        _BACKFILL,
        "ORDER BY b.from_hour LIMIT 1 FOR UPDATE SKIP LOCKED;",
        "ORDER BY b.from_hour LIMIT 1 FOR UPDATE;",
        _PASSED_OVER,
    ),
    Mutant(
        "slice: is walked by two",
        _BACKFILL,
        "ORDER BY b.from_hour LIMIT 1 FOR UPDATE SKIP LOCKED;",
        "ORDER BY b.from_hour LIMIT 1;",
        _PASSED_OVER,
    ),
    Mutant(
        "slice: marks those before it, too",
        _BACKFILL,
        "WHERE b.from_hour = slice_from;",
        "WHERE b.from_hour <= slice_from;",
        _PASSED_OVER,
    ),
    Mutant(
        "slice: leaves no mark for an older snapshot",
        _BACKFILL,
        "        PERFORM public.rollup_task_usage_hourly_touch();\n",
        "",
        _OLD_SNAPSHOT,
    ),
    Mutant(
        "slice: the newest first",
        _BACKFILL,
        "ORDER BY b.from_hour LIMIT 1 FOR UPDATE",
        "ORDER BY b.from_hour DESC LIMIT 1 FOR UPDATE",
        "tests/hourly/test_backfill_hook.py -k every_slice_is_committed",
    ),
    # Finish
    Mutant(
        "finish: whatever is left",
        _BACKFILL,
        "IF EXISTS (SELECT FROM public.task_usage_hourly_backfill b WHERE b.walked_at IS NULL) THEN",
        "IF false THEN",
        _UNFINISHED,
    ),
    Mutant(
        "finish: one slice is enough",
        _BACKFILL,
        "IF EXISTS (SELECT FROM public.task_usage_hourly_backfill b WHERE b.walked_at IS NULL) THEN",
        "IF NOT EXISTS (SELECT FROM public.task_usage_hourly_backfill b WHERE b.walked_at IS NOT NULL) THEN",
        _UNFINISHED,
    ),
    Mutant(
        "finish: the watermark goes back",
        _BACKFILL,
        "SET watermark_at = GREATEST(s.watermark_at, (SELECT MIN(horizon_at) FROM done))",
        "SET watermark_at = (SELECT MIN(horizon_at) FROM done)",
        f"{_OF_SLICES} -k does_not_take_back",
    ),
    Mutant(
        "finish: the watermark goes to now",
        _BACKFILL,
        "SET watermark_at = GREATEST(s.watermark_at, (SELECT MIN(horizon_at) FROM done))",
        "SET watermark_at = GREATEST(s.watermark_at, clock_timestamp() - interval '5 minutes')",
        f"{_OF_SLICES} -k horizon_of_the_plan",
    ),
    Mutant(
        "finish: a repair claims what a walk would have",
        _BACKFILL,
        "(SELECT MIN(horizon_at) FROM done)",
        "(SELECT MAX(horizon_at) FROM done)",
        _BESIDE,
    ),
    Mutant(
        "finish: without the indexes",
        _BACKFILL,
        "    END IF;\n    PERFORM public.rollup_task_usage_hourly_build_indexes();\n    WITH done",
        "    END IF;\n    WITH done",
        f"{_OF_SLICES} -k builds_the_indexes_again",
    ),
    Mutant(
        "finish: the plan stays",
        _BACKFILL,
        "WITH done AS (DELETE FROM public.task_usage_hourly_backfill RETURNING horizon_at)",
        "WITH done AS (SELECT horizon_at FROM public.task_usage_hourly_backfill)",
        _UNFINISHED,
    ),
    # The way back
    Mutant(
        "102's way back: the indexes of a killed walk",
        _DOWN,
        "        PERFORM public.rollup_task_usage_hourly_build_indexes();\n",
        "        NULL;\n",
        f"{_OF_SLICES} -k downgrade_after_a_killed_walk",
    ),
    Mutant(
        "102's way back: the watermark goes on claiming",
        _DOWN,
        "        UPDATE public.task_usage_hourly_rollup_state SET watermark_at = '1970-01-01 00:00:00+00'"
        " WHERE id = 1;\n",
        "        NULL;\n",
        "tests/runner/test_way_back.py -k what_changed_while",
    ),
    Mutant(
        "102's way back: replica identity of the public queue",
        _DOWN,
        "ALTER TABLE IF EXISTS public.task_usage_hourly_dirty REPLICA IDENTITY DEFAULT;\n",
        "",
        "tests/runner/test_way_back.py -k 102_s_way_back",
    ),
    Mutant(
        "102's way back: what it remembered",
        _DOWN,
        "        PERFORM public.rollup_task_usage_hourly_restore_legacy(text '102');\n",
        "        NULL;\n",
        "tests/runner/test_way_back.py -k 102_leaves",
    ),
    Mutant(
        "102's way back: a table of ours stays",
        _DOWN,
        "DROP TABLE IF EXISTS public.task_usage_hourly_left_out;\n",
        "",
        _CATALOGS,
    ),
    Mutant(
        "102's way back: jobs of other databases",
        _DOWN,
        "WHERE j.database = current_database() AND (n.name",
        "WHERE (n.name",
        _JOBS,
    ),
    Mutant(
        "102's way back: jobs that do something besides",
        _DOWN,
        "IF v_job.ends IS NOT TRUE THEN",
        "IF v_job.ends IS NULL THEN",
        _JOBS,
    ),
    Mutant(
        "102's way back: jobs of another name",
        _DOWN,
        "AND (n.name = 'rollup_task_usage_hourly' OR j.command ~* $1)",
        "AND n.name = 'rollup_task_usage_hourly'",
        _JOBS,
    ),
]
