"""`usage-rollup backfill`: catching up on a live system, in part or in whole, stopped and gone on with."""

from __future__ import annotations

import json
import re
import signal
from datetime import UTC, datetime

import psycopg
import pytest

from tests.support.database import ROOT, Database
from tests.support.deadline import DEADLINE_S
from tests.support.product import event, small_world, wait_until
from tests.support.rollup import row_versions
from tests.support.terminal import displayed, on_a_terminal
from tests.support.walks import (
    advisory_locks,
    blocked_at,
    committed_months,
    history_months,
    runners,
    slices,
    wait_until_blocked,
    write_history,
)

pytestmark = pytest.mark.process

LOCK = 4246


@pytest.fixture
def at_102(v034: Database) -> Database:
    """Return a database at 102 whose history of six months is older than the triggers: nothing is queued."""
    write_history(v034)
    v034.upgrade("102")
    return v034


@pytest.fixture
def months(at_102: Database) -> list[datetime]:
    """Return the months of its history in UTC, of which nothing is rolled up."""
    return history_months(at_102)


def heal(database: Database) -> None:
    result = database.usage_rollup("backfill")
    assert result.returncode == 0, result.stderr


SAY_SOMETHING_BESIDE_A_BAR = """
import logging
from usage_rollup import logs
from usage_rollup.hourly.progress import slice_progress
logs.configure()
with slice_progress(10):
    logging.getLogger("usage_rollup").info("said meanwhile")
"""


def test_what_is_logged_while_a_bar_moves_is_a_line_above_it(empty: Database) -> None:
    screen = on_a_terminal(empty, "-c", SAY_SOMETHING_BESIDE_A_BAR, program="python", colours=True)
    said, bar = displayed(screen, 80)
    assert said == "said meanwhile"
    assert re.fullmatch(r"backfill +━+ 0/10 rows, - rows/s", bar)


def test_dry_run_shows_every_month_and_writes_nothing(at_102: Database, months: list[datetime]) -> None:
    before = row_versions(at_102)
    shown = at_102.usage_rollup("backfill", "--dry-run")
    assert shown.returncode == 0
    for month in months:
        assert f"{month:%Y-%m}" in shown.stdout
    assert f"to walk: 400 usage rows, in slices: {len(months)}" in shown.stdout
    planned = json.loads(at_102.usage_rollup("backfill", "--dry-run", "--json").stdout)["slices"]
    assert sum(one["usage_rows"] for one in planned) == 400
    assert row_versions(at_102) == before


def test_dry_run_shows_what_a_partial_backfill_would_walk(at_102: Database, months: list[datetime]) -> None:
    arguments = ("backfill", "--months-back", "1", "--force-partial")
    planned = json.loads(at_102.usage_rollup(*arguments, "--dry-run", "--json").stdout)["slices"]
    done = json.loads(at_102.usage_rollup(*arguments, "--json").stdout)
    assert len(planned) == done["slices"] < len(months)
    assert sum(one["usage_rows"] for one in planned) == done["usage_rows"]
    assert at_102.usage_rollup("backfill").returncode == 0


def test_dry_run_after_a_backfill_finds_nothing_to_walk(at_102: Database, months: list[datetime]) -> None:
    heal(at_102)
    assert "to walk: 0 usage rows, in slices: 0" in at_102.usage_rollup("backfill", "--dry-run").stdout


def test_backfill_fills_everything_beside_a_live_server_and_says_so(
    at_102: Database, months: list[datetime]
) -> None:
    writer = at_102.connect()
    event(writer, small_world(writer))
    result = at_102.usage_rollup("backfill", "--json")
    writer.commit()
    assert result.returncode == 0
    assert json.loads(result.stdout)["usage_rows"] == 400
    assert committed_months(at_102) == months


def test_part_of_a_history_is_refused_unless_it_is_acknowledged(
    at_102: Database, months: list[datetime]
) -> None:
    before = row_versions(at_102)
    result = at_102.usage_rollup("backfill", "--months-back", "2")
    assert result.returncode == 1
    assert "it would stay without buckets" in result.stderr
    assert "--force-partial" in result.stderr
    assert row_versions(at_102) == before


