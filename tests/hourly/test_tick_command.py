"""`usage-rollup tick`: one tick that says, and writes down, how it went."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from psycopg import errors

from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.horizon import begin, stuck_writer
from tests.support.processes import finish
from tests.support.product import event, small_world, wait_until
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import TICK, WINDOW
from tests.support.shapes import make_products
from tests.support.walks import advisory_locks, runners

LAST_ERROR = "SELECT last_error FROM task_usage_hourly_rollup_state"
BLOCKED = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'usage-rollup' AND wait_event_type = 'Lock'"
)


def state(db: Database) -> tuple[Any, ...]:
    return db.execute("SELECT * FROM task_usage_hourly_rollup_state")[0]


def set_watermark(db: Database, expression: str) -> None:
    db.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = {expression}")


def ticked(db: Database, **extra: str) -> dict[str, Any]:
    """Run a tick that must succeed; return what it reports."""
    result = db.usage_rollup("tick", "--json", **extra)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_tick_commits_and_reports_rows_and_the_watermark_before_and_after(at_102: Database) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    set_watermark(at_102, "'2025-02-28 12:00+00'")
    report = ticked(at_102)
    assert report["rows_changed"] == 1
    assert report["watermark_before"] == "2025-02-28T12:00:00Z"
    assert report["watermark_after"] == "2025-03-01T12:00:00Z"
    assert report["lag_seconds"] == 0
    assert at_102.value("SELECT watermark_at = '2025-03-01 12:00+00' FROM task_usage_hourly_rollup_state")
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 1


def test_tick_that_leaves_much_to_do_measures_the_lag_of_the_data_and_names_the_faster_way(
    at_102: Database,
) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:00+00")
    event(at_102.url, world, "2025-03-11 10:00+00")
    set_watermark(at_102, "'epoch'")
    result = at_102.usage_rollup("tick")
    assert result.returncode == 0, result.stderr
    assert "data lag      9 d behind the newest usage" in result.stdout
    assert "`usage-rollup backfill` catches up" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(("watermark", "stuck"), [("now() - interval '2 hours'", True), ("'epoch'", False)])
def test_tick_names_who_holds_the_watermark_back_and_what_ends_it(
    at_102: Database, watermark: str, stuck: bool
) -> None:
    event(at_102.url, small_world(at_102.url))
    set_watermark(at_102, watermark)
    writer = stuck_writer(at_102, application_name="the importer")
    pid = writer.info.backend_pid
    report = ticked(at_102)
    assert f"pid {pid} (" in report["held_back"]["who"]
    assert "the importer, idle in transaction since " in report["held_back"]["who"]
    assert f"SELECT pg_terminate_backend({pid})" in report["held_back"]["hint"]
    set_watermark(at_102, watermark)
    screen = at_102.usage_rollup("tick").stdout
    assert f"held back     by pid {pid} (" in screen
    # What cannot help is not advised: a backfill ends at the same horizon.
    assert ("`usage-rollup backfill` catches up" not in screen) == report["held_back"]["stuck"] == stuck
    # Nor is it cleared away after the tick has written it down.
    assert f"held back by pid {pid} (" in at_102.value(LAST_ERROR)
    writer.rollback()
    at_102.execute(WINDOW)
    set_watermark(at_102, "now()")
    assert ticked(at_102)["held_back"] is None
    assert at_102.value(LAST_ERROR) is None


def test_hidden_transaction_is_named_with_the_right_that_would_show_it(
    at_102: Database, make_role: MakeRole
) -> None:
    owner = make_role("owner")
    give_everything_to(at_102, owner)
    set_watermark(at_102, "now() - interval '2 hours'")
    writer, _ = begin(at_102, "DELETE FROM task_usage WHERE false")
    report = ticked(at_102, DATABASE_URL=at_102.url_of(owner))
    assert f"pid {writer.info.backend_pid} (" in report["held_back"]["who"]
    assert f"GRANT pg_read_all_stats TO {owner}" in report["held_back"]["hint"]
    assert report["held_back"]["stuck"]
    writer.rollback()


def test_tick_that_cannot_leave_1970_says_so_and_how_old_the_oldest_usage_is(
    at_102: Database, make_role: MakeRole
) -> None:
    event(at_102.url, small_world(at_102.url), at_102.value("SELECT (now() - interval '3 days')::text"))
    owner = make_role("owner")
    give_everything_to(at_102, owner)
    set_watermark(at_102, "'epoch'")
    writer, _ = begin(at_102, "DELETE FROM task_usage WHERE false")
    url = at_102.url_of(owner)
    said = "all usage there is, the watermark has never moved and the oldest is 3 d old"
    assert f"data lag      {said}\n" in at_102.usage_rollup("tick", DATABASE_URL=url).stdout
    report = ticked(at_102, DATABASE_URL=url)
    assert report["watermark_after"] == "1970-01-01T00:00:00Z"
    assert 3 * 86_400 <= report["lag_seconds"] < 4 * 86_400
    writer.rollback()


def test_tick_measures_a_lag_for_dates_beyond_every_calendar(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "-infinity")
    event(at_102.url, world, "infinity")
    set_watermark(at_102, "clock_timestamp() - interval '1 hour'")
    assert 0 <= ticked(at_102)["lag_seconds"] < 3600


def test_tick_of_another_session_is_named_and_nothing_is_written(at_102: Database) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    before = state(at_102)
    holder = at_102.connect(autocommit=True, application_name="the other one")
    holder.execute("SELECT pg_advisory_lock(4246)")
    # By itself the function answers 0, as it does when there is nothing to do.
    assert at_102.value(TICK) == 0
    result = at_102.usage_rollup("tick", "--json")
    assert result.returncode == 75
    assert f"pid {holder.info.backend_pid} (" in result.stderr
    assert "the other one" in result.stderr
    assert json.loads(result.stdout)["status"] == 75
    assert state(at_102) == before
    holder.execute("SELECT pg_advisory_unlock(4246)")
    assert ticked(at_102)["rows_changed"] == 1


def test_error_is_kept_although_the_tick_is_rolled_back_and_a_success_clears_it(at_102: Database) -> None:
    set_watermark(at_102, "clock_timestamp() + interval '1 day'")
    # Written by the tick itself it would be gone with the tick.
    with pytest.raises(errors.InvalidParameterValue):
        at_102.execute(TICK)
    assert at_102.value(LAST_ERROR) is None
    result = at_102.usage_rollup("tick")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for text in (result.stderr, at_102.value(LAST_ERROR)):
        assert "the watermark of the hourly rollup lies in the future" in text
    assert at_102.value(
        "SELECT last_run_started_at <= last_run_finished_at"
        " AND last_run_finished_at > clock_timestamp() - interval '1 minute'"
        " FROM task_usage_hourly_rollup_state"
    )
    assert at_102.value("SELECT watermark_at > clock_timestamp() FROM task_usage_hourly_rollup_state")
    set_watermark(at_102, "'epoch'")
    ticked(at_102)
    assert at_102.value(LAST_ERROR) is None


def test_error_is_kept_when_the_state_row_is_missing(at_102: Database) -> None:
    at_102.execute("ALTER TABLE task_usage RENAME TO elsewhere")
    at_102.execute("DELETE FROM task_usage_hourly_rollup_state")
    assert at_102.usage_rollup("tick").returncode == 1
    assert "task_usage" in at_102.value(LAST_ERROR)
    at_102.execute("ALTER TABLE elsewhere RENAME TO task_usage")


def test_tick_whose_session_is_lost_ticks_in_another(at_102: Database) -> None:
    blocker = at_102.connect()
    blocker.execute("SELECT FROM task_usage_hourly_rollup_state FOR UPDATE")
    process = at_102.spawn("usage-rollup", "tick")
    wait_until(lambda: at_102.execute(BLOCKED), "the tick waits")
    assert at_102.value("SELECT pg_terminate_backend(%s, 10000)", at_102.value(BLOCKED))
    wait_until(lambda: at_102.execute(BLOCKED), "a new session waits")
    blocker.rollback()
    assert "the session was lost: terminating connection" in finish(process)
    assert at_102.value(LAST_ERROR) is None


def test_error_does_not_hide_a_success_that_came_later(at_102: Database) -> None:
    other = at_102.connect()
    other.execute("SELECT FROM task_usage_hourly_rollup_state FOR UPDATE")
    process = at_102.spawn("usage-rollup", "tick")
    wait_until(lambda: at_102.execute(BLOCKED), "the tick waits")
    at_102.execute(f"SELECT pg_cancel_backend(pid) FROM ({BLOCKED}) AS blocked")
    wait_until(
        lambda: at_102.value(
            f"{BLOCKED.replace('SELECT pid', 'SELECT count(*)')} AND query LIKE '%last_error%'"
        ),
        "the error waits to be written",
    )
    assert advisory_locks(at_102) == []
    other.execute(
        "UPDATE task_usage_hourly_rollup_state"
        " SET last_run_finished_at = clock_timestamp(), last_run_rows = 7"
    )
    other.commit()
    output = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 1, output
    assert "canceling statement due to user request" in output
    assert at_102.execute("SELECT last_error, last_run_rows FROM task_usage_hourly_rollup_state") == [
        (None, 7)
    ]


@pytest.mark.parametrize("later", [False, True])
def test_tick_of_the_product_is_run_by_its_name(head: Database, later: bool) -> None:
    world = small_world(head.url)
    make_products(head, later=later)
    event(head.url, world, "2025-03-01 10:15+00")
    set_watermark(head, "'2025-02-28 12:00+00'")
    head.execute("UPDATE task_usage_hourly_rollup_state SET last_error = 'yesterday'")
    report = ticked(head)
    assert report["rows_changed"] == 1
    assert report["watermark_before"] == "2025-02-28T12:00:00Z"
    assert report["watermark_after"] > report["watermark_before"]
    # Its own function says how long ago the last run was.
    assert report["lag_seconds"] == 0
    assert head.value("SELECT task_usage_hourly_rollup_lag_seconds()") > 0
    assert head.value(LAST_ERROR) is None
    assert head.value("SELECT sum(event_count) FROM task_usage_hourly") == 1
    assert advisory_locks(head) == []


def test_role_that_may_make_no_temporary_objects_ticks_all_the_same(
    head: Database, make_role: MakeRole
) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    make_products(head, later=False)
    set_watermark(head, "'2025-02-28 12:00+00'")
    owner = make_role("owner")
    give_everything_to(head, owner)
    head.execute(f"REVOKE TEMPORARY ON DATABASE {head.name} FROM PUBLIC")
    report = ticked(head, DATABASE_URL=head.url_of(owner))
    assert (report["rows_changed"], report["lag_seconds"]) == (1, None)
    assert head.value("SELECT sum(event_count) FROM task_usage_hourly") == 1


def test_before_102_there_is_nothing_to_tick_and_the_next_command_is_named(v034: Database) -> None:
    before = v034.catalog()
    result = v034.usage_rollup("tick")
    assert result.returncode == 1
    assert "HINT: run `alembic upgrade 102` first" in result.stderr
    assert v034.catalog() == before


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_cancels_the_tick_in_the_server(at_102: Database, signum: signal.Signals, status: int) -> None:
    blocker = at_102.connect()
    blocker.execute("SELECT FROM task_usage_hourly_rollup_state FOR UPDATE")
    process = at_102.spawn("usage-rollup", "tick")
    wait_until(lambda: at_102.execute(BLOCKED), "the tick waits")
    assert advisory_locks(at_102) == [4246]
    process.send_signal(signum)
    output = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == status, output
    assert "Traceback" not in output
    # Gone although what it waited for is still there.
    wait_until(lambda: runners(at_102) == 0, "the session is gone")
    assert advisory_locks(at_102) == []
    assert at_102.value(LAST_ERROR) is None


def test_settings_of_the_database_do_not_reach_the_tick(at_102: Database) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    for setting in (
        "default_transaction_isolation = 'serializable'",
        "TimeZone = 'Australia/Lord_Howe'",
        "DateStyle = 'SQL, DMY'",
        "search_path = ''",
    ):
        at_102.execute(f"ALTER DATABASE {at_102.name} SET {setting}")
    with pytest.raises(errors.InvalidTransactionState):
        at_102.execute("SELECT public.rollup_task_usage_hourly()")
    report = ticked(at_102)
    assert report["rows_changed"] == 1
    assert report["watermark_after"].endswith("Z")
