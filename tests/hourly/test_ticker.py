"""Who ticks: a schedule counts, a run alone does not; said by status, schedule and an upgrade's last line."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.pg_cron import PG_CRON
from tests.support.rollup import TICK
from tests.support.shapes import make_products
from usage_rollup.contract import SCHEDULER_STEM
from usage_rollup.hourly.ticker import Ticker, find

BY_HAND = "a tick has run lately, but this database shows no schedule"
NOBODY = "dashboards will not move until something ticks"
WHICH = (
    "a server of v0.3.17 or later ticks by itself; for one of v0.3.5 to v0.3.16 run `usage-rollup schedule`"
)


def seen(database: Database) -> Ticker | None:
    with database.migration_connection() as connection:
        return find(connection)


def ticks(database: Database) -> str:
    """Return what status says of ticks, in one line."""
    screen = database.usage_rollup("status").stdout
    (line,) = [row for row in screen.splitlines() if row.startswith("ticks ")]
    return line.removeprefix("ticks").strip()


def idle(database: Database, interval: str) -> None:
    database.execute(
        f"UPDATE task_usage_hourly_rollup_state SET last_run_finished_at = now() - interval '{interval}'"
    )


def last_line(output: str) -> str:
    return output.rstrip("\n").splitlines()[-1]


def test_before_102_there_is_nothing_to_tick(v034: Database) -> None:
    assert seen(v034) is None


def test_until_103_no_server_reads_the_rollup_and_nobody_is_missed(v034: Database) -> None:
    printed = v034.upgrade("102")
    assert "tick" not in last_line(printed)
    assert NOBODY not in printed
    assert ticks(v034).startswith("not needed before 103, no server reads the hourly rollup yet")
    assert v034.usage_rollup("schedule").stdout.count("Until 103 no server reads the hourly rollup") == 1


@pytest.mark.parametrize("gone", ["task_usage_daily", "task_usage_dashboard_daily"])
def test_while_one_daily_rollup_is_left_nobody_is_missed(at_102: Database, gone: str) -> None:
    at_102.execute(f"DROP TABLE {gone}")
    found = seen(at_102)
    assert found is not None
    assert not found.needed


@pytest.mark.parametrize("typed", [["usage-rollup", "tick"], None], ids=["command", "sql"])
def test_a_tick_typed_by_hand_is_no_ticker(at_102: Database, typed: list[str] | None) -> None:
    if typed:
        assert at_102.run(*typed).returncode == 0
    else:
        at_102.execute(TICK)
    printed = at_102.upgrade()
    assert BY_HAND in last_line(printed)
    assert WHICH in last_line(printed)
    found = seen(at_102)
    assert found is not None
    assert (found.by, found.ran_lately) == (None, True)
    assert "no schedule is to be seen here" in ticks(at_102)
    assert WHICH in ticks(at_102)
    idle(at_102, "16 minutes")
    assert NOBODY in last_line(at_102.upgrade())
    # An upgrade lies between, and a loaded machine may take minutes for it.
    said = re.sub(r"(1[6-9]|20) min( [0-9]+ s)? ago", "16 min ago", ticks(at_102))
    assert said == f"nothing ticks here, the last run finished 16 min ago: {WHICH}"


@pytest.mark.parametrize("point", ["v0.3.17", "ours at v0.3.17", "v0.4.32"])
def test_the_products_own_server_ticks_since_its_scheduler_is_there(
    make_database: MakeDatabase, point: str
) -> None:
    database = make_database(point)
    assert SCHEDULER_STEM in database.ledger
    found = seen(database)
    assert found is not None
    assert (found.by, found.needed) == ("server", True)
    assert ticks(database).startswith("the product's own server (v0.3.17 or later), while it runs; ")
    result = database.usage_rollup("schedule")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "Nothing has to be scheduled: the product's own server ticks, v0.3.17 or later.\n"
    printed = database.upgrade()
    assert "ticked by the product's own server" in last_line(printed)
    assert NOBODY not in printed


def test_the_servers_before_its_scheduler_do_not(make_database: MakeDatabase) -> None:
    database = make_products(make_database("head"), later=False)
    assert SCHEDULER_STEM not in database.ledger
    assert f"{NOBODY}: {WHICH}" in last_line(database.upgrade())
    result = database.usage_rollup("schedule")
    assert result.returncode == 1
    assert "A server of v0.3.17 or later ticks by itself" in result.stdout


def test_a_job_of_pg_cron_counts_while_it_is_active_and_for_this_database(head: Database) -> None:
    head.execute(PG_CRON)
    head.execute(f"SELECT cron.schedule('rollup_task_usage_hourly', '*/5 * * * *', '{TICK}')")
    assert ticks(head) == ("pg_cron job rollup_task_usage_hourly (*/5 * * * *); no run has finished")
    assert "ticked by the pg_cron job rollup_task_usage_hourly" in last_line(head.upgrade())
    # Of several the contract's is named, however old the others are.
    head.execute(f"SELECT cron.schedule('mine', '*/7 * * * *', '{TICK}')")
    head.execute("DELETE FROM cron.job WHERE jobname = 'rollup_task_usage_hourly'")
    head.execute(f"SELECT cron.schedule('rollup_task_usage_hourly', '*/5 * * * *', '{TICK}')")
    assert head.value("SELECT jobname FROM cron.job ORDER BY jobid LIMIT 1") == "mine"
    assert ticks(head).startswith("pg_cron job rollup_task_usage_hourly (*/5 * * * *);")
    head.execute("DELETE FROM cron.job WHERE jobname = 'mine'")
    for change in ("active = false", "active = true, database = 'another'"):
        head.execute(f"UPDATE cron.job SET {change}")
        found = seen(head)
        assert found is not None
        assert found.by is None
        assert NOBODY in last_line(head.upgrade())


def test_a_schedule_whose_runs_stay_away_needs_somebody(head: Database) -> None:
    head.execute(PG_CRON)
    assert head.usage_rollup("schedule").returncode == 0
    head.execute(TICK)
    assert head.usage_rollup("status", "--exit-code").returncode == 0
    idle(head, "3 hours")
    probe = head.usage_rollup("status", "--exit-code")
    assert probe.returncode == 3
    assert "pg_cron job rollup_task_usage_hourly" in probe.stdout
    assert re.search("the last run finished 3 h( [0-9] min)? ago", probe.stdout)


def test_another_applications_ledger_of_that_name_is_not_asked(head: Database) -> None:
    head.execute("DROP TABLE schema_migrations; CREATE TABLE schema_migrations (version bigint)")
    found = seen(head)
    assert found is not None
    assert found.by is None


def test_who_ticks_goes_by_one_name_in_json(head: Database) -> None:
    head.execute(TICK)
    reports = [
        json.loads(head.usage_rollup(*command, "--json").stdout)["ticks"]
        for command in (["status"], ["schedule"], ["unschedule"])
    ]
    assert [(report["by"], report["needed"]) for report in reports] == [(None, True)] * 3
    assert {report["last_run_at"] for report in reports} == {reports[0]["last_run_at"]}
    assert reports[0]["last_run_at"].endswith("Z")
