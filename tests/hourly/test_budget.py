"""A tick has a budget: what it does not reach stays queued, and no timeout makes it begin again for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.database import Database
from tests.support.horizon import rewrite_function
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world
from tests.support.rollup import EVERY_HOUR, TICK, UNQUEUE, WATERMARK, corrupt, queued, wrong_hours

FIRST = datetime(2025, 3, 1, 10, 15, tzinfo=UTC)
NO_TIME = "SET usage_rollup.tick_budget = '0'"
SETTLE = "rollup_task_usage_hourly_settle(timestamptz,timestamptz,timestamptz)"
DEADLINE = "SELECT task_usage_hourly_tick_deadline() - statement_timestamp()"


@pytest.fixture
def used(at_102: Database) -> Database:
    """Return a database with usage on six days, five hours each, all of it queued."""
    with at_102.connect() as connection:
        world = small_world(connection)
        for day in range(6):
            for hour in range(5):
                event(connection, world, FIRST + timedelta(days=day, hours=hour))
    return at_102


def test_tick_without_time_does_a_day_and_queues_the_rest_by_hour(used: Database) -> None:
    with used.connect(autocommit=True) as ticker:
        ticker.execute(NO_TIME)
        assert ticker.execute(TICK).fetchone() == (5,)
        assert used.value("SELECT count(*) FROM task_usage_hourly") == 5
        assert queued(used) == 25
        assert used.value("SELECT count(bucket_hour) FROM task_usage_hourly_invalidation") == 25
        assert differing_hours(used.url) == []
        for _ in range(5):
            ticker.execute(TICK)
    assert queued(used) == 0
    assert wrong_hours(used) == []


def test_tick_without_time_does_one_of_three_days_without_a_gap_between_them(used: Database) -> None:
    used.execute(UNQUEUE)
    # Every hour of them, as a correction of a whole history has: neighbours that melt into one range.
    used.execute(
        "INSERT INTO task_usage_hourly_invalidation (bucket_hour)"
        " SELECT generate_series('2025-03-01 00:00+00'::timestamptz, '2025-03-03 23:00+00', '1 hour')"
    )
    with used.connect(autocommit=True) as ticker:
        ticker.execute(NO_TIME)
        assert ticker.execute(TICK).fetchone() == (5,)
    assert used.value("SELECT max(bucket_hour) FROM task_usage_hourly") < FIRST + timedelta(days=1)
    assert queued(used) == 48
    assert differing_hours(used.url) == []


def test_events_that_a_tick_has_no_time_for_are_queued_when_the_watermark_passes_them(used: Database) -> None:
    # One correction of everything, as one statement dates it: no moment to stop in between.
    used.execute(TICK)
    with used.connect() as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("ALTER TABLE task_usage DISABLE TRIGGER USER")
        connection.execute(
            "UPDATE task_usage SET input_tokens = 5, updated_at = now() - interval '20 minutes'"
        )
        connection.execute("ALTER TABLE task_usage ENABLE TRIGGER USER")
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '1 hour'")
    with used.connect(autocommit=True) as ticker:
        ticker.execute(NO_TIME)
        assert ticker.execute(TICK).fetchone() == (5,)
        assert used.value(f"SELECT ({WATERMARK}) > (SELECT max(updated_at) FROM task_usage)")
        assert queued(used) == 25
        assert differing_hours(used.url) == []
        for _ in range(5):
            ticker.execute(TICK)
    assert wrong_hours(used) == []


def test_queue_longer_than_a_portion_is_drained_in_portions(used: Database) -> None:
    rewrite_function(used, SETTLE, "THEN 50000 END", "THEN 7 END")
    with used.connect(autocommit=True) as ticker:
        ticker.execute(NO_TIME)
        assert ticker.execute(TICK).fetchone() == (5,)
        # Seven rows were taken; those of a second day came back, as hours.
        assert queued(used) == 25
        assert used.value("SELECT count(task_id) FROM task_usage_hourly_invalidation") == 23
        ticker.execute("SET usage_rollup.tick_budget = '1h'")
        ticker.execute(TICK)
    assert queued(used) == 0
    assert wrong_hours(used) == []


def test_public_queue_is_drained_in_portions_too(used: Database) -> None:
    used.execute(TICK)
    used.execute(
        "INSERT INTO task_usage_hourly_dirty"
        " (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT bucket_hour, workspace_id, runtime_id, agent_id, provider, model FROM task_usage_hourly"
    )
    corrupt(used)
    rewrite_function(used, SETTLE, "THEN 50000 END", "THEN 7 END")
    with used.connect(autocommit=True) as ticker:
        ticker.execute(NO_TIME)
        ticker.execute(TICK)
        assert used.value("SELECT count(*) FROM task_usage_hourly_dirty") == 23
        ticker.execute("SET usage_rollup.tick_budget = '1h'")
        ticker.execute(TICK)
    assert queued(used) == 0
    assert wrong_hours(used) == []


def test_hours_that_nobody_can_read_are_not_queued_again_and_again(used: Database) -> None:
    world = small_world(used.url)
    for at in ("infinity", "20250-03-01 10:15+00"):
        event(used.url, world, at)
    with used.connect(autocommit=True) as ticker:
        ticker.execute(NO_TIME)
        assert ticker.execute(TICK).fetchone() == (5,)
    assert queued(used) == 25


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 5),
        ({"usage_rollup.tick_budget": "90s"}, 90),
        ({"usage_rollup.tick_budget": "1 minute", "statement_timeout": "20s"}, 10),
        ({"statement_timeout": "4s"}, 2),
        ({"statement_timeout": "1h"}, 5),
    ],
)
def test_budget_is_five_seconds_or_what_is_set_and_half_of_the_role_s_timeout(
    at_102: Database, settings: dict[str, str], seconds: int
) -> None:
    with at_102.connect(autocommit=True) as session:
        session.execute("SET usage_rollup.tick_budget = ''")
        for name, value in settings.items():
            session.execute(f"SET {name} = '{value}'")
        assert session.execute(DEADLINE).fetchone() == (timedelta(seconds=seconds),)
        # Whatever came before in its transaction.
        with session.transaction():
            session.execute("SELECT")
            assert session.execute(DEADLINE).fetchone() == (timedelta(seconds=seconds),)


@pytest.mark.server
def test_budget_is_half_of_the_role_s_transaction_timeout_where_postgresql_has_one(at_102: Database) -> None:
    with at_102.connect(autocommit=True) as session:
        session.execute("SET usage_rollup.tick_budget = '1 hour'")
        has_one = session.info.server_version >= 170000
        if has_one:
            session.execute("SET transaction_timeout = '20min'")
        assert session.execute(DEADLINE).fetchone() == (timedelta(minutes=10 if has_one else 60),)


def test_window_does_everything_whatever_the_budget(used: Database) -> None:
    with used.connect(autocommit=True) as session:
        session.execute(NO_TIME)
        session.execute(EVERY_HOUR)
        session.execute("SELECT rollup_task_usage_hourly_window('-infinity', '-infinity')")
    assert queued(used) == 0
    assert wrong_hours(used) == []


def test_watermark_stays_when_the_clock_was_set_back_during_a_tick(used: Database) -> None:
    before = used.value(WATERMARK)
    tick, now = "rollup_task_usage_hourly()", "v_started CONSTANT timestamptz := clock_timestamp()"
    rewrite_function(used, tick, f"{now};", f"{now} + interval '1 hour';")
    used.execute(TICK)
    assert used.value(WATERMARK) == before
    rewrite_function(used, tick, f"{now} + interval '1 hour';", f"{now};")
    used.execute(TICK)
    assert used.value(WATERMARK) > before
    assert wrong_hours(used) == []
