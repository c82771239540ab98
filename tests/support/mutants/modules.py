"""What is known of the modules of src/: the tests of each, and lines whose mistakes nobody can tell."""

from __future__ import annotations

_ONE = "tests/commands/test_one_command.py"
_SCRIPT = "::test_script_is_what_alembic_writes_either_way"
_X = "::test_x_is_taken_where_alembic_wants_it_and_refused_where_nothing_reads_it"

# Arguments of pytest that take a minute or so, by module.
TESTS: dict[str, str] = {
    "account.py": "tests/runner/test_summary.py",
    "contract.py": "tests/stories/test_chain.py",
    "doors.py": "tests/commands/test_one_command.py -k hint",
    "errors.py": "tests/test_errors.py",
    "logs.py": "tests/test_logs.py tests/stories/test_entrypoint_modes.py tests/session/test_encodings.py",
    "queries.py": "tests/runner/test_script.py",
    "revisions.py": "tests/commands/test_upgrade_command.py",
    "streams.py": "tests/test_streams.py",
    "times.py": "tests/hourly/test_tick_command.py",
    "words.py": "tests/commands/test_output.py tests/runner/test_summary.py",
    "commands/app.py": f"{_ONE}::test_database_url_typed_wins_before_and_behind_the_command {_ONE}{_X}",
    "commands/backfill.py": "tests/hourly/test_backfill_command.py",
    "commands/chain.py": f"tests/commands/test_upgrade_command.py {_ONE}{_SCRIPT} {_ONE}{_X}",
    "commands/check.py": "tests/schema/test_check_command.py",
    "commands/cli.py": "tests/test_streams.py tests/test_logs.py",
    "commands/downgrade.py": f"{_ONE}::test_downgrade_goes_back_by_name_and_by_steps",
    "commands/health.py": "tests/reports/test_probes.py tests/hourly/test_ticker.py"
    " tests/reports/test_backfilling.py tests/reports/test_status.py tests/reports/test_trigger_rights.py",
    "commands/history.py": "tests/commands/test_history_command.py",
    "commands/options.py": f"tests/hourly/test_backfill_command.py {_ONE}"
    "::test_database_url_typed_wins_before_and_behind_the_command",
    "commands/output.py": "tests/commands/test_output.py tests/hourly/test_verify.py"
    " tests/reports/test_status.py",
    "commands/preflight.py": "tests/reports/test_preflight.py tests/hourly/test_unseen.py",
    "commands/prometheus.py": "tests/reports/test_probes.py",
    "commands/recipes.py": "tests/hourly/test_schedule.py",
    "commands/schedule.py": "tests/hourly/test_schedule.py tests/hourly/test_ticker.py",
    "commands/script.py": f"{_ONE}{_SCRIPT} {_ONE}::test_script_refuses_ends_that_are_none",
    "commands/stamp.py": f"{_ONE}::test_stamp_writes_what_a_refusal_says",
    "commands/status.py": "tests/reports/test_status.py tests/reports/test_probes.py",
    "commands/strip.py": "tests/commands/test_output.py tests/reports/test_status.py",
    "commands/tick.py": "tests/hourly/test_tick_command.py tests/reports/test_trigger_rights.py",
    "commands/upgrade.py": "tests/commands/test_upgrade_command.py",
    "commands/verify.py": "tests/hourly/test_verify.py tests/stories/test_losses.py",
    "hourly/backfill.py": "tests/hourly/test_backfill_hook.py tests/hourly/test_backfill_command.py"
    " tests/hourly/test_plans.py::test_hook_does_not_wait_for_a_table_that_is_being_vacuumed",
    "hourly/before_adoption.py": "tests/stories/test_other_runners.py",
    "hourly/catch_up.py": "tests/hourly/test_backfill_command.py tests/hourly/test_products_pipeline.py",
    "hourly/crew.py": "tests/hourly/test_jobs.py tests/hourly/test_proof.py",
    "hourly/lag.py": "tests/hourly/test_tick_command.py tests/reports/test_probes.py",
    "hourly/losses.py": "tests/stories/test_losses.py",
    "hourly/pace.py": "tests/hourly/test_pace.py tests/hourly/test_jobs.py",
    "hourly/pipeline.py": "tests/hourly/test_pipeline.py tests/hourly/test_products_pipeline.py"
    " tests/session/test_planted.py",
    "hourly/products_pipeline.py": "tests/hourly/test_products_pipeline.py"
    " tests/stories/test_other_runners.py",
    "hourly/progress.py": "tests/hourly/test_backfill_hook.py tests/test_logs.py",
    "hourly/proof.py": "tests/hourly/test_proof.py tests/hourly/test_backfill_hook.py",
    "hourly/schedule.py": "tests/hourly/test_schedule.py tests/hourly/test_ticker.py",
    "hourly/slices.py": "tests/hourly/test_slices.py tests/hourly/test_backfill_hook.py",
    "hourly/tick.py": "tests/hourly/test_tick_command.py",
    "hourly/ticker.py": "tests/hourly/test_ticker.py",
    "hourly/unseen.py": "tests/hourly/test_unseen.py",
    "hourly/verify.py": "tests/hourly/test_verify.py tests/stories/test_losses.py",
    "hourly/walk.py": "tests/hourly/test_jobs.py tests/hourly/test_backfill_hook.py"
    " tests/runner/test_summary.py",
    "reports/backfilling.py": "tests/reports/test_backfilling.py",
    "reports/covered_days.py": "tests/reports/test_status.py",
    "reports/estimate.py": "tests/reports/test_estimate.py tests/reports/test_preflight.py",
    "reports/forecast_103.py": "tests/reports/test_preflight.py",
    "reports/hidden.py": "tests/reports/test_preflight.py",
    "reports/history.py": "tests/commands/test_history_command.py",
    "reports/odd_usage.py": "tests/reports/test_preflight.py",
    "reports/place.py": "tests/reports/test_status.py tests/reports/test_preflight.py",
    "reports/preflight.py": "tests/reports/test_preflight.py",
    "reports/status.py": "tests/reports/test_status.py tests/reports/test_probes.py",
    "reports/without_rollup.py": "tests/hourly/test_verify.py tests/hourly/test_backfill_command.py",
    "reports/trigger_rights.py": "tests/reports/test_trigger_rights.py",
    "runner/adoption.py": "tests/runner/test_adoption.py",
    "runner/again.py": "tests/stories/test_outages.py",
    "runner/as_made.py": "tests/runner/test_as_made.py tests/runner/test_checks.py",
    "runner/checks.py": "tests/runner/test_checks.py",
    "runner/course.py": "tests/runner/test_checks.py tests/runner/test_as_made.py"
    " tests/runner/test_dependents.py",
    "runner/dependents.py": "tests/runner/test_dependents.py",
    "runner/footprint.py": "tests/runner/test_checks.py tests/runner/test_as_made.py",
    "runner/hooks.py": "tests/runner/test_hook_mechanism.py tests/stories/test_other_runners.py",
    "runner/ledger.py": "tests/runner/test_adoption.py tests/runner/test_runner_lock.py",
    "runner/new_revision.py": "tests/runner/test_new_revision.py",
    "runner/script.py": "tests/runner/test_script.py",
    "runner/step.py": "tests/test_errors.py tests/stories/test_chain.py",
    "runner/summary.py": "tests/runner/test_summary.py",
    "runner/table_locks.py": "tests/runner/test_table_locks.py tests/stories/test_locks_held.py",
    "schema/autogenerate.py": "tests/schema/test_alembic_check.py",
    "schema/catalog.py": "tests/schema/test_check_command.py",
    "schema/check.py": "tests/schema/test_check_command.py",
    "schema/later_releases.py": "tests/schema/test_check_command.py",
    "schema/metadata.py": "tests/schema/test_alembic_check.py",
    "session/advisory_lock.py": "tests/session/test_advisory_lock.py tests/runner/test_runner_lock.py",
    "session/attempt.py": "tests/session/test_opening.py",
    "session/blockers.py": "tests/stories/test_locks_held.py",
    "session/client.py": "tests/session/test_poolers.py",
    "session/connection.py": "tests/session/test_connection.py",
    "session/database_url.py": "tests/session/test_database_url.py",
    "session/opening.py": "tests/session/test_opening.py tests/session/test_connection.py",
    "session/options.py": "tests/session/test_options.py tests/session/test_connection.py",
    "session/outages.py": "tests/stories/test_outages.py",
    "session/parameters.py": "tests/session/test_opening.py",
    "session/pinned.py": "tests/session/test_connection.py tests/session/test_opening.py",
    "session/pool_mode.py": "tests/session/test_poolers.py",
    "session/pooler_words.py": "tests/session/test_poolers.py",
    "session/poolers.py": "tests/session/test_poolers.py",
    "session/signals.py": "tests/session/test_signals.py",
    "session/suitability.py": "tests/session/test_connection.py tests/session/test_row_security.py",
    "session/undecodable.py": "tests/session/test_encodings.py",
    "session/verbosity.py": "tests/session/test_opening.py",
}

