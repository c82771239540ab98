"""Which totals only the legacy rollups hold: days of a runtime's zone, days of UTC, and both in one."""

from __future__ import annotations

import json
from datetime import date

import psycopg
import pytest

from tests.support.database import Connection, Database
from tests.support.legacy import lose_raw_rows, roll_up_as_v034, where_legacy_is
from tests.support.product import World, agent, event, runtime, small_world, task, usage
from tests.support.roles import MakeRole

# 082 as the ledger has it; what the daily rollup wrote before is days of UTC.
BEFORE_082 = "applied_at - interval '1 day' FROM schema_migrations WHERE version LIKE '082%'"
ZONE = "Asia/Kathmandu"  # 5:45 ahead of UTC

# By time of day in UTC, how many reports. Kathmandu's 2 March begins at 18:15 of UTC's 1 March.
REPORTS = {"2025-03-01 20:00+00": 2, "2025-03-02 10:00+00": 1, "2025-03-02 20:00+00": 3}
RETENTION = "created_at < '2025-03-02 00:00+00'"


def report(database: Database, world: World, *, zone: str = ZONE) -> None:
    """Write REPORTS on the first agent's runtime, which lies in `zone`."""
    database.execute("UPDATE agent_runtime SET timezone = %s WHERE id = %s", zone, world.runtimes[0])
    for created_at, times in REPORTS.items():
        for _ in range(times):
            usage(database.url, task(database.url, world.agents[0]), created_at)


def roll_up_daily(database: Database) -> None:
    database.execute("SELECT rollup_task_usage_daily_window('-infinity', 'infinity')")


def excess(database: Database) -> list[tuple[date, int, int]]:
    """Return day, events there and events in raw usage of what exceeds, as 102 sees it."""
    return [
        (day, int(there), int(raw))
        for day, there, raw in database.execute(
            "SELECT bucket_date, legacy_events, raw_events FROM task_usage_hourly_legacy_excess()"
            " WHERE rollup = 'task_usage_daily' ORDER BY 1"
        )
    ]


def test_partly_purged_day_of_a_runtime_is_not_hidden_behind_a_larger_day_of_utc(v034: Database) -> None:
    report(v034, small_world(v034.url))
    roll_up_daily(v034)
    lose_raw_rows(v034, RETENTION)
    # The trap: UTC's 2 March holds more than was ever counted for Kathmandu's.
    assert v034.value("SELECT event_count FROM task_usage_daily WHERE bucket_date = '2025-03-02'") == 3
    assert (
        v034.value(
            "SELECT count(*) FROM task_usage WHERE (created_at AT TIME ZONE 'UTC')::date = '2025-03-02'"
        )
        == 4
    )
    found = json.loads(v034.usage_rollup("preflight", "--json").stdout)
    assert found["legacy"]["totals_only_there"] == 1
    v034.upgrade("102")
    assert excess(v034) == [(date(2025, 3, 2), 3, 1)]
    assert "1 daily totals exist only there" in v034.upgrade()
    assert where_legacy_is(v034) == {"legacy_usage"}


def test_days_that_lost_nothing_are_dropped_in_any_zone(v034: Database) -> None:
    report(v034, small_world(v034.url))
    roll_up_daily(v034)
    v034.upgrade()
    assert where_legacy_is(v034) == set()


@pytest.mark.parametrize("lost", [False, True])
def test_rows_older_than_082_are_days_of_utc(v034: Database, lost: bool) -> None:
    # Rolled up when there were no zones, and never since.
    report(v034, small_world(v034.url), zone="UTC")
    roll_up_daily(v034)
    v034.execute(f"UPDATE task_usage_daily SET updated_at = (SELECT {BEFORE_082})")
    v034.execute("UPDATE agent_runtime SET timezone = %s", ZONE)
    if lost:
        # Kathmandu's 3 March still holds three.
        lose_raw_rows(v034, "created_at = '2025-03-02 10:00+00'")
    v034.upgrade("102")
    assert excess(v034) == ([(date(2025, 3, 2), 4, 3)] if lost else [])
    v034.upgrade()
    assert where_legacy_is(v034) == ({"legacy_usage"} if lost else set())


