"""What `usage-rollup status` says of a backfill: running, and how far it is, or interrupted."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.product import wait_until
from tests.support.rollup import heal
from tests.support.walks import (
    blocked_at,
    committed_months,
    runners,
    wait_until_blocked,
    write_history,
)
from tests.support.ways import ALL_ALONE, script
from usage_rollup.reports.backfilling import Backfilling, find

pytestmark = pytest.mark.process


@pytest.fixture
def months(at_102: Database) -> list[datetime]:
    return write_history(at_102)


def seen(database: Database) -> Backfilling | None:
    with database.migration_connection() as connection:
        return find(connection, has_plan=True)


def said(database: Database) -> str:
    screen = database.usage_rollup("status").stdout
    (line,) = [row for row in screen.splitlines() if row.startswith("backfill ")]
    return line.removeprefix("backfill").strip()


def planned(database: Database) -> tuple[int, int, int]:
    """Return slices, those walked, and how many of a hundred usage rows those hold."""
    rows = database.execute(
        "SELECT count(*), count(walked_at), 100 * sum(usage_rows) FILTER (WHERE walked_at IS NOT NULL)"
        " / sum(usage_rows) FROM task_usage_hourly_backfill"
    )
    return rows[0][0], rows[0][1], int(rows[0][2])


def wait_until_walked(database: Database, months: list[datetime]) -> int:
    """Wait until a walk has come to the slice in its way; return the pid of its backend."""
    wait_until(lambda: committed_months(database) == months, "the slices before are walked")
    return wait_until_blocked(database)


def needs_somebody(database: Database) -> bool:
    """Say whether a probe has the backfill among its reasons."""
    problems = json.loads(database.usage_rollup("status", "--json").stdout)["problems"]
    return any(problem.startswith("backfill ") for problem in problems)


def test_a_backfill_that_is_at_work_is_running_and_one_that_was_killed_is_interrupted(
    at_102: Database, months: list[datetime]
) -> None:
    with blocked_at(at_102, months[3]):
        process = at_102.spawn("usage-rollup", "backfill", "--jobs", "1")
        pid = wait_until_walked(at_102, months[:3])
        slices, walked, percent = planned(at_102)
        assert 0 < walked < slices
        assert said(at_102).startswith(f"running, {percent} %, pid {pid}: ")
        assert said(at_102).endswith(f" {walked} of {slices} slices walked")
        screen = at_102.usage_rollup("status").stdout
        assert "resume" not in screen
        assert f"let the backfill finish (running, {percent} %)" in screen
        assert f"a backfill is running, {percent} %" in screen
        assert not needs_somebody(at_102)
        process.kill()
        process.wait()
    wait_until(lambda: runners(at_102) == 0, "the session has ended")
    assert said(at_102).startswith(f"interrupted at {percent} %: ")
    assert said(at_102).endswith("resume: usage-rollup backfill")
    assert needs_somebody(at_102)
    heal(at_102)


def test_all_sessions_of_a_backfill_are_counted(at_102: Database, months: list[datetime]) -> None:
    with blocked_at(at_102, months[0]):
        process = at_102.spawn("usage-rollup", "backfill", "--jobs", "2")
        wait_until_blocked(at_102)
        wait_until(lambda: runners(at_102) == 3, "the workers are there")
        found = seen(at_102)
        assert found is not None
        assert (found.state, len(found.pids)) == ("running", 3)
        assert " and 2 more" in said(at_102)
        process.kill()
        process.wait()
    heal(at_102)


def test_a_backfill_that_rests_between_slices_is_running(at_102: Database, months: list[datetime]) -> None:
    process = at_102.spawn("usage-rollup", "backfill", "--sleep-between-slices", "60s")
    wait_until(lambda: committed_months(at_102), "the first slice is committed")
    wait_until(
        lambda: at_102.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0, "it rests"
    )
    assert said(at_102).startswith("running, ")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    wait_until(lambda: runners(at_102) == 0, "the session has ended")
    assert said(at_102).startswith("interrupted at ")
    heal(at_102)


def test_the_walk_of_a_script_is_running_too(
    at_102: Database, months: list[datetime], tmp_path: Path
) -> None:
    file = tmp_path / "upgrade.sql"
    file.write_text(script(at_102, "upgrade", "102:head"))
    with blocked_at(at_102, months[3]):
        psql = str(at_102.server.program("psql"))
        process = at_102.spawn(psql, *ALL_ALONE, "-f", str(file), at_102.url)
        pid = wait_until_walked(at_102, months[:3])
        found = seen(at_102)
        assert found is not None
        assert (found.state, found.pids) == ("running", [pid])
        assert found.percent == planned(at_102)[2]
        process.kill()
        process.wait()
    heal(at_102)


def test_a_tick_or_another_session_that_holds_4246_does_not_make_a_backfill_run(
    at_102: Database, months: list[datetime]
) -> None:
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now(), 20)")
    for application in ("the server", "usage-rollup"):
        with at_102.connect(application_name=application) as holder:
            holder.execute("SELECT rollup_task_usage_hourly(), pg_advisory_xact_lock(4246)")
            found = seen(at_102)
            assert found is not None
            assert (found.state, found.pids) == ("interrupted", [])
    heal(at_102)


def test_backfill_of_another_database_is_not_one_here(
    at_102: Database, months: list[datetime], make_database: MakeDatabase
) -> None:
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now(), 20)")
    there = make_database("102")
    elsewhere = there.connect(autocommit=True, application_name="usage-rollup")
    elsewhere.execute("SELECT pg_try_advisory_lock(4246)")
    found = seen(there)
    assert found is not None
    assert (found.state, found.pids) == ("running", [elsewhere.info.backend_pid])
    found = seen(at_102)
    assert found is not None
    assert (found.state, found.pids) == ("interrupted", [])
    heal(at_102)


def test_a_walk_is_whole_when_its_last_slice_is_also_one_without_rows(at_102: Database) -> None:
    at_102.execute(
        "INSERT INTO task_usage_hourly_backfill (from_hour, to_hour, usage_rows, horizon_at, walked_at)"
        " VALUES ('2025-01-01', '2025-02-01', 10, now(), now()), ('2025-02-01', '2025-03-01', 0, now(), NULL)"
    )
    found = seen(at_102)
    assert found is not None
    assert found.percent == 99
    at_102.execute("UPDATE task_usage_hourly_backfill SET walked_at = now()")
    found = seen(at_102)
    assert found is not None
    assert found.percent == 100


def test_no_plan_and_nobody_at_it_is_no_backfill(at_102: Database) -> None:
    assert seen(at_102) is None
    assert said(at_102) == "none unfinished"
