"""What a run says at its end: from where to where, what was rolled up, what became of the legacy rollups."""

from __future__ import annotations

import json
import re
from itertools import takewhile

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import record, taken_by_go_to
from tests.support.legacy import lose_raw_rows, roll_up_as_v034
from tests.support.outages import end_sessions
from tests.support.processes import finish
from tests.support.product import wait_until
from tests.support.terminal import on_a_terminal
from tests.support.walks import blocked_at, migrating_backend, wait_until_blocked, write_history

HEAD = "104_drop_runtime_timezone"


# However long it took.
TOOK = r"\d[\d.]* (?:s|min)(?: \d+ s)?"


def summary(printed: str) -> list[str]:
    """Return the summary's lines, the first without time, level and logger."""
    (_, told) = printed.split("[usage_rollup.runner.summary] ")
    first, *lines = told.splitlines()
    return [first, *takewhile(lambda line: line.startswith("  "), lines)]


def test_upgrade_ends_with_what_was_done_and_what_to_do_next(v034: Database) -> None:
    write_history(v034, rows=1200, months=3)
    first, rolled_up, legacy, times, following = summary(v034.upgrade())
    assert re.fullmatch(rf"upgraded from 097_autopilot_project_id to {HEAD} in {TOOK}", first)
    buckets = v034.value("SELECT count(*) FROM task_usage_hourly")
    slices = r"\d+ slices?( by \d sessions)?"
    assert re.fullmatch(rf"  rolled up: 1,200 usage rows into {buckets:,} buckets, in {slices}", rolled_up)
    assert legacy == "  legacy rollups: dropped: raw usage holds all they showed"
    phases = re.findall(rf"([a-z0-9][\w ]*): {TOOK}", times.removeprefix("  time: "))
    assert phases == ["100", "101", "102", "rolling up", "comparing with raw usage", "103", "104"]
    assert following.startswith("  next: start the product, v0.3.5 or later")


def test_what_was_rolled_up_before_a_session_was_lost_counts(at_102: Database) -> None:
    months = write_history(at_102, rows=1200, months=3)
    with blocked_at(at_102, months[-1]):
        run = at_102.spawn("alembic", "upgrade", "head", JOBS="1")
        wait_until_blocked(at_102)
        end_sessions(at_102)
        wait_until_blocked(at_102)
    assert run.stdout is not None
    printed = run.stdout.read()
    assert run.wait() == 0, printed
    assert "the session was lost" in printed
    assert "rolled up: 1,200 usage rows" in printed
    assert "upgraded from 102_task_usage_hourly_pipeline" in printed


def test_run_that_lost_its_session_on_the_way_tells_where_it_began(v034: Database) -> None:
    reader = v034.connect()
    reader.execute("SELECT FROM task_usage_daily")
    run = v034.spawn("alembic", "upgrade", "head")
    wait_until(lambda: migrating_backend(v034, "task_usage_daily") is not None, "103 waits for its locks")
    end_sessions(v034)
    reader.rollback()
    printed = finish(run)
    assert "the session was lost" in printed
    assert f"upgraded from 097_autopilot_project_id to {HEAD}" in printed


def test_upgrade_says_why_the_legacy_rollups_were_kept(v034: Database) -> None:
    write_history(v034, rows=60, months=2)
    roll_up_as_v034(v034)
    lose_raw_rows(v034, "created_at < (SELECT max(created_at) FROM task_usage)")
    printed = v034.upgrade()
    (line,) = [line for line in summary(printed) if "legacy rollups" in line]
    assert re.fullmatch(
        r"  legacy rollups: kept in schema legacy_usage: \d+ daily totals? (is|are) in no raw usage", line
    )


@pytest.mark.parametrize(
    ("keep", "said"),
    [("true", "kept in schema legacy_usage, as asked for"), ("false", "dropped, as asked for")],
)
def test_upgrade_says_that_the_legacy_rollups_went_as_asked_for(keep: str, said: str, v034: Database) -> None:
    write_history(v034, rows=60, months=2)
    roll_up_as_v034(v034)
    lose_raw_rows(v034, "created_at < (SELECT max(created_at) FROM task_usage)")
    (line,) = [line for line in summary(v034.upgrade(KEEP_LEGACY=keep)) if "legacy rollups" in line]
    assert line.startswith(f"  legacy rollups: {said}")


def test_upgrade_from_nothing_says_nothing_of_legacy_rollups(empty: Database) -> None:
    assert "legacy rollups:" not in "".join(summary(empty.upgrade()))


def test_upgrade_with_nothing_to_do_says_where_the_database_is_already(head: Database) -> None:
    assert summary(head.upgrade())[0] == f"already at {HEAD}: nothing to do"
    assert summary(head.upgrade("102"))[0] == f"already at {HEAD}: nothing to do"


def test_database_of_the_products_own_runner_is_taken_over(make_database: MakeDatabase) -> None:
    later = taken_by_go_to(make_database, "104")
    record(later, "105_issue_metadata")
    first, following = summary(later.upgrade())
    assert first.startswith(f"taken over at {HEAD} in ")
    assert following == "  next: start the product: its own runner has gone on, to 105_issue_metadata"


def test_step_on_the_way_says_which_server_may_run(v034: Database) -> None:
    assert "a v0.3.4 server may run beside this" in summary(v034.upgrade("102"))[-1]
    v034.upgrade("103")
    assert summary(v034.downgrade("097"))[0].startswith(
        "downgraded from 103_drop_legacy_daily_rollups to 097_"
    )


def test_summary_is_fields_in_json(v034: Database) -> None:
    write_history(v034, rows=60, months=2)
    done = v034.run("alembic", "upgrade", "head", LOG_FORMAT="json")
    (told,) = [
        entry
        for line in done.stderr.splitlines()
        if (entry := json.loads(line))["logger"] == "usage_rollup.runner.summary"
    ]
    assert (told["from"], told["to"]) == (None, "104")
    assert told["adopted"] == "097"
    assert told["steps"] == ["100", "101", "102", "103", "104"]
    assert told["usage_rows"] == 60
    assert told["buckets"] == v034.value("SELECT count(*) FROM task_usage_hourly")
    assert set(told["seconds"]) == {*told["steps"], "rolling up", "comparing with raw usage"}


def test_summary_is_on_a_terminal_too(v034: Database) -> None:
    assert f"upgraded from 097_autopilot_project_id to {HEAD}" in on_a_terminal(v034, "upgrade", columns=140)