@pytest.mark.parametrize("lost", [None, "2025-03-01 20:00+00", "2025-03-02 10:00+00"])
def test_total_made_of_both_kinds_of_days_counts_each_runtime_as_its_row_does(
    v034: Database, lost: str | None
) -> None:
    world = small_world(v034.url)
    report(v034, world, zone="UTC")
    roll_up_daily(v034)
    v034.execute(f"UPDATE task_usage_daily SET updated_at = (SELECT {BEFORE_082})")
    # Another runtime of the workspace reports the same, and is rolled up after 082 in its zone.
    other = runtime(v034.url, world.workspaces[0])
    v034.execute("UPDATE agent_runtime SET timezone = %s", ZONE)
    working = agent(v034.url, world.workspaces[0], other)
    for created_at, times in REPORTS.items():
        for _ in range(times):
            usage(v034.url, task(v034.url, working), created_at)
    v034.execute(
        "INSERT INTO task_usage_daily (bucket_date, workspace_id, runtime_id, provider, model, event_count)"
        " SELECT (tu.created_at AT TIME ZONE r.timezone)::date, r.workspace_id, r.id, tu.provider, tu.model,"
        " count(*) FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id"
        " JOIN agent_runtime r ON r.id = q.runtime_id"
        " WHERE r.id = %s GROUP BY 1, 2, 3, 4, 5",
        other,
    )
    if lost:
        lose_raw_rows(
            v034,
            f"created_at = '{lost}'"
            f" AND task_id IN (SELECT id FROM agent_task_queue WHERE runtime_id = '{other}')",
        )
    v034.upgrade("102")
    # 2 March: four of UTC's day and three of Kathmandu's.
    expected = {
        None: [],
        "2025-03-01 20:00+00": [(date(2025, 3, 2), 7, 5)],
        "2025-03-02 10:00+00": [(date(2025, 3, 2), 7, 6)],
    }[lost]
    assert excess(v034) == expected
    # A third has no row, so nobody knows which day its usage is of: it makes up for nothing.
    third = runtime(v034.url, world.workspaces[0])
    v034.execute("UPDATE agent_runtime SET timezone = %s", ZONE)
    usage(v034.url, task(v034.url, agent(v034.url, world.workspaces[0], third)), "2025-03-02 20:00+00")
    assert excess(v034) == expected
    # Tokens as events: each report has as many.
    assert not v034.execute(
        "SELECT * FROM task_usage_hourly_legacy_excess() WHERE raw_tokens <> raw_events * (SELECT"
        " input_tokens + output_tokens + cache_read_tokens + cache_write_tokens FROM task_usage LIMIT 1)"
    )
    v034.upgrade()
    assert where_legacy_is(v034) == ({"legacy_usage"} if lost else set())


def test_ledger_that_does_not_tell_leaves_the_days_to_the_runtimes(
    v034: Database, empty: Database, make_role: MakeRole
) -> None:
    for database in (v034, empty):
        database.upgrade("097")
        report(database, small_world(database.url))
        roll_up_daily(database)
        database.execute("UPDATE task_usage_daily SET updated_at = '2025-03-04'")
        database.upgrade("102")
    # No ledger, and days as old as they may be.
    assert excess(empty) == []
    lose_raw_rows(empty, RETENTION)
    assert excess(empty) == [(date(2025, 3, 2), 3, 1)]
    # A ledger that says 082 came later: these would be days of UTC, and are not.
    assert excess(v034) == [(date(2025, 3, 3), 3, 0)]
    reader = make_role("reader")
    v034.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}")
    v034.execute(f"REVOKE ALL ON schema_migrations FROM {reader}")
    with v034.connect() as connection:
        connection.execute(f"SET ROLE {reader}".encode())
        assert connection.execute("SELECT FROM task_usage_hourly_legacy_excess()").rowcount == 0
    v034.execute("ALTER TABLE schema_migrations RENAME COLUMN applied_at TO at")
    assert excess(v034) == []
    v034.execute("DELETE FROM schema_migrations WHERE version LIKE '082%'")
    v034.execute("ALTER TABLE schema_migrations RENAME COLUMN at TO applied_at")
    assert excess(v034) == []


# One rollup at a time, and one measure