def test_part_that_is_left_out_is_written_down_until_it_is_filled(
    at_102: Database, months: list[datetime]
) -> None:
    result = at_102.usage_rollup("backfill", "--months-back", "2", "--force-partial")
    assert result.returncode == 0, result.stderr
    assert "left out on purpose" in result.stderr
    since = at_102.value("SELECT date_trunc('month', now(), 'UTC') - interval '1 month'")
    assert committed_months(at_102) == [month for month in months if month >= since]
    assert at_102.execute("SELECT before_hour FROM task_usage_hourly_left_out") == [(since,)]
    assert at_102.value("SELECT watermark_at > now() - interval '1 hour' FROM task_usage_hourly_rollup_state")

    # The trap: the lag alone would let 103 drop the legacy rollups over the hole. The upgrade fills it.
    printed = at_102.upgrade()
    assert "rolling up what a partial backfill left out" in printed
    assert committed_months(at_102) == months
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_left_out") == 0


PARTIAL = ("backfill", "--months-back", "2", "--force-partial")


def test_what_was_left_out_is_foretold_and_walked_as_one_range_before_the_proof(
    at_102: Database, months: list[datetime]
) -> None:
    assert at_102.usage_rollup(*PARTIAL).returncode == 0
    hours = at_102.value(
        "SELECT count(DISTINCT date_trunc('hour', created_at)) FROM task_usage"
        " WHERE created_at < (SELECT before_hour FROM task_usage_hourly_left_out)"
    )
    before = f"{months[-2]:%Y-%m-%d}"
    dry = at_102.usage_rollup("backfill", "--dry-run").stdout
    assert f"among it what a partial backfill left out: usage before {before}" in dry
    planned = json.loads(at_102.usage_rollup("backfill", "--dry-run", "--json").stdout)["slices"]
    rows = sum(one["usage_rows"] for one in planned)
    preflight = at_102.usage_rollup("preflight").stdout
    assert f"to roll up: {rows} usage rows in {len(months) - 2} months" in preflight
    assert f"left out: usage before {before}" in preflight
    assert "guard of 103: would refuse" in preflight

    printed = at_102.upgrade()
    # Isolated hours would be as many slices.
    assert slices(printed) == len(planned) < hours
    assert "recomputing" not in printed
    assert f"rolled up: {rows} usage rows" in printed


def test_what_was_left_out_is_walked_once_when_its_walk_is_killed(
    at_102: Database, months: list[datetime]
) -> None:
    assert at_102.usage_rollup(*PARTIAL).returncode == 0
    with blocked_at(at_102, months[2]):
        process = at_102.spawn("usage-rollup", "backfill", "--jobs", "1")
        wait_until_blocked(at_102)
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    wait_until(lambda: runners(at_102) == 0, "the session has ended")
    planned = json.loads(at_102.usage_rollup("backfill", "--dry-run", "--json").stdout)["slices"]
    result = at_102.usage_rollup("backfill")
    assert slices(result.stderr) == len(planned) == len(months) - 2 - 2
    assert committed_months(at_102) == months


def test_dry_run_of_a_part_says_that_it_would_be_refused(at_102: Database, months: list[datetime]) -> None:
    shown = at_102.usage_rollup("backfill", "--months-back", "2", "--dry-run")
    assert shown.returncode == 0
    assert f"refused: usage older than {months[-2]:%Y-%m-%d} is not rolled up" in shown.stdout
    assert "add --force-partial" in shown.stdout
    assert "refused" not in at_102.usage_rollup(*PARTIAL, "--dry-run").stdout


def test_dry_run_shows_what_a_killed_backfill_has_left(at_102: Database, months: list[datetime]) -> None:
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now(), 20)")
    at_102.execute("SELECT rollup_task_usage_hourly_slice()")
    left, rows = at_102.execute(
        "SELECT count(*), sum(usage_rows)::int FROM task_usage_hourly_backfill WHERE walked_at IS NULL"
    )[0]
    assert rows < 400
    dry = at_102.usage_rollup("backfill", "--dry-run").stdout
    assert f"to walk: {rows} usage rows, in slices: {left}\n" in dry
    assert f"backfill: interrupted at {(400 - rows) // 4} %: {400 - rows} of 400 usage rows" in dry
    preflight = at_102.usage_rollup("preflight").stdout
    assert f"to roll up: {rows} usage rows in " in preflight
    assert f"backfill: interrupted at {(400 - rows) // 4} %: {400 - rows} of 400 usage rows" in preflight
    assert slices(at_102.usage_rollup("backfill").stderr) == left


