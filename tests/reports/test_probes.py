"""`usage-rollup status` for probes and monitors: --max-lag, --exit-code, --format prometheus."""

from __future__ import annotations

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.database import NOWHERE, ROOT, Database, MakeDatabase
from tests.support.go_runner import taken_by_go_to
from tests.support.horizon import stuck_writer
from tests.support.processes import read_until
from tests.support.product import World, event, small_world
from tests.support.rollup import TICK, WINDOW, heal

BEHIND = """
UPDATE task_usage_hourly_rollup_state
SET watermark_at = (SELECT max(updated_at) FROM task_usage) - interval '2 hours'
"""


@pytest.fixture
def used(head: Database) -> tuple[Database, World]:
    """Return a database at head with usage, caught up and just ticked."""
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    head.execute(WINDOW)
    head.execute(TICK)
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
    return head, world


def probe(database: Database, *arguments: str) -> tuple[int, str]:
    """Ask; return the exit status and the one line."""
    result = database.usage_rollup("status", *arguments)
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    return result.returncode, result.stdout.rstrip("\n")


def metrics(database: Database) -> dict[str, float]:
    """Return samples by name and labels, of a file that a textfile collector takes."""
    result = database.usage_rollup("status", "--format", "prometheus")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("\n")
    assert result.stdout.count("# HELP ") == result.stdout.count("# TYPE ") > 10
    return {
        "".join([sample.name, *(f" {value}" for _, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(result.stdout)
        for sample in family.samples
    }


@pytest.mark.parametrize("asked", [("--max-lag", "30m"), ("--exit-code",)], ids=" ".join)
@pytest.mark.parametrize("named", [{}, {"DATABASE_STARTUP_TIMEOUT": ""}], ids=["unset", "empty"])
def test_a_probe_does_not_wait_for_minutes(
    empty: Database, asked: tuple[str, ...], named: dict[str, str]
) -> None:
    prober = empty.spawn("usage-rollup", "status", *asked, DATABASE_URL=NOWHERE, **named)
    assert "waiting up to 5 s" in read_until(prober, "waiting up to")
    prober.terminate()
    prober.communicate()


def test_a_rollup_that_is_up_to_date_is_0_and_one_line(used: tuple[Database, World]) -> None:
    database, _ = used
    assert probe(database, "--max-lag", "30m") == (0, "ok: data lag none")
    assert probe(database, "--exit-code") == (0, "ok: data lag none")


@pytest.mark.parametrize(("most", "status"), [("30m", 3), ("119m", 3), ("2h", 0), ("2h1s", 0), ("7201", 0)])
def test_a_lag_beyond_what_is_asked_for_is_3(used: tuple[Database, World], most: str, status: int) -> None:
    database, _ = used
    database.execute(BEHIND)
    found, line = probe(database, "--max-lag", most)
    assert found == status
    assert "2 h behind the newest usage" in line
    assert line.endswith("; catch up: usage-rollup backfill")


@pytest.mark.parametrize(
    ("lag_s", "asked", "said"),
    [
        (119, ["--max-lag", "90s"], "1 min 59 s behind the newest usage, more than 90s; a tick catches up"),
        (1, ["--max-lag", "0"], "1 s behind the newest usage, more than 0 s; a tick catches up"),
        (
            10_830,
            ["--max-lag", "3h"],
            "3 h 30 s behind the newest usage, more than 3h; catch up: usage-rollup",
        ),
        (3601, ["--exit-code"], "1 h 1 s behind the newest usage, more than 1 h; catch up: usage-rollup"),
    ],
)
def test_a_lag_is_said_so_that_it_is_more_than_what_was_asked_for(
    used: tuple[Database, World], lag_s: int, asked: list[str], said: str
) -> None:
    database, _ = used
    database.execute(
        "UPDATE task_usage_hourly_rollup_state"
        f" SET watermark_at = (SELECT max(updated_at) FROM task_usage) - interval '{lag_s} s'"
    )
    status, line = probe(database, *asked)
    assert status == 3
    assert line.startswith(f"data lag: {said}")


def test_where_nothing_was_ever_rolled_up_the_lag_is_the_age_of_the_oldest_usage(
    used: tuple[Database, World],
) -> None:
    database, world = used
    event(database.url, world, "2026-02-01 10:15+00")
    # Of no time, and of an hour that is in no rollup.
    event(database.url, world, "2025-03-02 10:15+00", "-infinity")
    event(database.url, world, "0044-03-15 10:15+00 BC", "2025-03-02 10:15+00")
    age = "SELECT extract(epoch FROM clock_timestamp() - timestamptz '2025-03-01 10:15+00')::float8"
    for change in (
        "UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'",
        "UPDATE task_usage_hourly_rollup_state SET watermark_at = '-infinity'",
        "DELETE FROM task_usage_hourly_rollup_state",
    ):
        database.execute(change)
        at_least = database.value(age)
        found = metrics(database)
        report = json.loads(database.usage_rollup("status", "--json").stdout)
        at_most = database.value(age)
        assert at_least <= found["usage_rollup_lag_seconds"] <= report["lag_seconds"] <= at_most
        # No 1970 in a graph of it.
        assert "usage_rollup_watermark_timestamp_seconds" not in found
        status, line = probe(database, "--max-lag", "30m")
        assert status == 3
        said = r"data lag: all usage there is, the watermark has never moved and the oldest is [1-9][0-9]* d "
        assert re.match(said, line)
        assert line.endswith("old, more than 30m; catch up: usage-rollup backfill")
    heal(database)


def test_where_there_is_no_usage_nothing_lags(head: Database) -> None:
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    assert metrics(head)["usage_rollup_lag_seconds"] == 0


def test_first_usage_of_a_quarter_of_an_hour_is_no_reason_for_an_alarm(head: Database) -> None:
    world = small_world(head.url)
    event(head.url, world, head.value("SELECT (now() - interval '15 minutes')::text"))
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    assert probe(head, "--max-lag", "1h")[0] == 0
    assert probe(head, "--max-lag", "10m")[0] == 3
    heal(head)


def test_a_watermark_in_the_future_leaves_no_lag_to_tell(used: tuple[Database, World]) -> None:
    database, _ = used
    for watermark in ("9000-01-01", "infinity"):
        database.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = '{watermark}'")
        assert "usage_rollup_lag_seconds" not in metrics(database)
        assert json.loads(database.usage_rollup("status", "--json").stdout)["lag_seconds"] is None
        assert "\ndata lag    not known: " in database.usage_rollup("status").stdout
    heal(database)


def test_of_several_reasons_the_gravest_is_said(used: tuple[Database, World]) -> None:
    database, _ = used
    # From the least on, each with all before it.
    for change, reason in (
        ("UPDATE task_usage_hourly_rollup_state SET last_run_finished_at = NULL", "ticks: nothing"),
        ("UPDATE task_usage_hourly_rollup_state SET last_error = 'no space left'", "the last run said: no"),
        (BEHIND, "data lag: 2 h behind"),
        ("ALTER TABLE task_usage DISABLE TRIGGER USER", "triggers of the hourly rollup are disabled"),
        ("UPDATE alembic_version SET version_num = 'abcdef'", "no upgrade can go on from here: "),
    ):
        database.execute(change)
        assert probe(database, "--exit-code")[1].startswith(reason)
    assert probe(database, "--exit-code")[1].endswith("(and 4 more reasons: usage-rollup status)")
    heal(database)


def test_what_catches_up_a_stuck_database_is_said_as_a_sentence(make_database: MakeDatabase) -> None:
    stuck = taken_by_go_to(make_database, "102")
    event(stuck.url, small_world(stuck.url), "2025-03-01 10:15+00")
    status, line = probe(stuck, "--max-lag", "1h")
    assert status == 3
    assert line.endswith(
        " old, more than 1h; catch up: stop the product's server, then `usage-rollup preflight`,"
        " then `usage-rollup upgrade`"
    )


@pytest.mark.parametrize("most", ["soon", "-1m", "30 m", "", "9000h"])
def test_what_is_no_duration_is_refused(head: Database, most: str) -> None:
    result = head.usage_rollup("status", f"--max-lag={most}")
    assert (result.returncode, result.stdout) == (2, "")
    assert "max-lag" in result.stderr


def test_a_database_without_a_rollup_says_so_and_what_is_next(v034: Database, empty: Database) -> None:
    for database, place in ((v034, "v0.3.4"), (empty, "empty")):
        for arguments in (["--max-lag", "30m"], ["--exit-code"]):
            status, line = probe(database, *arguments)
            assert status == 3
            assert line.startswith(f"there is no hourly rollup here: {place}")
            assert "`usage-rollup upgrade`" in line


def test_an_upgrade_that_stopped_half_way_needs_somebody(at_102: Database) -> None:
    status, line = probe(at_102, "--exit-code")
    assert status == 3
    assert line.startswith("the upgrade is not finished: migrated by this runner to 102_")
    assert probe(at_102, "--max-lag", "30m")[0] == 0


# Places from which no upgrade can go on, at revisions where the data does not lag.
CONTRADICTIONS = [
    ("102", "UPDATE alembic_version SET version_num = 'abcdef'", "alembic_version holds abcdef"),
    ("head", "INSERT INTO alembic_version VALUES ('102')", "alembic_version holds several rows: 104, 102"),
    ("head", "DELETE FROM schema_migrations WHERE version LIKE '103%'", "schema_migrations lacks 103_"),
]


@pytest.mark.parametrize(("point", "change", "reason"), CONTRADICTIONS)
def test_a_place_from_which_no_upgrade_can_go_on_is_3_with_the_words_of_status(
    make_database: MakeDatabase, point: str, change: str, reason: str
) -> None:
    database = make_database(point)
    database.execute(TICK)
    database.execute(change)
    place = json.loads(database.usage_rollup("status", "--json").stdout)["place"]
    assert place["shape"].startswith(reason)
    status, line = probe(database, "--exit-code")
    assert status == 3
    assert line.startswith(f"no upgrade can go on from here: {place['shape']}; {place['next_step']}")
    assert database.usage_rollup("preflight").returncode == 1


@pytest.mark.parametrize(("point", "change", "reason"), CONTRADICTIONS)
def test_no_step_is_counted_where_no_upgrade_can_go_on(
    make_database: MakeDatabase, point: str, change: str, reason: str
) -> None:
    database = make_database(point)
    assert metrics(database)["usage_rollup_upgrade_refused"] == 0
    database.execute(change)
    found = metrics(database)
    assert found["usage_rollup_upgrade_refused"] == 1, reason
    assert "usage_rollup_pending_steps" not in found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE task_usage_hourly_rollup_state SET last_error = 'no space left'", "no space left"),
        ("UPDATE task_usage_hourly_rollup_state SET watermark_at = '9000-01-01'", "lies in the future"),
        ("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'", "never moved"),
        ("UPDATE task_usage_hourly_rollup_state SET last_run_finished_at = NULL", "nothing ticks here"),
        ("ALTER TABLE task_usage DISABLE TRIGGER USER", "are disabled"),
    ],
)
def test_whatever_needs_somebody_is_3_with_the_reason(
    used: tuple[Database, World], change: str, reason: str
) -> None:
    database, _ = used
    database.execute(change)
    status, line = probe(database, "--exit-code")
    assert status == 3
    assert reason in line
    assert json.loads(database.usage_rollup("status", "--json").stdout)["problems"][0]
    heal(database)


def test_in_another_format_the_reason_goes_to_standard_error(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute(BEHIND)
    for form in (["--json"], ["--format", "prometheus"]):
        result = database.usage_rollup("status", *form, "--max-lag", "30m")
        assert result.returncode == 3
        assert result.stderr.count("\n") == 1
        assert "2 h behind" in result.stderr
        assert result.stdout
    assert json.loads(database.usage_rollup("status", "--json", "--exit-code").stdout)["coverage"] is None


def test_formats_that_contradict_each_other_are_refused(head: Database) -> None:
    result = head.usage_rollup("status", "--json", "--format", "prometheus")
    assert result.returncode == 2
    assert "contradict" in result.stderr


# Prometheus


def test_metrics_tell_what_the_screen_tells(used: tuple[Database, World]) -> None:
    database, world = used
    stuck_writer(database)
    database.execute("UPDATE issue SET project_id = NULL WHERE id = %s", world.issues[0])
    database.execute(BEHIND)
    found = metrics(database)
    assert found["usage_rollup_lag_seconds"] == 7200
    assert found["usage_rollup_watermark_timestamp_seconds"] == database.value(
        "SELECT extract(epoch FROM date_trunc('second', watermark_at))::float8"
        " FROM task_usage_hourly_rollup_state"
    )
    queue = "task_usage_hourly_invalidation"
    assert found[f"usage_rollup_queue_rows {queue}"] == database.value(f"SELECT count(*) FROM {queue}") > 0
    assert found[f"usage_rollup_queue_bytes {queue}"] == database.value(
        f"SELECT pg_total_relation_size('{queue}')"
    )
    assert found["usage_rollup_scheduled"] == 0
    assert found["usage_rollup_last_run_failed"] == 0
    assert found["usage_rollup_last_run_timestamp_seconds"] > 1.7e9
    for backfill in ("running", "rows", "walked_rows"):
        assert found[f"usage_rollup_backfill_{backfill}"] == 0
    assert found["usage_rollup_pending_steps"] == 0
    heal(database)


def test_the_documented_metrics_are_those_that_are_printed(head: Database) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    documented = {*re.findall(r"\busage_rollup_\w+(?<!_prom)\b", page)} - {"usage_rollup"}
    printed = head.usage_rollup("status", "--format", "prometheus").stdout
    assert len(documented) > 10
    assert [name for name in sorted(documented) if f"# TYPE {name} gauge" not in printed] == []


def test_what_is_not_known_has_no_sample(make_database: MakeDatabase) -> None:
    for point, pending in (("empty", 6), ("v034", 5), ("101", 3)):
        found = metrics(make_database(point))
        assert found["usage_rollup_pending_steps"] == pending
        assert "usage_rollup_last_run_timestamp_seconds" not in found
        assert ("usage_rollup_lag_seconds" in found) == (point == "101")


@pytest.mark.parametrize("watermark", ["infinity", "-infinity", "20250-01-01", "0044-01-01 BC"])
def test_a_watermark_that_is_no_time_of_ours_breaks_no_format(
    used: tuple[Database, World], watermark: str
) -> None:
    database, _ = used
    database.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = '{watermark}'")
    assert "usage_rollup_watermark_timestamp_seconds" not in metrics(database)
    assert database.usage_rollup("status").returncode == 0
    assert probe(database, "--max-lag", "30m")[0] == 3
    heal(database)


def test_a_lag_behind_a_watermark_in_the_future_is_not_known(used: tuple[Database, World]) -> None:
    database, _ = used
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    assert "usage_rollup_lag_seconds" not in metrics(database)
    heal(database)


def test_without_a_database_there_is_no_file_to_move_into_place(head: Database) -> None:
    result = head.usage_rollup(
        "status", "--format", "prometheus", DATABASE_URL=NOWHERE, DATABASE_STARTUP_TIMEOUT="0"
    )
    assert (result.returncode, result.stdout) == (75, "")
