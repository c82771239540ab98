"""rollup_task_usage_hourly(): one tick, and what stands around it: prune, lag, later releases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import IsolationLevel, errors

from tests.support.database import Connection, Database
from tests.support.deadline import DEADLINE_S
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world, task, upsert_usage, wait_until
from tests.support.rollup import EVERY_HOUR, TICK, WATERMARK, queued
from tests.support.sessions import is_blocked, is_gone

pytestmark = pytest.mark.server

STATE = "SELECT * FROM task_usage_hourly_rollup_state"
LAG = "SELECT task_usage_hourly_rollup_lag_seconds()"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

# The horizon's distance from the clock where no transaction is open.
FIVE_MINUTES = timedelta(minutes=5)

BOUNDED = f"-c statement_timeout={DEADLINE_S:.0f}s"


def catch_up(db: Database) -> None:
    """Tick until the watermark has passed every event that is older than a few minutes."""
    for _ in range(20):
        db.execute(TICK)
        if db.value(f"SELECT ({WATERMARK}) > clock_timestamp() - interval '10 minutes'"):
            return
    pytest.fail("the watermark does not arrive")


def as_history(db: Database) -> None:
    """Forget what is queued, so that the rows written so far are found by time alone."""
    db.execute("DELETE FROM task_usage_hourly_invalidation")


# The lock


def test_tick_returns_zero_and_changes_nothing_while_another_session_holds_the_lock(
    at_102: Database,
) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    before = at_102.execute(STATE)
    holder = at_102.connect()
    holder.execute("SELECT pg_advisory_lock(4246)")
    assert at_102.value(TICK) == 0
    assert at_102.execute(STATE) == before
    assert queued(at_102) == 1
    holder.execute("SELECT pg_advisory_unlock(4246)")
    holder.commit()
    assert at_102.value(TICK) == 1
    assert differing_hours(at_102.url) == []


def test_tick_keeps_the_lock_until_what_it_did_is_committed(at_102: Database) -> None:
    caller = at_102.connect()
    caller.execute(TICK)
    assert at_102.value("SELECT pg_try_advisory_lock(4246)") is False
    caller.commit()
    assert at_102.value("SELECT pg_try_advisory_lock(4246)") is True


def test_session_lock_with_a_catch_all_outlives_a_cancelled_tick(at_102: Database) -> None:
    # The first implementation: query_canceled is the one condition OTHERS does not catch.
    at_102.execute(
        "CREATE FUNCTION naive_tick() RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_advisory_lock(4246); PERFORM count(*) FROM task_usage_hourly;"
        " PERFORM pg_advisory_unlock(4246); EXCEPTION WHEN OTHERS THEN"
        " PERFORM pg_advisory_unlock(4246); RAISE; END $$"
    )
    caller = _stopped_while_it_works(at_102, "SELECT naive_tick()", "pg_cancel_backend")
    assert at_102.value("SELECT pg_try_advisory_lock(4246)") is False
    assert at_102.value(TICK) == 0
    caller.close()


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_tick_that_is_stopped_frees_the_lock_and_leaves_nothing_half_done(at_102: Database, how: str) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    before = at_102.execute(STATE)
    _stopped_while_it_works(at_102, TICK, how)
    assert at_102.value("SELECT pg_try_advisory_lock(4246)") is True
    assert at_102.execute(STATE) == before
    assert queued(at_102) == 1
    assert at_102.value("SELECT count(*) FROM task_usage_hourly") == 0
    assert at_102.value(TICK) == 1
    catch_up(at_102)
    assert differing_hours(at_102.url) == []


def _stopped_while_it_works(db: Database, statement: str, how: str) -> Connection:
    """Run a statement until it waits for task_usage_hourly, then stop it; return its session."""
    blocker = db.connect()
    blocker.execute("LOCK TABLE task_usage_hourly")
    caller = db.connect(autocommit=True, options=BOUNDED)
    pid = caller.info.backend_pid
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(caller.execute, statement)
        wait_until(lambda: is_blocked(db, caller), "the tick waits for task_usage_hourly")
        assert db.value("SELECT pg_try_advisory_lock(4246)") is False
        db.execute(f"SELECT {how}(%s)", pid)
        with pytest.raises((errors.QueryCanceled, errors.AdminShutdown)):
            running.result()
    if how == "pg_terminate_backend":
        wait_until(lambda: is_gone(db, pid), "the terminated session is gone")
    blocker.rollback()
    return caller


# Where the watermark goes


def test_tick_advances_at_most_a_day_of_events(at_102: Database) -> None:
    world = small_world(at_102.url)
    for day in range(1, 5):
        event(at_102.url, world, f"2025-03-0{day} 10:15+00")
    as_history(at_102)
    at_102.execute(TICK)
    first = at_102.value(WATERMARK)
    assert first == datetime(2025, 3, 2, 10, 15, tzinfo=UTC)
    for days in (1, 2):
        # Half open: the event at the watermark itself belongs to the next tick.
        assert at_102.value("SELECT count(*) FROM task_usage_hourly") == days
        at_102.execute(TICK)
        assert at_102.value(WATERMARK) == first + days * DAY
    catch_up(at_102)
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 4
    assert differing_hours(at_102.url) == []


def test_years_without_events_cost_one_tick(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "1999-12-31 23:15+00")
    event(at_102.url, world, "2025-03-01 10:15+00", None)
    as_history(at_102)
    for arrives_at in (
        datetime(2000, 1, 1, 23, 15, tzinfo=UTC),
        datetime(2025, 3, 2, 10, 15, tzinfo=UTC),
    ):
        assert at_102.value(TICK) == 1
        assert at_102.value(WATERMARK) == arrives_at
    assert at_102.value(TICK) == 0
    assert at_102.value(f"SELECT ({WATERMARK}) > now() - interval '6 minutes'")
    assert differing_hours(at_102.url) == []


def test_event_is_where_it_was_last_updated(at_102: Database) -> None:
    # Created before and after it.
    world = small_world(at_102.url)
    event(at_102.url, world, "2024-01-01 10:15+00", "2025-03-01 10:15+00")
    event(at_102.url, world, "2025-06-01 10:15+00", "2025-04-01 10:15+00")
    as_history(at_102)
    assert at_102.value(LAG) == (datetime(2025, 4, 1, 10, 15, tzinfo=UTC) - EPOCH).total_seconds()
    for month, buckets in ((3, 1), (4, 2)):
        at_102.execute(TICK)
        assert at_102.value(WATERMARK) == datetime(2025, month, 2, 10, 15, tzinfo=UTC)
        assert at_102.value("SELECT count(*) FROM task_usage_hourly") == buckets
    assert differing_hours(at_102.url) == []


def test_database_without_usage_starts_at_the_horizon(at_102: Database) -> None:
    assert at_102.value(WATERMARK) == EPOCH
    before = at_102.value("SELECT clock_timestamp()")
    assert at_102.value(TICK) == 0
    after = at_102.value("SELECT clock_timestamp()")
    assert before - FIVE_MINUTES <= at_102.value(WATERMARK) <= after - FIVE_MINUTES


def test_watermark_never_passes_the_horizon_nor_an_event_above_it(at_102: Database) -> None:
    world = small_world(at_102.url)
    upsert_usage(at_102.url, task(at_102.url, world.agents[0]))
    as_history(at_102)
    catch_up(at_102)
    assert at_102.value(TICK) == 0
    assert at_102.value("SELECT count(*) FROM task_usage_hourly") == 0
    assert at_102.value(f"SELECT ({WATERMARK}) <= clock_timestamp() - interval '5 minutes'")


def test_watermark_above_the_horizon_stays_and_the_queue_is_drained(at_102: Database) -> None:
    world = small_world(at_102.url)
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp()")
    by_hand = at_102.value(WATERMARK)
    event(at_102.url, world, "2025-03-01 10:15+00")
    assert at_102.value(TICK) == 1
    assert at_102.value(WATERMARK) == by_hand
    assert queued(at_102) == 0
    assert differing_hours(at_102.url) == []


@pytest.mark.parametrize("dated", ["2200-01-01 10:15+00", "9999-12-31 23:59+00", "infinity"])
def test_event_dated_in_the_future_is_rolled_up_and_does_not_carry_the_watermark_along(
    at_102: Database, dated: str
) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00", dated)
    assert at_102.value(TICK) == 1
    catch_up(at_102)
    assert at_102.value(f"SELECT ({WATERMARK}) <= clock_timestamp() - interval '5 minutes'")
    assert queued(at_102) == 0
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 1


def test_event_dated_at_the_end_of_time_does_not_stop_the_tick(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00", "294276-12-31 23:59+00")
    as_history(at_102)
    at_102.execute(TICK)
    assert at_102.value(f"SELECT ({WATERMARK}) > now() - interval '6 minutes'")


def test_missing_state_row_is_put_back_and_the_history_is_found_again(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    as_history(at_102)
    at_102.execute("DELETE FROM task_usage_hourly_rollup_state")
    event(at_102.url, world, "2025-03-01 11:15+00")
    upsert_usage(at_102.url, task(at_102.url, world.agents[0]))
    assert at_102.value(TICK) == 2
    assert at_102.execute("SELECT id, last_run_rows FROM task_usage_hourly_rollup_state") == [(1, 2)]
    catch_up(at_102)
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 2
    assert differing_hours(at_102.url) == []


@pytest.mark.parametrize("future", ["now() + interval '1 hour'", "'infinity'"])
def test_watermark_in_the_future_is_refused_with_a_hint_that_works(at_102: Database, future: str) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    as_history(at_102)
    at_102.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = {future}")
    # Where nobody refuses, what is below that watermark is never looked at again.
    blind = "SELECT rollup_task_usage_hourly_window(watermark_at, 'infinity')"
    assert at_102.value(f"{blind} FROM task_usage_hourly_rollup_state") == 0
    with pytest.raises(errors.InvalidParameterValue) as refusal:
        at_102.execute(TICK)
    assert "future" in str(refusal.value.diag.message_primary)
    assert at_102.value("SELECT count(*) FROM task_usage_hourly") == 0

    hint = str(refusal.value.diag.message_hint)
    at_102.execute(hint[: hint.index(";")])
    catch_up(at_102)
    assert at_102.value("SELECT count(*) FROM task_usage_hourly") == 1
    assert differing_hours(at_102.url) == []


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_tick_refuses_a_snapshot_older_than_its_horizon(at_102: Database, level: IsolationLevel) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    before = at_102.execute(STATE)
    caller = at_102.connect()
    caller.isolation_level = level
    with pytest.raises(errors.InvalidTransactionState) as refusal:
        caller.execute(TICK)
    assert "READ COMMITTED" in str(refusal.value.diag.message_primary)
    assert "default_transaction_isolation" in str(refusal.value.diag.message_hint)
    caller.rollback()
    assert at_102.execute(STATE) == before
    assert queued(at_102) == 1


def test_tick_says_when_it_ran_and_what_it_wrote(at_102: Database) -> None:
    world = small_world(at_102.url)
    for hour in (10, 11, 12):
        event(at_102.url, world, f"2025-03-01 {hour}:15+00")
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET last_error = 'yesterday'")
    run = (
        "SELECT last_run_started_at, last_run_finished_at, last_run_rows, last_error"
        " FROM task_usage_hourly_rollup_state"
    )
    before = at_102.value("SELECT clock_timestamp()")
    assert at_102.value(TICK) == 3
    after = at_102.value("SELECT clock_timestamp()")
    ((started, finished, rows, error),) = at_102.execute(run)
    assert before <= started <= finished <= after
    assert (rows, error) == (3, None)
    assert at_102.value(TICK) == 0
    ((started_again, _, rows, _),) = at_102.execute(run)
    assert started_again > finished
    assert rows == 0


def test_tick_rewrites_no_bucket_that_did_not_change(at_102: Database) -> None:
    world = small_world(at_102.url)
    for hour in (10, 11):
        event(at_102.url, world, f"2025-03-01 {hour}:15+00")
    catch_up(at_102)
    versions = "SELECT xmin::text, ctid::text FROM task_usage_hourly ORDER BY bucket_hour"
    before = at_102.execute(versions)
    at_102.execute(EVERY_HOUR)
    assert at_102.value(TICK) == 0
    assert at_102.execute(versions) == before


# A role's own timeouts


@pytest.mark.parametrize(
    ("of_role", "meanwhile"), [("0", "5s"), ("200ms", "200ms"), ("1min", "5s"), ("5s", "5s")]
)
def test_tick_waits_five_seconds_for_a_lock_at_most_and_leaves_the_setting_as_it_was(
    at_102: Database, of_role: str, meanwhile: str
) -> None:
    at_102.execute(
        "CREATE TABLE seen (lock_timeout text);"
        " CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO public.seen VALUES (current_setting('lock_timeout')); RETURN NEW; END $$;"
        " CREATE TRIGGER look BEFORE INSERT ON task_usage_hourly FOR EACH ROW EXECUTE FUNCTION look()"
    )
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    caller = at_102.connect()
    caller.execute(f"SET lock_timeout = '{of_role}'")
    caller.execute(TICK)
    assert caller.execute("SHOW lock_timeout").fetchone() == (of_role,)
    caller.commit()
    assert caller.execute("SHOW lock_timeout").fetchone() == (of_role,)
    caller.rollback()
    assert at_102.execute("SELECT lock_timeout FROM seen") == [(meanwhile,)]


# Prune


def _age_the_queues(db: Database) -> None:
    db.execute("UPDATE task_usage_hourly_invalidation SET enqueued_at = now() - interval '30 days'")
    db.execute(
        "INSERT INTO task_usage_hourly_dirty"
        " (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, enqueued_at)"
        " SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,"
        " now() - interval '30 days' FROM task_usage_hourly"
    )


def test_prune_by_age_would_lose_what_nobody_has_processed(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    catch_up(at_102)
    at_102.execute("DELETE FROM task_usage")
    _age_the_queues(at_102)
    for queue in ("invalidation", "dirty"):
        at_102.execute(f"DELETE FROM task_usage_hourly_{queue} WHERE enqueued_at < now() - interval '7 days'")
    assert at_102.value(TICK) == 0
    assert len(differing_hours(at_102.url)) == 1
    at_102.execute(EVERY_HOUR)
    assert at_102.value(TICK) == 1


@pytest.mark.parametrize("retention", ["", "'1 second'", "'0'"])
def test_prune_deletes_nothing_unprocessed_however_old(at_102: Database, retention: str) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    catch_up(at_102)
    # The tick is far behind, and what is queued is a month old.
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    at_102.execute("DELETE FROM task_usage")
    _age_the_queues(at_102)
    before = queued(at_102)
    assert before > 1
    assert at_102.value(f"SELECT prune_task_usage_hourly_dirty({retention})") == 0
    assert queued(at_102) == before
    assert at_102.value(TICK) == 1
    assert queued(at_102) == 0
    assert differing_hours(at_102.url) == []


# Lag


def test_lag_measures_the_data_and_not_the_last_run(at_102: Database) -> None:
    assert at_102.value(LAG) == 0
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    latest = datetime(2025, 3, 1, 10, 15, tzinfo=UTC)
    # A run that has just finished says nothing about a watermark of 1970.
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET last_run_finished_at = now()")
    assert at_102.value(LAG) == (latest - EPOCH).total_seconds()
    at_102.execute("DELETE FROM task_usage_hourly_rollup_state")
    assert at_102.value(LAG) == (latest - EPOCH).total_seconds()
    at_102.execute(TICK)
    assert at_102.value(LAG) == 0
    upsert_usage(at_102.url, task(at_102.url, world.agents[0]))
    catch_up(at_102)
    # Only as far behind as the horizon is.
    assert 0 < at_102.value(LAG) <= 600


def test_lag_goes_by_created_at_where_updated_at_is_null(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00", None)
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = '2025-03-01 10:00+00'")
    assert at_102.value(LAG) == 900
    at_102.execute(TICK)
    assert at_102.value(LAG) == 0


@pytest.mark.parametrize(
    "dated",
    ["infinity", "-infinity", "2200-01-01 00:00+00", "294276-12-31 23:59+00", "4713-11-24 00:00+00 BC"],
)
@pytest.mark.parametrize("column", ["created_at", "updated_at"])
def test_lag_is_finite_and_not_negative_whatever_date_an_event_carries(
    at_102: Database, dated: str, column: str
) -> None:
    world = small_world(at_102.url)
    if column == "created_at":
        event(at_102.url, world, dated, None)
    else:
        event(at_102.url, world, "2025-03-01 10:15+00", dated)
    assert at_102.value(f"SELECT ({LAG}) BETWEEN 0 AND extract(epoch FROM clock_timestamp())")
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
    assert at_102.value(LAG) <= 1


@pytest.mark.parametrize("watermark", ["-infinity", "infinity", "4713-11-24 00:00+00 BC"])
def test_lag_is_finite_and_not_negative_whatever_the_watermark_says(at_102: Database, watermark: str) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = %s", watermark)
    assert at_102.value(f"SELECT ({LAG}) >= 0 AND ({LAG}) < 'infinity'")
