"""102: what the triggers and the bridge write down."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant, within

_UP = "alembic/versions/102_task_usage_hourly_pipeline.up"
_BRIDGE, _TRIGGERS = f"{_UP}/55_bridge.sql", f"{_UP}/70_triggers.sql"

_OF_CHANGES = "tests/hourly/test_invalidation.py::test_change_is_in_the_rollup_one_tick_later"
_SILENT = (
    "tests/hourly/test_silent_faults.py::test_change_is_rolled_up_though_the_product_s_triggers_are_silent"
)
_NO_KEYS = (
    "tests/hourly/test_silent_faults.py"
    "::test_owners_that_are_gone_are_rolled_up_where_no_foreign_key_takes_the_usage_along"
)
_CONTRACT = (
    "tests/hourly/test_invalidation.py"
    "::test_contract_triggers_are_those_of_the_release_and_let_the_change_through"
)
_EDITS = "tests/hourly/test_nothing_changed.py"
_REPORTS = "tests/hourly/test_invalidation.py::test_report_as_the_server_sends_it_writes_nothing_to_the_queue"
_ZONES = "tests/hourly/test_window.py -k queued_under_its_utc_hour"
_RIGHTS = (
    "tests/hourly/test_window.py"
    "::test_server_without_rights_on_the_hourly_family_writes_with_an_empty_search_path"
)
_SHADOWS = "tests/hourly/test_window.py::test_shadowing_names_mislead_neither_the_triggers_nor_the_window"
_LOST = (
    "tests/hourly/test_silent_faults.py::test_server_goes_on_whatever_right_or_object_the_triggers_have_lost"
)

_OF_BRIDGE = "tests/hourly/test_bridge.py"
_THROUGH_PRUNE = f"{_OF_BRIDGE}::test_changes_reach_a_later_release_s_window_through_prune"
_PORTIONS = f"{_OF_BRIDGE} -k portion"
_AGAIN = f"{_OF_BRIDGE}::test_handed_over_again_a_key_stays_one_row_and_gets_newer_never_older"
_FUTURE = f"{_OF_BRIDGE}::test_usage_dated_in_the_future_reaches_a_later_release_s_window_too"
_NO_RUNTIME = f"{_OF_BRIDGE}::test_task_without_a_runtime_has_no_key_to_hand_over_and_stops_nobody"
_COST = f"{_OF_BRIDGE}::test_cost_that_changes_alone_reaches_a_later_release_s_window"
_NO_OTHER = f"{_OF_BRIDGE}::test_hour_and_task_that_are_queued_together_stand_for_no_other_hour_of_the_task"
_FITS = f"{_OF_BRIDGE}::test_what_does_not_fit_for_its_costs_or_in_any_column_is_put_aside"
_STOPS = f"{_OF_BRIDGE}::test_bucket_that_is_set_aside_or_saturated_stops_no_later_tick"
_TAKEN_BACK = f"{_OF_BRIDGE}::test_key_that_fits_no_longer_is_taken_back"
_TIME = f"{_OF_BRIDGE}::test_bridge_has_some_time_of_its_own_and_hands_an_hour_over_in_any_case"

_UPSERT = "DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at);\n"
_TOGETHER = f"        {_UPSERT}        GET DIAGNOSTICS"
_ONE_BY_ONE = f"            {_UPSERT}            v_keys"


def _made(name: str, event: str, table: str) -> str:
    return f"CREATE OR REPLACE TRIGGER {name}\n    {event} ON public.{table}"


MUTANTS: list[Mutant] = [
    # The product's four
    within(
        "trigger of tasks: not for runtimes",
        _TRIGGERS,
        "BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON public.agent_task_queue",
        "runtime_id, ",
        "",
        _CONTRACT,
    ),
    within(
        "trigger of tasks: not for issues",
        _TRIGGERS,
        "BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON public.agent_task_queue",
        ", issue_id",
        "",
        _CONTRACT,
    ),
    within(
        "trigger of tasks: not for deletes",
        _TRIGGERS,
        "BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON public.agent_task_queue",
        " OR DELETE",
        "",
        _CONTRACT,
    ),
    Mutant(
        "trigger of projects: whatever is edited",
        _TRIGGERS,
        "BEFORE UPDATE OF project_id ON public.issue",
        "BEFORE UPDATE ON public.issue",
        _CONTRACT,
    ),
    Mutant(
        "trigger of usage: afterwards",
        _TRIGGERS,
        "BEFORE DELETE ON public.task_usage\n",
        "AFTER DELETE ON public.task_usage\n",
        _CONTRACT,
    ),
    Mutant(
        "trigger of tasks: swallows a delete",
        _TRIGGERS,
        "    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN\n        RETURN OLD;\n    END IF;\n    RETURN"
        " NEW;",
        "    RETURN NEW;",
        _CONTRACT,
    ),
    Mutant(
        "trigger of tasks: undoes an update",
        _TRIGGERS,
        "        RETURN OLD;\n    END IF;\n    RETURN NEW;",
        "        RETURN OLD;\n    END IF;\n    RETURN OLD;",
        _CONTRACT,
    ),
    Mutant(
        "trigger of projects: undoes a move",
        _TRIGGERS,
        "dirty_for_issue_project()\nRETURNS trigger LANGUAGE plpgsql AS $$\nBEGIN\n    RETURN NEW;",
        "dirty_for_issue_project()\nRETURNS trigger LANGUAGE plpgsql AS $$\nBEGIN\n    RETURN OLD;",
        _CONTRACT,
    ),
    Mutant(
        "trigger of issues: swallows a delete",
        _TRIGGERS,
        "dirty_for_issue_delete()\nRETURNS trigger LANGUAGE plpgsql AS $$\nBEGIN\n    RETURN OLD;",
        "dirty_for_issue_delete()\nRETURNS trigger LANGUAGE plpgsql AS $$\nBEGIN\n    RETURN NULL;",
        _CONTRACT,
    ),
    Mutant(
        "trigger of usage: swallows a delete",
        _TRIGGERS,
        "dirty_for_tu()\nRETURNS trigger LANGUAGE plpgsql AS $$\nBEGIN\n    RETURN OLD;",
        "dirty_for_tu()\nRETURNS trigger LANGUAGE plpgsql AS $$\nBEGIN\n    RETURN NULL;",
        _CONTRACT,
    ),
    # Ours: when they fire
    within(
        "usage written: not when it is inserted",
        _TRIGGERS,
        _made("trg_tu_dirty_hourly_write", "AFTER INSERT OR UPDATE", "task_usage"),
        "INSERT OR UPDATE",
        "UPDATE",
        f"{_OF_CHANGES}[old_dates]",
    ),
    within(
        "usage written: not when it is updated",
        _TRIGGERS,
        _made("trg_tu_dirty_hourly_write", "AFTER INSERT OR UPDATE", "task_usage"),
        "INSERT OR UPDATE",
        "INSERT",
        f"{_OF_CHANGES}[corrections]",
    ),
    within(
        "usage written: not when its counts are updated",
        _TRIGGERS,
        _made("trg_tu_dirty_hourly_write", "AFTER INSERT OR UPDATE", "task_usage"),
        "INSERT OR UPDATE",
        "INSERT OR UPDATE OF task_id, provider, model, created_at, updated_at",
        f"{_OF_CHANGES}[corrections]",
    ),
    *(
        within(
            f"task moved: not to another {what}",
            _TRIGGERS,
            "(OLD.agent_id, OLD.runtime_id, OLD.issue_id) IS DISTINCT FROM (NEW.agent_id, NEW.runtime_id,"
            " NEW.issue_id)",
            f"NEW.{what}_id",
            f"OLD.{what}_id",
            f"{_OF_CHANGES}[moves]",
        )
        for what in ("agent", "runtime", "issue")
    ),
    Mutant(
        "task moved: not from or to no issue",
        _TRIGGERS,
        "(OLD.agent_id, OLD.runtime_id, OLD.issue_id) IS DISTINCT FROM (NEW.agent_id, NEW.runtime_id,"
        " NEW.issue_id)",
        "(OLD.agent_id, OLD.runtime_id, OLD.issue_id) <> (NEW.agent_id, NEW.runtime_id, NEW.issue_id)",
        f"{_OF_CHANGES}[moves] {_OF_CHANGES}[more_moves]",
    ),
    Mutant(
        "task moved: whenever it is edited",
        _TRIGGERS,
        "(OLD.agent_id, OLD.runtime_id, OLD.issue_id) IS DISTINCT FROM (NEW.agent_id, NEW.runtime_id,"
        " NEW.issue_id)",
        "true",
        f"{_EDITS} -k status_of_a_task",
    ),
    Mutant(
        "issue moved: not out of or into a project",
        _TRIGGERS,
        "WHEN (OLD.project_id IS DISTINCT FROM NEW.project_id)",
        "WHEN (OLD.project_id <> NEW.project_id)",
        f"{_OF_CHANGES}[moves]",
    ),
    Mutant(
        "issue moved: whenever it is edited",
        _TRIGGERS,
        "WHEN (OLD.project_id IS DISTINCT FROM NEW.project_id)",
        "WHEN (true)",
        f"{_EDITS} -k title_of_an_issue",
    ),
    Mutant(
        "agent moved: never",
        _TRIGGERS,
        "WHEN (OLD.workspace_id IS DISTINCT FROM NEW.workspace_id)",
        "WHEN (OLD.workspace_id IS NULL)",
        f"{_OF_CHANGES}[more_moves]",
    ),
    Mutant(
        "agent moved: whenever it is edited",
        _TRIGGERS,
        "WHEN (OLD.workspace_id IS DISTINCT FROM NEW.workspace_id)",
        "WHEN (true)",
        f"{_EDITS} -k touch_of_an_agent",
    ),
    *(
        Mutant(
            f"{what} moved: queues nothing",
            _TRIGGERS,
            f"INSERT INTO public.task_usage_hourly_invalidation ({what}_id) VALUES (NEW.id);",
            "NULL;",
            f"{_OF_CHANGES}[{'more_moves' if what == 'agent' else 'moves'}]",
        )
        for what in ("task", "issue", "agent")
    ),
    *(
        Mutant(
            f"{what} gone: queues nothing",
            _TRIGGERS,
            f"INSERT INTO public.task_usage_hourly_invalidation ({what}_id) SELECT g.id FROM gone g;",
            "NULL;",
            f"{_SILENT} -k {what}s_deleted",
        )
        for what in ("task", "issue", "agent")
    ),
    *(
        Mutant(
            f"{table}: a delete is not seen",
            _TRIGGERS,
            f"    AFTER DELETE ON public.{table} REFERENCING OLD TABLE AS gone\n",
            f"    AFTER UPDATE ON public.{table} REFERENCING OLD TABLE AS gone\n",
            tests,
        )
        for table, tests in {
            "task_usage": f"{_OF_CHANGES}[deletions]",
            "agent_task_queue": f"{_SILENT} -k tasks_deleted",
            "issue": f"{_SILENT} -k issues_deleted",
            "agent": f"{_SILENT} -k agents_deleted",
        }.items()
    ),
    *(
        Mutant(
            f"{table}: a truncation is not seen",
            _TRIGGERS,
            f"{trigger}_truncate\n    AFTER TRUNCATE ON public.{table}\n",
            f"{trigger}_truncate\n    AFTER DELETE ON public.{table}\n",
            tests,
        )
        for table, trigger, tests in (
            ("task_usage", "trg_tu_dirty_hourly", f"{_OF_CHANGES}[truncations]"),
            ("agent_task_queue", "trg_atq_dirty_hourly", _NO_KEYS),
            ("issue", "trg_issue_dirty_hourly", _NO_KEYS),
            ("agent", "trg_agent_dirty_hourly", _NO_KEYS),
        )
    ),
    *(
        Mutant(
            f"{trigger}: not for a replica's session",
            _TRIGGERS,
            f"    ENABLE ALWAYS TRIGGER {trigger}{end}",
            f"    ENABLE TRIGGER {trigger}{end}",
            tests,
        )
        for trigger, end, tests in (
            ("trg_tu_dirty_hourly_write", ",", f"{_SILENT} -k usage_corrected"),
            ("trg_tu_dirty_hourly_gone", ",", f"{_SILENT} -k usage_deleted"),
            ("trg_tu_dirty_hourly_truncate", ";", f"{_SILENT} -k usage_truncated"),
            ("trg_atq_dirty_hourly_move", ",", f"{_SILENT} -k tasks_moved"),
            ("trg_atq_dirty_hourly_gone", ",", f"{_SILENT} -k tasks_deleted"),
            ("trg_atq_dirty_hourly_truncate", ";", _NO_KEYS),
            ("trg_issue_dirty_hourly_move", ",", f"{_SILENT} -k issue_moved"),
            ("trg_issue_dirty_hourly_gone", ",", f"{_SILENT} -k issues_deleted"),
            ("trg_issue_dirty_hourly_truncate", ";", _NO_KEYS),
            ("trg_agent_dirty_hourly", ",", f"{_SILENT} -k agent_moved"),
            ("trg_agent_dirty_hourly_gone", ",", f"{_SILENT} -k agents_deleted"),
            ("trg_agent_dirty_hourly_truncate", ";", _NO_KEYS),
        )
    ),
    # Ours: what they write down
    Mutant(
        "usage written: by its creation",
        _TRIGGERS,
        "COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.=) v_now",
        "NEW.created_at OPERATOR(pg_catalog.=) v_now",
        _REPORTS,
    ),
    Mutant(
        "usage written: by its update alone",
        _TRIGGERS,
        "COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.=) v_now",
        "NEW.updated_at OPERATOR(pg_catalog.=) v_now",
        f"{_OF_CHANGES}[old_dates]",
    ),
    Mutant(
        "usage written: anything up to now is found by time",
        _TRIGGERS,
        "COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.=) v_now",
        "COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.<=) v_now",
        f"{_OF_CHANGES}[old_dates]",
    ),
    Mutant(
        "usage written: anything from now on is found by time",
        _TRIGGERS,
        "COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.=) v_now",
        "COALESCE(NEW.updated_at, NEW.created_at) OPERATOR(pg_catalog.>=) v_now",
        "tests/hourly/test_invalidation.py -k dated_in_the_future",
    ),
    Mutant(
        "usage written: however old its transaction",
        _TRIGGERS,
        "OPERATOR(pg_catalog.<) (v_now OPERATOR(pg_catalog.+) '4 minutes'::pg_catalog.interval);",
        "OPERATOR(pg_catalog.>=) (v_now OPERATOR(pg_catalog.+) '4 minutes'::pg_catalog.interval) IS NOT"
        " NULL;",
        "tests/hourly/test_horizon.py -k older_than_four_minutes",
    ),
    Mutant(
        "usage written: as it was",
        _TRIGGERS,
        "IF NOT OLD OPERATOR(pg_catalog.*<>) NEW THEN",
        "IF false THEN",
        _EDITS,
    ),
    Mutant(
        "usage written: compared by its counts",
        _TRIGGERS,
        "IF NOT OLD OPERATOR(pg_catalog.*<>) NEW THEN",
        "IF (OLD.input_tokens, OLD.output_tokens, OLD.cache_read_tokens, OLD.cache_write_tokens)"
        " = (NEW.input_tokens, NEW.output_tokens, NEW.cache_read_tokens, NEW.cache_write_tokens) THEN",
        f"{_OF_CHANGES}[new_keys]",
    ),
    Mutant(
        "usage written: compared by what every release has",
        _TRIGGERS,
        "IF NOT OLD OPERATOR(pg_catalog.*<>) NEW THEN",
        "IF (OLD.task_id, OLD.provider, OLD.model, OLD.input_tokens, OLD.output_tokens,"
        " OLD.cache_read_tokens,"
        " OLD.cache_write_tokens, OLD.created_at, OLD.updated_at) IS NOT DISTINCT FROM (NEW.task_id,"
        " NEW.provider,"
        " NEW.model, NEW.input_tokens, NEW.output_tokens, NEW.cache_read_tokens, NEW.cache_write_tokens,"
        " NEW.created_at, NEW.updated_at) THEN",
        _COST,
    ),
    Mutant(
        "usage written: whatever the watermark says",
        _TRIGGERS,
        "WHERE s.id OPERATOR(pg_catalog.=) 1 AND s.watermark_at OPERATOR(pg_catalog.>) v_now);",
        "WHERE false);",
        "tests/hourly/test_invalidation.py -k clock_that_was_set_back",
    ),
    Mutant(
        "usage written: without its task",
        _TRIGGERS,
        "pg_catalog.timezone('UTC', NEW.created_at))), NEW.task_id);",
        "pg_catalog.timezone('UTC', NEW.created_at))), NULL);",
        _COST,
    ),
    Mutant(
        "usage written: the hour of the session's zone",
        _TRIGGERS,
        "VALUES (pg_catalog.timezone(\n"
        "            'UTC', pg_catalog.date_trunc('hour', pg_catalog.timezone('UTC', NEW.created_at))),"
        " NEW.task_id);",
        "VALUES (\n            pg_catalog.date_trunc('hour', NEW.created_at), NEW.task_id);",
        _ZONES,
    ),
    Mutant(
        "usage written: where it was stays",
        _TRIGGERS,
        "IF NOT OLD.created_at OPERATOR(pg_catalog.=) NEW.created_at AND"
        " public.task_usage_hourly_may_enqueue() THEN",
        "IF false THEN",
        f"{_OF_CHANGES}[new_keys]",
    ),
    Mutant(
        "usage written: where it is stands for where it was",
        _TRIGGERS,
        "pg_catalog.timezone('UTC', OLD.created_at))));",
        "pg_catalog.timezone('UTC', NEW.created_at))));",
        f"{_OF_CHANGES}[new_keys]",
    ),
    Mutant(
        "usage gone: the hour of the session's zone",
        _TRIGGERS,
        "SELECT DISTINCT date_trunc('hour', g.created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' FROM gone g;",
        "SELECT DISTINCT date_trunc('hour', g.created_at) FROM gone g;",
        _ZONES,
    ),
    Mutant(
        "usage gone: a row a row",
        _TRIGGERS,
        "SELECT DISTINCT date_trunc('hour', g.created_at AT",
        "SELECT date_trunc('hour', g.created_at AT",
        "tests/hourly/test_silent_faults.py -k deletes_much",
    ),
    Mutant(
        "truncation: queues nothing",
        _TRIGGERS,
        "INSERT INTO public.task_usage_hourly_invalidation DEFAULT VALUES;",
        "NULL;",
        f"{_OF_CHANGES}[truncations]",
    ),
    *(
        within(
            f"{function}: without the right to the schema",
            _TRIGGERS,
            f"dirty_for_{function}()\nRETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            " SET search_path = pg_catalog, pg_temp AS $$\nBEGIN\n"
            "    IF NOT has_schema_privilege('public', 'USAGE') THEN",
            "NOT has_schema_privilege('public', 'USAGE')",
            "false",
            f"{_LOST}[no_schema]",
        )
        for function in ("tu_gone", "truncate", "move", "gone")
    ),
    Mutant(
        "tu_write: without the right to the schema",
        _TRIGGERS,
        "IF NOT pg_catalog.has_schema_privilege('public', 'USAGE') THEN",
        "IF false THEN",
        f"{_LOST}[no_schema]",
    ),
    Mutant(
        "usage written: what a policy hides is not there",
        _TRIGGERS,
        "            v_found_by_time := false;\n",
        "            v_found_by_time := true;\n",
        "tests/hourly/test_silent_faults.py -k may_hide_the_watermark",
    ),
    Mutant(
        "usage written: the state without the right to it",
        _TRIGGERS,
        "ELSIF pg_catalog.has_table_privilege(v_state, 'SELECT') THEN",
        "ELSIF v_state IS NOT NULL THEN",
        f"{_LOST}[state_of_another_owner]",
    ),
    Mutant(
        "may enqueue: whatever a policy says",
        _TRIGGERS,
        " AND NOT pg_catalog.row_security_active(q.oid), false)",
        ", false)",
        f"{_LOST}[queue_behind_a_policy_of_another_owner]",
    ),
    Mutant(
        "may enqueue: without the right",
        _TRIGGERS,
        "pg_catalog.has_table_privilege(q.oid, 'INSERT') AND NOT",
        "q.oid IS NOT NULL AND NOT",
        f"{_LOST}[queue_of_another_owner]",
    ),
    *(
        within(
            f"{function}: with the rights of the server's role",
            _TRIGGERS,
            f"dirty_for_{function}()\nRETURNS trigger LANGUAGE plpgsql SECURITY DEFINER",
            " SECURITY DEFINER",
            "",
            _RIGHTS,
        )
        for function in ("tu_write", "tu_gone", "move", "truncate")
    ),
    within(
        "gone: with the rights of the server's role",
        _TRIGGERS,
        "dirty_for_gone()\nRETURNS trigger LANGUAGE plpgsql SECURITY DEFINER",
        " SECURITY DEFINER",
        "",
        _NO_KEYS,
    ),
    *(
        within(
            f"{function}: without a search_path of its own",
            _TRIGGERS,
            f"dirty_for_{function}()\nRETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path ="
            f" pg_catalog, pg_temp",
            " SET search_path = pg_catalog, pg_temp",
            "",
            _SHADOWS,
        )
        for function in ("tu_gone",)
    ),
    # The bridge: what is handed over
    Mutant(
        "bridge: a task that moved",
        _BRIDGE,
        "SELECT v.task_id FROM unnest(p_queued) AS v WHERE v.bucket_hour IS NULL AND v.task_id IS NOT NULL\n",
        "SELECT v.task_id FROM unnest(p_queued) AS v WHERE false\n",
        _THROUGH_PRUNE,
    ),
    Mutant(
        "bridge: an hour of a task stands for all of them",
        _BRIDGE,
        "WHERE v.bucket_hour IS NULL AND v.task_id IS NOT NULL\n",
        "WHERE v.task_id IS NOT NULL\n",
        _NO_OTHER,
    ),
    Mutant(
        "bridge: an issue that moved",
        _BRIDGE,
        "ON q.issue_id = v.issue_id",
        "ON q.issue_id = v.agent_id",
        _THROUGH_PRUNE,
    ),
    Mutant(
        "bridge: an agent that moved",
        _BRIDGE,
        "ON q.agent_id = v.agent_id",
        "ON q.agent_id = v.issue_id",
        _THROUGH_PRUNE,
    ),
    Mutant(
        "bridge: every hour that is rolled up",
        _BRIDGE,
        "        SELECT h.bucket_hour, NULL FROM public.task_usage_hourly h WHERE EXISTS (SELECT FROM"
        " every_hour)\n"
        "        UNION\n",
        "",
        f"{_OF_BRIDGE} -k truncated_usage",
    ),
    Mutant(
        "bridge: every hour of usage",
        _BRIDGE,
        "FROM public.task_usage tu\n        WHERE EXISTS (SELECT FROM every_hour)",
        "FROM public.task_usage tu\n        WHERE false",
        f"{_OF_BRIDGE} -k portions_are_bounded",
    ),
    Mutant(
        "bridge: hours in the future are forgotten",
        _BRIDGE,
        "WHERE public.task_usage_hourly_dated(p.bucket_hour)",
        "WHERE public.task_usage_hourly_dated(p.bucket_hour) AND p.bucket_hour <= now()",
        _FUTURE,
    ),
    Mutant(
        "bridge: hours that nobody can read",
        _BRIDGE,
        "WHERE public.task_usage_hourly_dated(p.bucket_hour)",
        "WHERE p.bucket_hour IS NOT NULL",
        f"{_OF_BRIDGE} -k no_client_can_read",
    ),
    Mutant(
        "bridge: only what differs",
        _BRIDGE,
        "WHERE tu.task_id = ANY (p_tasks) AND q.runtime_id IS NOT NULL",
        "WHERE false AND tu.task_id = ANY (p_tasks) AND q.runtime_id IS NOT NULL",
        _COST,
    ),
    Mutant(
        "bridge: only what the tasks have now",
        _BRIDGE,
        "    SELECT * FROM public.task_usage_hourly_wrong_keys(p_hour, p_hour + interval '1 hour')\n   "
        " UNION\n",
        "",
        _THROUGH_PRUNE,
    ),
    Mutant(
        "bridge: tasks without a runtime",
        _BRIDGE,
        "WHERE tu.task_id = ANY (p_tasks) AND q.runtime_id IS NOT NULL",
        "WHERE tu.task_id = ANY (p_tasks)",
        _NO_RUNTIME,
    ),
    Mutant(
        "bridge: tasks without an issue",
        _BRIDGE,
        "LEFT JOIN public.issue i ON i.id = q.issue_id\n    WHERE tu.task_id",
        "JOIN public.issue i ON i.id = q.issue_id\n    WHERE tu.task_id",
        _COST,
    ),
    within(
        "bridge: the next hour's usage",
        _BRIDGE,
        "AND tu.created_at >= p_hour AND tu.created_at < p_hour + interval '1 hour';",
        "<",
        "<=",
        _NO_OTHER,
    ),
    *(
        within(
            f"bridge: {column} may overflow {'without' if uncosted else 'with'} costs",
            _BRIDGE,
            f"SUM(tu.{column}), SUM(tu.{column}) FILTER (WHERE c.ticks IS NULL),",
            f"SUM(tu.{column}) FILTER (WHERE c.ticks IS NULL)" if uncosted else f"SUM(tu.{column}), ",
            "NULL" if uncosted else "",
            _FITS,
        )
        for column in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
        for uncosted in (False, True)
    ),
    Mutant(
        "bridge: costs may overflow",
        _BRIDGE,
        "            SUM(c.ticks)] AS sums",
        "            NULL] AS sums",
        _FITS,
    ),
    within(
        "bridge: sums of the next hour",
        _BRIDGE,
        "AND tu.created_at >= p_hour AND tu.created_at < p_hour + interval '1 hour'\n        GROUP BY",
        "<",
        "<=",
        f"{_OF_BRIDGE} -k sums_of_the_next_hour",
    ),
    Mutant(
        "bridge: what was put aside stays",
        _BRIDGE,
        "    DELETE FROM public.task_usage_hourly_set_aside s WHERE s.bucket_hour = p_hour;\n",
        "",
        _STOPS,
    ),
    within("bridge: told of again, a key gets no newer", _BRIDGE, _TOGETHER, "GREATEST", "LEAST", _AGAIN),
    within(
        "bridge: told of again, a key gets older",
        _BRIDGE,
        _TOGETHER,
        "GREATEST(d.enqueued_at, EXCLUDED.enqueued_at)",
        "EXCLUDED.enqueued_at",
        _AGAIN,
    ),
    within(
        "bridge: told of again, a key stays as it is",
        _BRIDGE,
        _TOGETHER,
        "UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at)",
        "NOTHING",
        _AGAIN,
    ),
    within(
        "bridge: told of again alone, a key gets no newer", _BRIDGE, _ONE_BY_ONE, "GREATEST", "LEAST", _AGAIN
    ),
    within(
        "bridge: told of again alone, a key gets older",
        _BRIDGE,
        _ONE_BY_ONE,
        "GREATEST(d.enqueued_at, EXCLUDED.enqueued_at)",
        "EXCLUDED.enqueued_at",
        _AGAIN,
    ),
    within(
        "bridge: told of again alone, a key stays as it is",
        _BRIDGE,
        _ONE_BY_ONE,
        "UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at)",
        "NOTHING",
        _AGAIN,
    ),
    Mutant(
        "bridge: sums that their window cannot store",
        _BRIDGE,
        "IF v_keys > 0 AND EXISTS (SELECT FROM public.rollup_task_usage_hourly_oversized_keys(p_hour)) THEN",
        "IF false THEN",
        _TAKEN_BACK,
    ),
    Mutant(
        "bridge: such sums without a project",
        _BRIDGE,
        "            AND o.project_id IS NOT DISTINCT FROM k.project_id\n    LOOP",
        "            AND o.project_id = k.project_id\n    LOOP",
        _STOPS,
    ),
    Mutant(
        "bridge: such sums one by one",
        _BRIDGE,
        "IF v_key.oversized THEN",
        "IF false THEN",
        _STOPS,
    ),
    Mutant(
        "bridge: a key that fits no longer stays",
        _BRIDGE,
        "            DELETE FROM public.task_usage_hourly_dirty d\n",
        "            DELETE FROM public.task_usage_hourly_dirty d USING (SELECT WHERE false) AS nothing\n",
        _TAKEN_BACK,
    ),
    Mutant(
        "bridge: keys that were taken back count",
        _BRIDGE,
        "        v_keys := 0;\n    END;",
        "        NULL;\n    END;",
        _TAKEN_BACK,
    ),
    # The bridge: when, and how much
    Mutant(
        "bridge: beside our own window",
        _BRIDGE,
        "IF public.task_usage_hourly_window_is_ours() OR ",
        "IF ",
        "tests/hourly/test_tick.py -k nothing_unprocessed",
    ),
    Mutant(
        "bridge: while somebody else writes",
        _BRIDGE,
        " OR NOT pg_try_advisory_xact_lock(4246)",
        "",
        f"{_OF_BRIDGE} -k keeps_out",
    ),
    Mutant(
        "bridge: by an old snapshot",
        _BRIDGE,
        "<> 'read committed' THEN\n        PERFORM public.rollup_task_usage_hourly_touch();",
        "<> 'read committed' THEN\n        NULL;",
        f"{_OF_BRIDGE} -k snapshot_of_the_whole",
    ),
    Mutant(
        "bridge: without an end",
        _BRIDGE,
        "v_full := v_keys >= 500 OR clock_timestamp() >= v_deadline;",
        "v_full := clock_timestamp() >= v_deadline;",
        _PORTIONS,
    ),
    Mutant(
        "bridge: whatever time it is",
        _BRIDGE,
        "v_full := v_keys >= 500 OR clock_timestamp() >= v_deadline;",
        "v_full := v_keys >= 500;",
        _TIME,
    ),
    Mutant(
        "bridge: no time of its own",
        _BRIDGE,
        "CONSTANT timestamptz := GREATEST(\n        public.task_usage_hourly_tick_deadline()",
        "CONSTANT timestamptz := LEAST(\n        public.task_usage_hourly_tick_deadline()",
        _TIME,
    ),
    Mutant(
        "bridge: the newest first",
        _BRIDGE,
        "rollup_task_usage_hourly_pairs(v_queued) p GROUP BY 1 ORDER BY 1\n",
        "rollup_task_usage_hourly_pairs(v_queued) p GROUP BY 1 ORDER BY 1 DESC\n",
        _TIME,
    ),
    Mutant(
        "bridge: what is left is forgotten",
        _BRIDGE,
        "                INSERT INTO public.task_usage_hourly_invalidation (bucket_hour, task_id)\n"
        "                SELECT v_hour.bucket_hour, unnest(v_hour.tasks);\n",
        "                NULL;\n",
        _PORTIONS,
    ),
    Mutant(
        "bridge: what is left forgets its tasks",
        _BRIDGE,
        "SELECT v_hour.bucket_hour, unnest(v_hour.tasks);",
        "SELECT v_hour.bucket_hour, NULL;",
        _PORTIONS,
    ),
]