def test_preflight_says_that_a_backfill_is_running(at_102: Database, months: list[datetime]) -> None:
    with blocked_at(at_102, months[2]):
        process = at_102.spawn("usage-rollup", "backfill", "--jobs", "1")
        pid = wait_until_blocked(at_102)
        assert re.search(rf"backfill: running, \d+ %, pid {pid}: ", at_102.usage_rollup("preflight").stdout)
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    wait_until(lambda: runners(at_102) == 0, "the session has ended")
    heal(at_102)


def test_lag_of_less_than_an_hour_is_left_to_a_tick_and_so_said(
    at_102: Database, months: list[datetime]
) -> None:
    heal(at_102)
    assert "which a backfill leaves to" not in at_102.usage_rollup("backfill").stdout
    at_102.execute(
        "UPDATE task_usage_hourly_rollup_state"
        " SET watermark_at = task_usage_hourly_latest_event() - interval '40 minutes'"
    )
    said = "nothing: the watermark trails the newest usage by 40 min, which a backfill leaves to"
    said += " `usage-rollup tick`"
    dry = at_102.usage_rollup("backfill", "--dry-run").stdout
    assert dry == f"to walk: 0 usage rows, in slices: 0\n{said}\n"
    done = at_102.usage_rollup("backfill")
    assert done.returncode == 0
    assert f"rolled up: {said}\n" in done.stdout


def test_a_repair_ends_with_rows_time_and_what_is_next(at_102: Database, months: list[datetime]) -> None:
    heal(at_102)
    at_102.execute("DELETE FROM task_usage_hourly WHERE bucket_hour < %s", months[1])
    done = at_102.usage_rollup("backfill", "--repair")
    hours, recomputed, time, following = done.stdout.splitlines()
    assert hours.startswith("hours repaired: ")
    assert re.fullmatch(r"recomputed: \d+ usage rows into \d+ buckets, in \d+ slices?", recomputed)
    assert re.search(r"^time: .*rolling up: ", time)
    assert following == "next: `usage-rollup status` shows where it stands"
    _, *rest = at_102.usage_rollup("backfill", "--repair").stdout.splitlines()
    assert [line.partition(":")[0] for line in rest] == ["time", "next"]


def test_guard_refuses_over_a_part_that_is_left_out(at_102: Database, months: list[datetime]) -> None:
    at_102.usage_rollup("backfill", "--months-back", "1", "--force-partial")
    # As in a session without the hook, and so without its proof.
    script = (ROOT / "alembic" / "versions" / "103_drop_legacy_daily_rollups.up.sql").read_text()
    guard = script.split("$guard$;", 1)[0] + "$guard$;"
    with at_102.connect() as connection, pytest.raises(psycopg.Error, match="does not match raw usage"):
        connection.execute(guard)
    heal(at_102)


def test_months_that_leave_nothing_behind_need_no_acknowledgement(
    at_102: Database, months: list[datetime]
) -> None:
    result = at_102.usage_rollup("backfill", "--months-back", "12")
    assert result.returncode == 0, result.stderr
    assert committed_months(at_102) == months
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_left_out") == 0


def test_lock_is_free_for_others_while_it_rests(at_102: Database, months: list[datetime]) -> None:
    process = at_102.spawn("usage-rollup", "backfill", "--sleep-between-slices", "60s")
    wait_until(lambda: committed_months(at_102), "the first slice is committed")
    with at_102.connect(autocommit=True) as other:
        wait_until(
            lambda: other.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone() == (True,),
            "4246 is free between two slices",
        )
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "finished slices stay; run the same command to go on" in printed
    heal(at_102)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_cancels_the_statement_keeps_slices_and_the_same_command_goes_on(
    at_102: Database, months: list[datetime], signum: int, status: int
) -> None:
    with blocked_at(at_102, months[2]):
        process = at_102.spawn("usage-rollup", "backfill")
        wait_until_blocked(at_102)
        process.send_signal(signum)
        printed, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == status
        wait_until(lambda: runners(at_102) == 0, "the session has ended")
        assert advisory_locks(at_102) == []
    assert "stopped: finished slices stay" in printed
    assert "Traceback" not in printed
    assert committed_months(at_102) == months[:2]
    result = at_102.usage_rollup("backfill")
    assert result.returncode == 0
    assert slices(result.stderr) == len(months) - 2