KINDS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def exceeding(connection: Connection) -> set[tuple[str, str]]:
    """Return rollup and model of all that exceeds."""
    return {
        (rollup, model)
        for rollup, model in connection.execute("SELECT rollup, model FROM task_usage_hourly_legacy_excess()")
    }


BOTH = {("task_usage_daily", "m"), ("task_usage_dashboard_daily", "m")}


@pytest.fixture
def counted(v034: Database) -> tuple[Database, World]:
    """Return a database at 102 in which both legacy rollups hold what raw usage does, of one model, `m`."""
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:15+00", model="m")
    # Reported, and nothing used.
    event(v034.url, world, "2025-03-01 10:20+00", model="m", tokens=0)
    roll_up_as_v034(v034)
    v034.upgrade("102")
    return v034, world


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_each_kind_that_only_the_legacy_rollups_hold_are_a_loss(
    counted: tuple[Database, World], kind: str
) -> None:
    database, _ = counted
    with database.connect() as connection:
        assert exceeding(connection) == set()
        for rollup in ("task_usage_daily", "task_usage_dashboard_daily"):
            with connection.transaction(force_rollback=True):
                connection.execute(f"UPDATE {rollup} SET {kind} = {kind} + 1")
                assert exceeding(connection) == {(rollup, "m")}
        with connection.transaction(force_rollback=True):
            connection.execute(f"UPDATE task_usage SET {kind} = {kind} - 1 WHERE {kind} > 0")
            assert exceeding(connection) == BOTH
        # More of it in raw usage than there ever was in the legacy rollups is none.
        with connection.transaction(force_rollback=True):
            connection.execute(f"UPDATE task_usage SET {kind} = {kind} + 1")
            assert exceeding(connection) == set()


def test_events_that_only_the_legacy_rollups_hold_are_a_loss_although_no_token_is(
    counted: tuple[Database, World],
) -> None:
    database, _ = counted
    lose_raw_rows(database, "input_tokens = 0")
    with database.connect() as connection:
        assert exceeding(connection) == BOTH
    assert excess(database) == [(date(2025, 3, 1), 2, 1)]
    database.upgrade()
    assert where_legacy_is(database) == {"legacy_usage"}


def test_what_is_lost_is_not_made_up_for_by_another_model_day_or_workspace(
    counted: tuple[Database, World],
) -> None:
    database, world = counted
    lose_raw_rows(database, "input_tokens > 0")
    # Since the legacy rollups were at work.
    for created_at, by, model in (
        ("2025-03-01 10:25+00", 0, "other"),
        ("2025-03-02 10:25+00", 0, "m"),
        ("2025-03-01 10:25+00", 2, "m"),
    ):
        event(database.url, world, created_at, agent=by, model=model)
    with database.connect() as connection:
        assert exceeding(connection) == BOTH


def test_what_was_filed_under_utc_is_no_loss_where_the_runtime_has_a_zone_that_nobody_knows(
    counted: tuple[Database, World],
) -> None:
    database, _ = counted
    database.execute("UPDATE agent_runtime SET timezone = 'Mars/Olympus'")
    # The trap: it is no zone to compute with.
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        database.execute("SELECT now() AT TIME ZONE timezone FROM agent_runtime")
    assert excess(database) == []
    lose_raw_rows(database, "input_tokens = 0")
    assert excess(database) == [(date(2025, 3, 1), 2, 1)]
    database.upgrade()
    assert where_legacy_is(database) == {"legacy_usage"}


def test_without_one_of_the_two_rollups_there_is_nothing_to_compare(counted: tuple[Database, World]) -> None:
    database, _ = counted
    lose_raw_rows(database)
    for rollup in ("task_usage_daily", "task_usage_dashboard_daily"):
        with database.connect() as connection, connection.transaction(force_rollback=True):
            assert exceeding(connection) == BOTH
            connection.execute(f"DROP TABLE {rollup}")
            assert exceeding(connection) == set()


def test_totals_are_told_day_by_day(v034: Database) -> None:
    report(v034, small_world(v034.url))
    roll_up_as_v034(v034)
    lose_raw_rows(v034)
    v034.upgrade("102")
    found = v034.execute("SELECT bucket_date, rollup FROM task_usage_hourly_legacy_excess()")
    assert len({day for day, _ in found}) > 1
    assert len({rollup for _, rollup in found}) > 1
    assert found == sorted(found)
