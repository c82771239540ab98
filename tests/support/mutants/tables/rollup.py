"""102: aggregate, range, window and tick."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant, within
from tests.support.rollup import MEASURES

_UP = "alembic/versions/102_task_usage_hourly_pipeline.up"
_TABLES, _CONTRACT, _EXPECTED = (
    f"{_UP}/10_tables.sql",
    f"{_UP}/15_contract_tables.sql",
    f"{_UP}/20_expected.sql",
)
_CLOCK, _RECOMPUTE, _TICK = f"{_UP}/30_clock.sql", f"{_UP}/40_recompute.sql", f"{_UP}/50_tick.sql"

_OF_WINDOW = "tests/hourly/test_window.py"
_OF_TICK = "tests/hourly/test_tick.py"
_OF_HORIZON = "tests/hourly/test_horizon.py"
_OF_BUDGET = "tests/hourly/test_budget.py"
_OF_CHANGES = "tests/hourly/test_invalidation.py::test_change_is_in_the_rollup_one_tick_later"
_OF_WAY_BACK = "tests/runner/test_way_back.py"

# Tests by name, of one file.
_MEASURE = f"{_OF_WINDOW}::test_bucket_in_which_one_measure_alone_is_wrong_is_rewritten_and_no_other"
_BOTH_WAYS = f"{_OF_WINDOW}::test_both_ways_to_aggregate_write_the_same"
_NO_RUNTIME = f"{_OF_WINDOW}::test_usage_of_a_task_without_a_runtime_is_in_no_bucket"
_ANY_RANGE = f"{_OF_WINDOW} -k what_the_plainest_says"
_REFUSED = f"{_OF_WINDOW} -k refused"
_NOT_IN_THE_DATA = f"{_OF_WINDOW}::test_error_that_is_not_in_the_data_ends_the_window_and_sets_nothing_aside"
_ASIDE = f"{_OF_WINDOW}::test_hour_that_is_recomputed_forgets_what_was_set_aside_of_it_and_of_no_other"
_UNREADABLE = f"{_OF_WINDOW} -k no_client_can_read"
_IN_RANGE = f"{_OF_WINDOW}::test_window_leaves_hours_alone_that_no_event_in_its_range_touches"
_OLD_SNAPSHOT = f"{_OF_WINDOW}::test_window_fails_where_its_snapshot_is_older_than_what_the_last_writer_left"
_LOCKED_ROW = f"{_OF_WINDOW}::test_queued_row_locked_by_another_session_is_left_and_not_waited_for"
_QUEUED_BY_102 = f"{_OF_WAY_BACK}::test_what_no_tick_finds_by_time_after_the_way_back_is_queued"
_LAG = f"{_OF_TICK} -k lag"

# What errors of the data are.
_DATA = ("data_exception", "program_limit_exceeded", "integrity_constraint_violation")


MUTANTS: list[Mutant] = [
    # Tables
    Mutant(
        "queue: a row names two subjects",
        _TABLES,
        "num_nonnulls(task_id, issue_id, agent_id) <= 1",
        "num_nonnulls(task_id, issue_id, agent_id) <= 2",
        "tests/hourly/test_invalidation.py -k names_more",
    ),
    Mutant(
        "queue: an hour of an issue",
        _TABLES,
        "bucket_hour IS NULL OR num_nonnulls(issue_id, agent_id) = 0",
        "bucket_hour IS NULL OR num_nonnulls(issue_id, agent_id) <= 1",
        "tests/hourly/test_invalidation.py -k names_more",
    ),
    Mutant(
        "queue: no replica identity",
        _TABLES,
        "WHERE c.relreplident <> 'f' AND c.oid IN (",
        "WHERE c.relreplident = 'f' AND c.oid IN (",
        "tests/stories/test_chain.py::test_usage_is_rolled_up_and_removed_under_a_publication_for_all_tables",
    ),
    Mutant(
        "102: the watermark is trusted",
        _CONTRACT,
        "UPDATE public.task_usage_hourly_rollup_state SET watermark_at = '1970-01-01 00:00:00+00' WHERE id"
        " = 1;",
        "NULL;",
        f"{_OF_WAY_BACK} -k somebody_moved",
    ),
    Mutant(
        "102: an unfinished plan is trusted",
        _CONTRACT,
        "DELETE FROM public.task_usage_hourly_backfill;",
        "NULL;",
        "tests/runner/test_go_way_back.py::test_our_102_over_what_go_put_back_distrusts_what_it_finds",
    ),
    Mutant(
        "102: hours without usage are not queued",
        _CONTRACT,
        "AND NOT EXISTS (\n    SELECT FROM public.task_usage AS tu",
        "AND EXISTS (\n    SELECT FROM public.task_usage AS tu",
        f"{_OF_WAY_BACK}::test_tick_after_the_way_back_takes_out_what_was_deleted_while_nothing_watched",
    ),
    Mutant(
        "102: an event before 1970 is left to time",
        _CONTRACT,
        "\n        AND COALESCE(tu.updated_at, tu.created_at) >= '1970-01-01 00:00:00+00'",
        "",
        _QUEUED_BY_102,
    ),
    Mutant(
        "102: the hour after is an hour's usage",
        _CONTRACT,
        "tu.created_at < hours.hour + interval '1 hour'",
        "tu.created_at <= hours.hour + interval '1 hour'",
        _QUEUED_BY_102,
    ),
    # What is read: the aggregate of a task without a runtime
    Mutant(
        "look-up: tasks without a runtime",
        _EXPECTED,
        "ON true\n        WHERE q.runtime_id IS NOT NULL\n",
        "ON true\n",
        _NO_RUNTIME,
    ),
    Mutant(
        "scan: tasks without a runtime",
        _EXPECTED,
        "AND public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id IS NOT NULL",
        "AND public.task_usage_hourly_dated(tu.created_at)",
        _NO_RUNTIME,
    ),
    *(
        within(f"{way}: {what}", _EXPECTED, of, part, new, _ANY_RANGE)
        for way, of in {
            "look-up of the tasks": "WHERE tu.created_at >= p_from AND tu.created_at < p_to"
            " ORDER BY tu.task_id) t",
            "look-up of the rows": "JOIN tasks t USING (task_id)\n"
            "    WHERE tu.created_at >= p_from AND tu.created_at < p_to",
            "scan": "LEFT JOIN public.issue i ON i.id = q.issue_id\n"
            "    WHERE tu.created_at >= p_from AND tu.created_at < p_to",
        }.items()
        for what, part, new in (("later than p_from", ">=", ">"), ("up to p_to", "<", "<="))
        if (way, what) != ("look-up of the tasks", "up to p_to")
    ),
    Mutant(
        "look-up of the tasks: up to p_to",
        _EXPECTED,
        "WHERE tu.created_at >= p_from AND tu.created_at < p_to ORDER BY tu.task_id) t",
        "WHERE tu.created_at >= p_from AND tu.created_at <= p_to ORDER BY tu.task_id) t",
        _ANY_RANGE,
        equivalent="A task more that is looked up has no row in the range.",
    ),
    Mutant(
        "look-up: tasks without an issue",
        _EXPECTED,
        "LEFT JOIN LATERAL (SELECT i.* FROM public.issue i WHERE i.id = q.issue_id OFFSET 0) i ON true",
        "JOIN LATERAL (SELECT i.* FROM public.issue i WHERE i.id = q.issue_id OFFSET 0) i ON true",
        _ANY_RANGE,
    ),
    Mutant(
        "look-up: undated rows",
        _EXPECTED,
        "        AND public.task_usage_hourly_dated(tu.created_at)\n    GROUP BY",
        "    GROUP BY",
        _ANY_RANGE,
    ),
    # Horizon
    Mutant(
        "horizon: a trigger that replicas pass is enough",
        _CLOCK,
        "AND t.tgenabled = 'A'",
        "AND t.tgenabled <> 'D'",
        f"{_OF_HORIZON} -k do_not_queue_themselves",
    ),
    Mutant(
        "horizon: who waits for its lock has written",
        _CLOCK,
        "l.mode = 'RowExclusiveLock' AND l.granted",
        "l.mode = 'RowExclusiveLock'",
        f"{_OF_HORIZON} -k still_waits",
    ),
    Mutant(
        "horizon: readers hold it back",
        _CLOCK,
        "AND l.mode = 'RowExclusiveLock' AND l.granted",
        "AND l.granted",
        f"{_OF_HORIZON} -k holds_nothing_back",
    ),
    Mutant(
        "horizon: locks of other databases",
        _CLOCK,
        "ON l.database = h.oid AND l.locktype = 'relation'",
        "ON l.locktype = 'relation'",
        f"{_OF_HORIZON} -k another_database",
    ),
    Mutant(
        "horizon: prepared transactions are nobody",
        _CLOCK,
        "l.pid IS DISTINCT FROM pg_backend_pid()",
        "l.pid <> pg_backend_pid()",
        f"{_OF_HORIZON} -k prepared",
    ),
    Mutant(
        "horizon: autovacuum counts",
        _CLOCK,
        "AND s.usesysid IS NOT NULL AND s.pid <> pg_backend_pid()",
        "AND s.pid <> pg_backend_pid()",
        "tests/hourly/test_horizon.py -k autovacuum",
    ),
    Mutant(
        "horizon: sessions without a transaction count",
        _CLOCK,
        "WHERE NOT h.queue_themselves AND num_nonnulls(l.pid, s.xact_start) > 0",
        "WHERE NOT h.queue_themselves",
        f"{_OF_HORIZON} -k do_not_queue_themselves",
    ),
    Mutant(
        "horizon: sessions are remembered",
        _CLOCK,
        "PERFORM pg_stat_clear_snapshot();",
        "NULL;",
        f"{_OF_HORIZON} -k asked_in_the_same_transaction",
    ),
    Mutant(
        "horizon: waits for who came since",
        _CLOCK,
        "CASE WHEN v_waited IS NULL THEN v_hidden ELSE ARRAY(\n"
        "            SELECT unnest(v_waited) INTERSECT SELECT unnest(v_hidden)) END",
        "v_hidden",
        f"{_OF_HORIZON} -k ends_during_the_wait",
    ),
    Mutant(
        "horizon: four minutes",
        _CLOCK,
        "LEAST(v_start - interval '5 minutes', v_oldest)",
        "LEAST(v_start - interval '4 minutes', v_oldest)",
        f"{_OF_HORIZON} -k quiet_database",
    ),
    Mutant(
        "horizon: who ended while another was waited for",
        _CLOCK,
        "SELECT LEAST(v_oldest, MIN(w.began)),",
        "SELECT MIN(w.began),",
        _OF_HORIZON,
        equivalent="Who has ended is visible to every snapshot taken later; a lower horizon costs a tick.",
    ),
    Mutant(
        "held back by: whose start is hidden comes last",
        _CLOCK,
        "ORDER BY 1 NULLS FIRST, 2 LIMIT 3",
        "ORDER BY 1, 2 LIMIT 3",
        f"{_OF_HORIZON} -k three_are_named",
    ),
    Mutant(
        "held back by: however many there are",
        _CLOCK,
        "ORDER BY 1 NULLS FIRST, 2 LIMIT 3",
        "ORDER BY 1 NULLS FIRST, 2",
        f"{_OF_HORIZON} -k three_are_named",
    ),
    Mutant(
        "held back by: prepared transactions of other databases",
        _CLOCK,
        " AND p.database = current_database()",
        "",
        f"{_OF_HORIZON} -k prepared",
        equivalent="Those that are joined hold a lock on usage in this database, and no other transaction"
        " has their virtual one.",
    ),
    Mutant(
        "latest event: created_at of what was updated since",
        _CLOCK,
        "(SELECT MAX(created_at) FROM public.task_usage WHERE updated_at IS NULL)) AS latest",
        "(SELECT MAX(created_at) FROM public.task_usage)) AS latest",
        f"{_OF_TICK}::test_event_is_where_it_was_last_updated",
    ),
    Mutant(
        "latest event: the future",
        _CLOCK,
        "SELECT LEAST(now(), e.latest)",
        "SELECT e.latest",
        _LAG,
    ),
    Mutant(
        "latest event: none is now",
        _CLOCK,
        "    WHERE e.latest > '-infinity'\n",
        "",
        _LAG,
    ),
    Mutant(
        "lag: an infinite watermark",
        _CLOCK,
        "WHERE id = 1 AND isfinite(watermark_at)",
        "WHERE id = 1",
        _LAG,
    ),
    Mutant(
        "lag: less than none",
        _CLOCK,
        "SELECT GREATEST(0, COALESCE(EXTRACT(EPOCH FROM",
        "SELECT GREATEST(-1e300, COALESCE(EXTRACT(EPOCH FROM",
        _LAG,
    ),
    # Recompute
    *(
        within(
            f"recompute: {measure} alone is not compared",
            _RECOMPUTE,
            "h.input_tokens, h.output_tokens, h.cache_read_tokens, h.cache_write_tokens,\n"
            "                h.task_count, h.event_count)\n"
            "            IS DISTINCT FROM (EXCLUDED.input_tokens, EXCLUDED.output_tokens,"
            " EXCLUDED.cache_read_tokens,\n"
            "                EXCLUDED.cache_write_tokens, EXCLUDED.task_count, EXCLUDED.event_count)",
            f".{measure}",
            ".bucket_hour",
            f"{_MEASURE} -k {measure}",
        )
        for measure in MEASURES
    ),
    Mutant(
        "recompute: task_count is not set",
        _RECOMPUTE,
        "task_count = EXCLUDED.task_count, event_count = EXCLUDED.event_count, updated_at = now()",
        "event_count = EXCLUDED.event_count, updated_at = now()",
        _MEASURE,
    ),
    Mutant(
        "recompute: event_count is task_count",
        _RECOMPUTE,
        "task_count = EXCLUDED.task_count, event_count = EXCLUDED.event_count, updated_at = now()",
        "task_count = EXCLUDED.task_count, event_count = h.task_count, updated_at = now()",
        _MEASURE,
    ),
    Mutant(
        "recompute: two counts of tokens change places on the way",
        _RECOMPUTE,
        "            input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens,",
        "            input_tokens = EXCLUDED.output_tokens, output_tokens = EXCLUDED.input_tokens,",
        _MEASURE,
    ),
    Mutant(
        "recompute: the time of a rewritten bucket stays",
        _RECOMPUTE,
        "event_count = EXCLUDED.event_count, updated_at = now()",
        "event_count = EXCLUDED.event_count",
        _MEASURE,
    ),
    Mutant(
        "recompute: everything is rewritten",
        _RECOMPUTE,
        "                h.task_count, h.event_count)\n            IS DISTINCT FROM (",
        "                h.task_count, h.event_count)\n            IS NOT DISTINCT FROM (",
        _MEASURE,
    ),
    Mutant(
        "recompute: an empty range by scan",
        _RECOMPUTE,
        "aggregate(p_from, p_to) WHERE NOT p_by_scan\n        UNION ALL\n"
        "        SELECT * FROM public.rollup_task_usage_hourly_aggregate_by_scan(p_from, p_to) WHERE"
        " p_by_scan;",
        "aggregate(p_from, p_to) WHERE NOT p_by_scan;",
        _BOTH_WAYS,
    ),
    Mutant(
        "recompute: a filled range by scan",
        _RECOMPUTE,
        "aggregate(p_from, p_to) WHERE NOT p_by_scan\n        UNION ALL\n"
        "        SELECT * FROM public.rollup_task_usage_hourly_aggregate_by_scan(p_from, p_to) WHERE"
        " p_by_scan\n    ),",
        "aggregate(p_from, p_to) WHERE NOT p_by_scan\n    ),",
        _BOTH_WAYS,
    ),
    Mutant(
        "recompute: a filled range by look-up",
        _RECOMPUTE,
        "WITH expected AS MATERIALIZED (\n"
        "        SELECT * FROM public.rollup_task_usage_hourly_aggregate(p_from, p_to) WHERE NOT p_by_scan\n"
        "        UNION ALL\n",
        "WITH expected AS MATERIALIZED (\n",
        _BOTH_WAYS,
    ),
    Mutant(
        "recompute: the first hour of the next range is taken out",
        _RECOMPUTE,
        "WHERE h.bucket_hour >= p_from AND h.bucket_hour < p_to AND NOT EXISTS (\n            SELECT FROM"
        " expected",
        "WHERE h.bucket_hour >= p_from AND h.bucket_hour <= p_to AND NOT EXISTS (\n            SELECT FROM"
        " expected",
        "tests/hourly/test_invalidation.py::test_change_rewrites_no_hour_it_did_not_touch",
    ),
    Mutant(
        "recompute: what has no raw rows stays",
        _RECOMPUTE,
        "WHERE h.bucket_hour >= p_from AND h.bucket_hour < p_to AND NOT EXISTS (\n            SELECT FROM"
        " expected",
        "WHERE false AND NOT EXISTS (\n            SELECT FROM expected",
        f"{_OF_WINDOW}::test_window_deletes_what_has_no_raw_rows_wherever_the_hour_is_queued",
    ),
    *(
        within(
            f"recompute: what is left over is looked for without its {key}",
            _RECOMPUTE,
            "(e.bucket_hour, e.workspace_id, e.runtime_id, e.agent_id, e.provider, e.model)\n"
            "                = (h.bucket_hour, h.workspace_id, h.runtime_id, h.agent_id, h.provider,"
            " h.model)",
            f"e.{key}",
            f"h.{key}",
            tests,
        )
        for key, tests in {
            "bucket_hour": f"{_OF_WINDOW} -k neighbour_holds_the_same_key",
            "workspace_id": f"{_OF_CHANGES}[more_moves]",
            "runtime_id": f"{_OF_CHANGES}[moves]",
            "agent_id": f"{_OF_CHANGES}[moves]",
            "provider": f"{_OF_CHANGES}[new_keys]",
            "model": f"{_OF_CHANGES}[new_keys]",
        }.items()
    ),
    Mutant(
        "recompute: what is left over is looked for without its project",
        _RECOMPUTE,
        "\n                AND e.project_id IS NOT DISTINCT FROM h.project_id)",
        ")",
        f"{_OF_CHANGES}[moves]",
    ),
    Mutant(
        "recompute: deleted buckets are not counted",
        _RECOMPUTE,
        "SELECT (SELECT COUNT(*) FROM deleted) + (SELECT COUNT(*) FROM written) INTO v_rows;",
        "SELECT (SELECT COUNT(*) FROM written) INTO v_rows;",
        f"{_OF_WINDOW} -k counts_written_and_deleted",
    ),
    # Range
    Mutant(
        "range: halves that are not hours",
        _RECOMPUTE,
        "v_middle := public.task_usage_hour_bucket(p_from + (p_to - p_from) / 2);",
        "v_middle := p_from + (p_to - p_from) / 2;",
        _REFUSED,
    ),
    Mutant(
        "range: the second half is forgotten",
        _RECOMPUTE,
        "RETURN public.rollup_task_usage_hourly_range(p_from, v_middle)\n"
        "            + public.rollup_task_usage_hourly_range(v_middle, p_to);",
        "RETURN public.rollup_task_usage_hourly_range(p_from, v_middle);",
        _REFUSED,
    ),
    Mutant(
        "range: what is set aside stays",
        _RECOMPUTE,
        "WHERE s.bucket_hour >= p_from AND s.bucket_hour < p_to;",
        "WHERE s.bucket_hour > p_from AND s.bucket_hour < p_to;",
        _ASIDE,
    ),
    Mutant(
        "range: what the next hour has set aside goes",
        _RECOMPUTE,
        "WHERE s.bucket_hour >= p_from AND s.bucket_hour < p_to;",
        "WHERE s.bucket_hour >= p_from AND s.bucket_hour <= p_to;",
        _ASIDE,
    ),
    *(
        Mutant(
            f"range: {condition} stops everybody",
            _RECOMPUTE,
            f"RETURN public.rollup_task_usage_hourly_recompute(p_from, p_to, p_by_scan);\n    EXCEPTION"
            f" WHEN {' OR '.join(_DATA)}",
            f"RETURN public.rollup_task_usage_hourly_recompute(p_from, p_to, p_by_scan);\n    EXCEPTION"
            f" WHEN {' OR '.join(each for each in _DATA if each != condition)}",
            _REFUSED,
        )
        for condition in _DATA
    ),
    *(
        Mutant(
            f"range: {condition} of one bucket stops everybody",
            _RECOMPUTE,
            f"v_rows := v_rows + 1;\n        EXCEPTION WHEN {' OR '.join(_DATA)}",
            f"v_rows := v_rows + 1;\n        EXCEPTION WHEN"
            f" {' OR '.join(each for each in _DATA if each != condition)}",
            _REFUSED,
        )
        for condition in _DATA
    ),
    Mutant(
        "range: any error is taken for one of the data",
        _RECOMPUTE,
        "RETURN public.rollup_task_usage_hourly_recompute(p_from, p_to, p_by_scan);\n"
        "    EXCEPTION WHEN data_exception OR program_limit_exceeded OR integrity_constraint_violation",
        "RETURN public.rollup_task_usage_hourly_recompute(p_from, p_to, p_by_scan);\n    EXCEPTION WHEN"
        " OTHERS",
        _NOT_IN_THE_DATA,
    ),
    Mutant(
        "range: a bucket is set aside for any error",
        _RECOMPUTE,
        "v_rows := v_rows + 1;\n"
        "        EXCEPTION WHEN data_exception OR program_limit_exceeded OR integrity_constraint_violation",
        "v_rows := v_rows + 1;\n        EXCEPTION WHEN OTHERS",
        _NOT_IN_THE_DATA,
    ),
    Mutant(
        "range: a refused hour keeps what it held",
        _RECOMPUTE,
        "    DELETE FROM public.task_usage_hourly h WHERE h.bucket_hour = p_from;\n",
        "",
        _REFUSED,
    ),
    Mutant(
        "range: of a refused hour cache reads are writes",
        _RECOMPUTE,
        "v_bucket.output_tokens, v_bucket.cache_read_tokens, v_bucket.cache_write_tokens,",
        "v_bucket.output_tokens, v_bucket.cache_write_tokens, v_bucket.cache_read_tokens,",
        _REFUSED,
    ),
    Mutant(
        "set aside: the time of the first refusal stays",
        _RECOMPUTE,
        ", set_aside_at = EXCLUDED.set_aside_at",
        "",
        "tests/hourly/test_slices.py -k two_walkers_set_aside",
    ),
    Mutant(
        "set aside: provider and model change places",
        _RECOMPUTE,
        "public.task_usage_hourly_label_digest(p_provider, p_model)",
        "public.task_usage_hourly_label_digest(p_model, p_provider)",
        "tests/stories/test_losses.py -k sets_a_bucket_aside",
    ),
    Mutant(
        "hours: undated ones are recomputed",
        _RECOMPUTE,
        "WHERE public.task_usage_hourly_dated(h)\n        GROUP BY",
        "WHERE h IS NOT NULL\n        GROUP BY",
        f"{_OF_WINDOW} -k ends_of_time_stops_nobody",
    ),
    Mutant(
        "hours: undated ones are queued for ever",
        _RECOMPUTE,
        "WHERE h >= lower(v_range) AND public.task_usage_hourly_dated(h);",
        "WHERE h >= lower(v_range);",
        _OF_BUDGET,
    ),
    Mutant(
        "hours: the first one left is not queued",
        _RECOMPUTE,
        "WHERE h >= lower(v_range) AND public",
        "WHERE h > lower(v_range) AND public",
        _OF_BUDGET,
    ),
    Mutant(
        "hours: without time nothing is done",
        _RECOMPUTE,
        "IF v_begun AND clock_timestamp() >= p_deadline THEN",
        "IF clock_timestamp() >= p_deadline THEN",
        _OF_BUDGET,
    ),
    Mutant(
        "hours: a range with a deadline is longer than a day",
        _RECOMPUTE,
        "        GROUP BY CASE WHEN isfinite(p_deadline)"
        " THEN date_bin('1 day', h, '0001-01-01 00:00:00+00') END\n",
        "",
        f"{_OF_BUDGET} -k three_days",
    ),
    Mutant(
        "undated: the last readable year goes",
        _RECOMPUTE,
        "OR h.bucket_hour >= '9999-01-01 00:00:00+00'",
        "OR h.bucket_hour >= '9998-01-01 00:00:00+00'",
        _UNREADABLE,
    ),
    # Drain and window
    Mutant(
        "drain: waits for who holds a row",
        _TICK,
        "q.ctid FROM public.task_usage_hourly_invalidation q LIMIT p_limit FOR UPDATE SKIP LOCKED",
        "q.ctid FROM public.task_usage_hourly_invalidation q LIMIT p_limit FOR UPDATE",
        _LOCKED_ROW,
    ),
    Mutant(
        "drain of the public queue: waits for who holds a row",
        _TICK,
        "q.ctid FROM public.task_usage_hourly_dirty q LIMIT p_limit FOR UPDATE SKIP LOCKED",
        "q.ctid FROM public.task_usage_hourly_dirty q LIMIT p_limit FOR UPDATE",
        _LOCKED_ROW,
    ),
    Mutant(
        "drain: everything at once",
        _TICK,
        "task_usage_hourly_invalidation q LIMIT p_limit",
        "task_usage_hourly_invalidation q",
        _OF_BUDGET,
    ),
    Mutant(
        "drain of the public queue: half hours",
        _TICK,
        "array_agg(DISTINCT public.task_usage_hour_bucket(d.bucket_hour))",
        "array_agg(DISTINCT d.bucket_hour)",
        f"{_OF_WINDOW} -k not_a_whole_hour",
    ),
    Mutant(
        "settle: recompute, then drain",
        _TICK,
        "            SELECT public.task_usage_hourly_invalidated_hours(v_queued)\n            UNION\n",
        "",
        f"{_OF_CHANGES}[moves]",
    ),
    Mutant(
        "settle: the public queue is emptied for nothing",
        _TICK,
        "            SELECT unnest(v_dirty)\n            UNION\n",
        "",
        f"{_OF_WINDOW} -k wherever_the_hour_is_queued",
    ),
    Mutant(
        "settle: updated at p_from",
        _TICK,
        "WHERE tu.updated_at >= v_from AND tu.updated_at < p_to",
        "WHERE tu.updated_at > v_from AND tu.updated_at < p_to",
        _IN_RANGE,
    ),
    Mutant(
        "settle: updated at p_to",
        _TICK,
        "WHERE tu.updated_at >= v_from AND tu.updated_at < p_to",
        "WHERE tu.updated_at >= v_from AND tu.updated_at <= p_to",
        _IN_RANGE,
    ),
    Mutant(
        "settle: created at p_from and never updated",
        _TICK,
        "AND tu.created_at >= v_from AND tu.created_at < p_to",
        "AND tu.created_at > v_from AND tu.created_at < p_to",
        _IN_RANGE,
    ),
    Mutant(
        "settle: created at p_to and never updated",
        _TICK,
        "AND tu.created_at >= v_from AND tu.created_at < p_to",
        "AND tu.created_at >= v_from AND tu.created_at <= p_to",
        _IN_RANGE,
    ),
    Mutant(
        "settle: created_at of what was updated since",
        _TICK,
        "WHERE tu.updated_at IS NULL AND tu.created_at >= v_from",
        "WHERE tu.created_at >= v_from",
        _IN_RANGE,
    ),
    Mutant(
        "settle: never updated is never found",
        _TICK,
        "WHERE tu.updated_at IS NULL AND tu.created_at >= v_from",
        "WHERE tu.updated_at IS NOT NULL AND tu.created_at >= v_from",
        _IN_RANGE,
    ),
    Mutant(
        "settle: what is left of the public queue waits",
        _TICK,
        "OR num_nonnulls(v_queued, v_dirty) = 0;",
        "OR v_queued IS NULL;",
        _OF_BUDGET,
    ),
    Mutant(
        "settle: what is left of the private queue waits",
        _TICK,
        "OR num_nonnulls(v_queued, v_dirty) = 0;",
        "OR v_dirty IS NULL;",
        _OF_BUDGET,
    ),
    Mutant(
        "settle: undated buckets stay",
        _TICK,
        "RETURN v_rows + public.rollup_task_usage_hourly_remove_undated();",
        "RETURN v_rows;",
        _UNREADABLE,
    ),
    Mutant(
        "settle: what time has told is told again",
        _TICK,
        "        v_from := p_to;\n",
        "",
        _OF_BUDGET,
        equivalent="The next portion recomputes hours that are right already: it only takes longer.",
    ),
    Mutant(
        "window: a lock of the session",
        _TICK,
        "WHILE NOT pg_try_advisory_xact_lock(4246) LOOP",
        "WHILE NOT pg_try_advisory_lock(4246) LOOP",
        f"{_OF_WINDOW} -k holds_the_lock",
    ),
    Mutant(
        "window: no lock",
        _TICK,
        "WHILE NOT pg_try_advisory_xact_lock(4246) LOOP",
        "WHILE false LOOP",
        f"{_OF_WINDOW} -k lock",
    ),
    Mutant(
        "window: an old snapshot leaves no mark at its start",
        _TICK,
        "<> 'read committed' THEN\n        PERFORM public.rollup_task_usage_hourly_touch();",
        "<> 'read committed' THEN\n        NULL;",
        _OLD_SNAPSHOT,
    ),
    Mutant(
        "window: leaves no mark at its end",
        _TICK,
        "IF v_rows > 0 THEN\n        PERFORM public.rollup_task_usage_hourly_touch();",
        "IF v_rows > 0 THEN\n        NULL;",
        _OLD_SNAPSHOT,
    ),
    Mutant(
        "touch: touches nothing",
        _RECOMPUTE,
        "ON CONFLICT (id) DO UPDATE SET last_run_rows = s.last_run_rows",
        "ON CONFLICT (id) DO NOTHING",
        _OLD_SNAPSHOT,
    ),
    # Tick
    Mutant(
        "tick: past a later release's window",
        _TICK,
        "IF public.task_usage_hourly_window_is_ours() THEN",
        "IF true THEN",
        "tests/hourly/test_bridge.py -k knows_costs",
    ),
    Mutant(
        "tick: the time of its transaction",
        _TICK,
        "SELECT statement_timestamp() + LEAST(",
        "SELECT now() + LEAST(",
        f"{_OF_BUDGET} -k budget_is",
    ),
    Mutant(
        "tick: the whole of the role's timeout",
        _TICK,
        "NULLIF(current_setting('statement_timeout')::interval, '0') / 2",
        "NULLIF(current_setting('statement_timeout')::interval, '0')",
        f"{_OF_BUDGET} -k budget_is",
    ),
    Mutant(
        "tick: the transaction's timeout is not heeded",
        _TICK,
        ",\n        NULLIF(current_setting('transaction_timeout', true)::interval, '0') / 2)",
        ")",
        f"{_OF_BUDGET} -k transaction_timeout",
    ),
    Mutant(
        "tick: no timeout is no time",
        _TICK,
        "NULLIF(current_setting('statement_timeout')::interval, '0') / 2",
        "current_setting('statement_timeout')::interval / 2",
        f"{_OF_BUDGET} -k budget_is",
    ),
    Mutant(
        "tick: waits for a table as long as the role would",
        _TICK,
        "EXTRACT(EPOCH FROM LEAST(\n        NULLIF(v_lock_timeout::interval, '0'), interval '5 seconds'))",
        "EXTRACT(EPOCH FROM (\n        v_lock_timeout::interval))",
        f"{_OF_TICK} -k waits_five_seconds",
    ),
    Mutant(
        "tick: waits longer than the role would",
        _TICK,
        "EXTRACT(EPOCH FROM LEAST(\n        NULLIF(v_lock_timeout::interval, '0'), interval '5 seconds'))",
        "EXTRACT(EPOCH FROM (\n        interval '5 seconds'))",
        f"{_OF_TICK} -k waits_five_seconds",
    ),
    Mutant(
        "tick: leaves its lock_timeout behind",
        _TICK,
        "    PERFORM set_config('lock_timeout', v_lock_timeout, true);\n",
        "",
        f"{_OF_TICK} -k waits_five_seconds",
    ),
    Mutant(
        "tick: any isolation",
        _TICK,
        "    IF current_setting('transaction_isolation') <> 'read committed' THEN\n        RAISE",
        "    IF false THEN\n        RAISE",
        f"{_OF_TICK} -k older_than_its_horizon",
    ),
    Mutant(
        "tick: a missing state row stays missing",
        _TICK,
        "    INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO"
        " NOTHING;\n",
        "",
        f"{_OF_TICK} -k missing_state_row",
    ),
    Mutant(
        "tick: a watermark in the future",
        _TICK,
        "IF v_from > clock_timestamp() THEN",
        "IF v_from > clock_timestamp() + interval '2 hours' THEN",
        f"{_OF_TICK} -k watermark_in_the_future",
    ),
    Mutant(
        "tick: the next event is where it was created",
        _TICK,
        "(SELECT MIN(created_at) FROM public.task_usage WHERE updated_at IS NULL AND created_at >= v_from))\n"
        "    INTO v_next;",
        "(SELECT MIN(created_at) FROM public.task_usage WHERE created_at >= v_from))\n    INTO v_next;",
        f"{_OF_TICK}::test_event_is_where_it_was_last_updated",
    ),
    Mutant(
        "tick: events that were never updated are not looked for",
        _TICK,
        "(SELECT MIN(created_at) FROM public.task_usage WHERE updated_at IS NULL AND created_at >= v_from))\n"
        "    INTO v_next;",
        "NULL)\n    INTO v_next;",
        f"{_OF_TICK} -k years_without_events",
    ),
    Mutant(
        "tick: empty years cost a tick a day",
        _TICK,
        "WHEN v_next > v_from + v_day THEN v_next + v_day",
        "WHEN v_next > v_from + v_day THEN v_from + v_day",
        f"{_OF_TICK} -k years_without_events",
    ),
    Mutant(
        "tick: no more than a day is no bound",
        _TICK,
        "WHEN v_next IS NOT NULL THEN v_from + v_day END",
        "END",
        f"{_OF_TICK} -k at_most_a_day",
    ),
    Mutant(
        "tick: the watermark goes back to the horizon",
        _TICK,
        "    v_to := GREATEST(v_to, v_from);\n",
        "",
        f"{_OF_TICK} -k watermark_above_the_horizon",
    ),
    Mutant(
        "tick: a clock that was set back",
        _TICK,
        "CASE WHEN clock_timestamp() < v_started THEN v_from ELSE v_to END",
        "v_to",
        f"{_OF_BUDGET} -k clock_was_set_back",
    ),
    *(
        Mutant(
            f"tick: who holds it back is said {when}",
            _TICK,
            "IF v_to < v_started - interval '10 minutes' THEN",
            f"IF v_to < {bound} THEN",
            f"{_OF_HORIZON} -k more_than_ten_minutes",
        )
        for when, bound in {"at once": "v_started", "after an hour": "v_started - interval '1 hour'"}.items()
    ),
    Mutant(
        "tick: who holds it back is not said",
        _TICK,
        "last_error = v_held_back_by",
        "last_error = NULL",
        f"{_OF_HORIZON} -k writes_down_who",
    ),
]