# Why nobody could tell a mistake in a line, by "module: the line", or that one: "module mistake: the line".
EQUIVALENT: dict[str, str] = {
    **dict.fromkeys(
        (
            "doors.py: @cache",
            "revisions.py: @cache",
            "hourly/pipeline.py: @cache",
            "runner/adoption.py: @cache",
            "runner/footprint.py: @cache",
            "session/verbosity.py: @cache",
        ),
        "it saves time, and nothing else",
    ),
    "session/pool_mode.py: return str(rows[0][0])": "the row has one column",
    'session/verbosity.py: path = find_libpq_full_path() if pq.__impl__ == "python" else module.__file__': (
        "which libpq psycopg has loaded is a matter of how it was installed, and tests have one installation"
    ),
    **dict.fromkeys(
        (
            "errors.py ReplaceTrueWithFalse: @dataclass(frozen=True)",
            "reports/odd_usage.py ReplaceTrueWithFalse: @dataclass(frozen=True)",
        ),
        "nothing changes one: it is said to readers",
    ),
    "reports/estimate.py ReplaceBreakWithContinue: break": "it measures once more, and better",
    "hourly/slices.py NumberReplacer: SLICE_ROWS = 500_000": "a row more or less is as good",
    "commands/schedule.py ReplaceComparisonOperator_Eq_Is: "
    "server = done.ticks is not None and done.ticks.by == SERVER": "both are the one constant",
}