def test_busy_lock_is_named_and_left_to_try_again_later(at_102: Database, months: list[datetime]) -> None:
    holder = at_102.connect(autocommit=True, application_name="somebody else")
    holder.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    result = at_102.usage_rollup("backfill", "--lock-timeout", "0", "--json")
    assert result.returncode == 75
    assert "somebody else" in result.stderr
    assert json.loads(result.stdout)["status"] == 75
    holder.close()
    heal(at_102)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--jobs", "0"),
        ("--jobs", "two"),
        ("--months-back", "0"),
        ("--force-partial",),
        ("--repair", "--dry-run"),
        ("--repair", "--months-back", "3"),
        ("--lock-timeout", "soon"),
        ("--sleep-between-slices", "-1s"),
        ("--sleep-between-slices", "1s", "--jobs", "2"),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
def test_bad_usage_exits_2_with_a_sentence_and_changes_nothing(
    at_102: Database, months: list[datetime], arguments: tuple[str, ...]
) -> None:
    before = row_versions(at_102)["task_usage_hourly"]
    result = at_102.usage_rollup("backfill", *arguments)
    assert result.returncode == 2, result.stderr
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert row_versions(at_102)["task_usage_hourly"] == before


def test_backfill_with_jobs_fills_everything(at_102: Database, months: list[datetime]) -> None:
    assert at_102.usage_rollup("backfill", "--jobs", "3").returncode == 0
    assert committed_months(at_102) == months


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--repair",)], ids=["plain", "dry-run", "repair"])
def test_backfill_before_101_names_the_places_own_next_step(
    v034: Database, arguments: tuple[str, ...]
) -> None:
    result = v034.usage_rollup("backfill", *arguments)
    assert result.returncode == 1
    assert "there is no hourly rollup in this database: v0.3.4, as the product's own" in result.stderr
    assert "HINT: `usage-rollup preflight`, then `usage-rollup upgrade`; a v0.3.4 server may" in result.stderr


def test_watermark_of_1970_past_104_is_caught_up(head: Database) -> None:
    with head.connect() as connection:
        world = small_world(connection)
        event(connection, world, datetime(2025, 1, 10, 10, 20, tzinfo=UTC))
        event(connection, world, datetime(2025, 5, 10, 10, 20, tzinfo=UTC))
        connection.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    heal(head)
    assert len(committed_months(head)) == 2
    assert head.value("SELECT task_usage_hourly_rollup_lag_seconds()") == 0


@pytest.mark.parametrize(
    ("variable", "value", "words", "shown"),
    [
        ("JOBS", "0", "auto or 1..99", "auto|1..99"),
        ("LOCK_TIMEOUT", "inf", "a duration", "30s"),
        ("KEEP_LEGACY", "maybe", "true or false", "true|false"),
        ("VERSION_TABLE", "a b", "a name of at most 51 small letters, digits and _", "usage_rollup_version"),
    ],
)
def test_a_wrong_value_is_not_called_an_unknown_option(
    empty: Database, variable: str, value: str, words: str, shown: str
) -> None:
    refused = empty.usage_rollup("status", **{variable: value})
    assert refused.returncode == 2
    assert refused.stderr == (
        f"usage-rollup: {variable} is not {words}: {value!r}\nHINT: there is: {variable}={shown}\n"
    )


def test_a_wrong_value_is_shown_as_it_was_typed(at_102: Database) -> None:
    typed = at_102.usage_rollup("backfill", "--sleep-between-slices", "long")
    assert typed.returncode == 2
    assert (
        "--sleep-between-slices is not a duration: 'long'\nHINT: there is: --sleep-between-slices 2s\n"
        in typed.stderr
    )
    inherited = at_102.usage_rollup("backfill", SLEEP_BETWEEN_SLICES="long")
    assert "SLEEP_BETWEEN_SLICES is not a duration: 'long'" in inherited.stderr
