"""`usage-rollup history`: each step, when it was applied and by which runner; what is pending."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import go_runner
from tests.support.database import Database, MakeDatabase
from tests.support.terminal import on_a_terminal
from usage_rollup.contract import STEMS

STEPS = ["097", "100", "101", "102", "103", "104"]


def told(database: Database) -> dict[str, dict[str, Any]]:
    done = database.usage_rollup("history", "--json")
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert [step["revision"] for step in steps] == STEPS
    return {step["revision"]: step for step in steps}


def runners(database: Database) -> list[str | None]:
    return [step["runner"] for step in told(database).values()]


def test_steps_of_both_runners_are_told_apart_with_their_times(v034: Database) -> None:
    v034.execute("UPDATE schema_migrations SET applied_at = '2026-01-02 03:04:05+00'")
    assert [step["state"] for step in told(v034).values()] == ["applied", *["pending"] * 5]
    v034.upgrade("102")
    steps = told(v034)
    assert runners(v034) == ["product", *["usage-rollup"] * 3, None, None]
    assert steps["097"]["applied_at"].startswith("2026-01-02")
    assert not steps["102"]["applied_at"].startswith("2026-01-02")
    v034.upgrade()
    assert runners(v034) == ["product", *["usage-rollup"] * 5]


def test_screen_has_a_line_a_step_and_the_command_for_what_is_pending(v034: Database) -> None:
    v034.execute("UPDATE schema_migrations SET applied_at = '2026-01-02 03:04:05+00'")
    lines = v034.usage_rollup("history").stdout.splitlines()
    assert lines[1].split() == [
        "097_autopilot_project_id", "applied", "2026-01-02", "03:04:05", "UTC", "the", "product",
    ]  # fmt: skip
    assert lines[2].split() == ["100_user_timezone", "pending"]
    assert lines[-1] == "5 steps pending: alembic upgrade head"


def test_database_without_a_ledger_has_steps_of_ours_whose_time_nobody_recorded(
    make_database: MakeDatabase,
) -> None:
    empty = make_database("empty")
    assert [step["state"] for step in told(empty).values()] == ["pending"] * 6
    empty.upgrade()
    steps = told(empty)
    assert runners(empty) == ["usage-rollup"] * 6
    assert {step["applied_at"] for step in steps.values()} == {None}
    assert "not recorded" in empty.usage_rollup("history").stdout


def test_steps_of_a_database_stuck_at_103_stay_the_products(make_database: MakeDatabase) -> None:
    stuck = go_runner.taken_by_go_to(make_database, "102")
    # The Go runner records in a transaction of its own.
    go_runner.unrecord(stuck, STEMS["100"], STEMS["101"])
    go_runner.record(stuck, STEMS["100"], STEMS["101"])
    assert runners(stuck) == ["product"] * 4 + [None, None]
    screen = on_a_terminal(stuck, "history", columns=80)
    assert f"to be applied again, as ours: {STEMS['102']}" in screen
    assert screen.count(STEMS["102"]) == 2
    stuck.upgrade()
    # 102 is ours now, and its row in the ledger still the Go runner's: the time is that of its first run.
    assert runners(stuck) == ["product"] * 4 + ["usage-rollup"] * 2


def test_database_of_a_later_release_is_the_products_and_says_how_far_it_went(
    make_database: MakeDatabase,
) -> None:
    later = go_runner.taken_by_go_to(make_database, "104")
    go_runner.unrecord(later, STEMS["100"], STEMS["101"])
    go_runner.record(later, STEMS["100"], STEMS["101"], "105_issue_metadata")
    assert runners(later) == ["product"] * 6
    screen = later.usage_rollup("history").stdout
    assert "the product's own runner has gone on, to 105_issue_metadata" in screen
    assert "pending" not in screen


def test_103_that_the_products_runner_took_after_our_102_is_the_products(at_102: Database) -> None:
    go_runner.drop_legacy(at_102)
    go_runner.record(at_102, STEMS["103"])
    assert runners(at_102) == ["product", *["usage-rollup"] * 3, "product", None]


def test_steps_after_a_restore_are_not_known_to_be_anybodys(head: Database) -> None:
    # Its rows were written by another transaction than the steps'.
    head.execute("UPDATE schema_migrations SET applied_at = applied_at")
    assert runners(head) == ["product", *[None] * 5]
    assert "not known" in head.usage_rollup("history").stdout


@pytest.mark.parametrize("start", ["v034", "stuck_at_103", "unrecorded", "head"])
def test_history_and_preflight_agree_on_what_is_pending(make_database: MakeDatabase, start: str) -> None:
    if start == "stuck_at_103":
        database = go_runner.taken_by_go_to(make_database, "102")
    elif start == "unrecorded":
        # The Go runner was killed between its last step and the step's row in the ledger.
        database = go_runner.taken_by_go_to(make_database, "101")
        go_runner.unrecord(database, STEMS["101"])
    else:
        database = make_database(start)
    steps = told(database).values()
    planned = json.loads(database.usage_rollup("preflight", "--json").stdout)["place"]["pending"]
    assert [s["step"] for s in steps if s["state"] == "pending"] == [step["name"] for step in planned]


@pytest.mark.parametrize(
    ("point", "change"),
    [
        ("102", "UPDATE alembic_version SET version_num = 'abcdef'"),
        ("empty", "CREATE TABLE customers (id int)"),
        ("head", "DELETE FROM schema_migrations WHERE version LIKE '103%'"),
        ("empty", "CREATE TABLE schema_migrations (version bigint)"),
    ],
)
def test_where_no_upgrade_can_go_on_no_step_is_told_but_the_refusal_that_status_shows(
    make_database: MakeDatabase, point: str, change: str
) -> None:
    database = make_database(point)
    database.execute(change)
    place = json.loads(database.usage_rollup("status", "--json").stdout)["place"]
    assert place["refused"]
    refused = database.usage_rollup("history")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"usage-rollup: {place['shape']}\nHINT: {place['next_step']}\n"
    assert json.loads(database.usage_rollup("history", "--json").stdout)["error"] == place["shape"]


def test_no_step_is_folded_on_a_narrow_terminal(v034: Database) -> None:
    v034.upgrade("102")
    assert "102_task_usage_hourly_pipeline" in on_a_terminal(v034, "history", columns=80)
