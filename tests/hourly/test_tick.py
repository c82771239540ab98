"""rollup_task_usage_hourly(): one tick, and what stands around it: prune, lag, later releases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import IsolationLevel, errors

from tests.support.database import Connection, Database
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world, task, upsert_usage, usage, wait_until
from tests.support.rollup import EVERY_HOUR, TICK, WATERMARK, queued
from tests.support.sessions import is_blocked, is_gone

pytestmark = pytest.mark.server

STATE = "SELECT * FROM task_usage_hourly_rollup_state"
LAG = "SELECT task_usage_hourly_rollup_lag_seconds()"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)

# The horizon's distance from the clock where no transaction is open.
FIVE_MINUTES = timedelta(minutes=5)

BOUNDED = "-c statement_timeout=20s"


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


# Later releases of the product

# In the manner of 213: a plain body, no defaults, no SET; key by key; reads the public queue only.
LATER_WINDOW = """
CREATE OR REPLACE FUNCTION rollup_task_usage_hourly_window(p_from timestamptz, p_to timestamptz)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_rows bigint;
BEGIN
    WITH dirty_keys AS (
        SELECT task_usage_hour_bucket(tu.created_at) AS bucket_hour, a.workspace_id, q.runtime_id,
            q.agent_id, i.project_id, tu.provider, tu.model
        FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id
        JOIN agent a ON a.id = q.agent_id LEFT JOIN issue i ON i.id = q.issue_id
        WHERE COALESCE(tu.updated_at, tu.created_at) >= p_from
            AND COALESCE(tu.updated_at, tu.created_at) < p_to AND q.runtime_id IS NOT NULL
        UNION
        SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
        FROM task_usage_hourly_dirty WHERE enqueued_at < p_to
    ), expected AS (
        SELECT task_usage_hour_bucket(tu.created_at) AS bucket_hour, a.workspace_id, q.runtime_id,
            q.agent_id, i.project_id, tu.provider, tu.model, SUM(tu.input_tokens)::bigint AS i,
            SUM(tu.output_tokens)::bigint AS o, SUM(tu.cache_read_tokens)::bigint AS r,
            SUM(tu.cache_write_tokens)::bigint AS w, COUNT(DISTINCT tu.task_id) AS tasks,
            COUNT(*) AS events
        FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id
        JOIN agent a ON a.id = q.agent_id LEFT JOIN issue i ON i.id = q.issue_id
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ), recomputed AS (
        SELECT e.* FROM expected e JOIN dirty_keys k ON k.bucket_hour = e.bucket_hour
            AND k.workspace_id = e.workspace_id AND k.runtime_id = e.runtime_id
            AND k.agent_id = e.agent_id AND k.project_id IS NOT DISTINCT FROM e.project_id
            AND k.provider = e.provider AND k.model = e.model
    ), written AS (
        INSERT INTO task_usage_hourly AS h (bucket_hour, workspace_id, runtime_id, agent_id, project_id,
            provider, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
            task_count, event_count)
        SELECT * FROM recomputed
        ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_key DO UPDATE SET
            input_tokens = EXCLUDED.input_tokens, output_tokens = EXCLUDED.output_tokens,
            cache_read_tokens = EXCLUDED.cache_read_tokens,
            cache_write_tokens = EXCLUDED.cache_write_tokens,
            task_count = EXCLUDED.task_count, event_count = EXCLUDED.event_count, updated_at = now()
        RETURNING 1
    ), deleted AS (
        DELETE FROM task_usage_hourly h USING dirty_keys k
        WHERE k.bucket_hour = h.bucket_hour AND k.workspace_id = h.workspace_id
            AND k.runtime_id = h.runtime_id AND k.agent_id = h.agent_id
            AND k.project_id IS NOT DISTINCT FROM h.project_id AND k.provider = h.provider
            AND k.model = h.model AND NOT EXISTS (
                SELECT FROM expected e WHERE k.bucket_hour = e.bucket_hour
                    AND k.workspace_id = e.workspace_id AND k.runtime_id = e.runtime_id
                    AND k.agent_id = e.agent_id AND k.project_id IS NOT DISTINCT FROM e.project_id
                    AND k.provider = e.provider AND k.model = e.model)
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM written) + (SELECT count(*) FROM deleted) INTO v_rows;
    DELETE FROM task_usage_hourly_dirty WHERE enqueued_at < p_to;
    RETURN v_rows;
END
$$
"""

# In the manner of 272: a transaction lock, and prune is its only way to our queue. Its window ends
# at the clock instead of five minutes earlier, or what is handed over would have to age first.
LATER_TICK = """
CREATE OR REPLACE FUNCTION rollup_task_usage_hourly() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_from timestamptz;
    v_to timestamptz := clock_timestamp();
    v_rows bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(4246) THEN
        RETURN 0;
    END IF;
    SELECT watermark_at INTO v_from FROM task_usage_hourly_rollup_state WHERE id = 1;
    v_rows := rollup_task_usage_hourly_window(v_from, v_to);
    UPDATE task_usage_hourly_rollup_state SET watermark_at = v_to, last_run_rows = v_rows WHERE id = 1;
    PERFORM prune_task_usage_hourly_dirty();
    RETURN v_rows;
END
$$
"""

# In the manner of 243.
TEARDOWN = "WHEN (current_setting('multica.workspace_teardown', true) IS DISTINCT FROM 'on')"
LATER_TRIGGERS = f"""
DROP TRIGGER trg_atq_dirty_hourly ON agent_task_queue;
CREATE TRIGGER trg_atq_dirty_hourly BEFORE UPDATE OF runtime_id, issue_id OR DELETE ON agent_task_queue
    FOR EACH ROW {TEARDOWN} EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_atq();
DROP TRIGGER trg_issue_delete_dirty_hourly ON issue;
CREATE TRIGGER trg_issue_delete_dirty_hourly BEFORE DELETE ON issue
    FOR EACH ROW {TEARDOWN} EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_issue_delete();
DROP TRIGGER trg_tu_dirty_hourly ON task_usage;
CREATE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON task_usage
    FOR EACH ROW {TEARDOWN} EXECUTE FUNCTION enqueue_task_usage_hourly_dirty_for_tu();
"""


def later_release(db: Database) -> None:
    """Apply the product's later migrations on top, as the owner of the pipeline."""
    for statement in (LATER_WINDOW, LATER_TICK, LATER_TRIGGERS):
        db.execute(statement)


CHANGES: list[tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]]]] = [
    ("UPDATE agent_task_queue SET agent_id = %s WHERE id = %s", lambda w: (w["agent"], w["task"])),
    ("UPDATE issue SET project_id = NULL WHERE id = %s", lambda w: (w["issue"],)),
    ("UPDATE agent SET workspace_id = %s WHERE id = %s", lambda w: (w["workspace"], w["agent"])),
    ("UPDATE task_usage SET input_tokens = 1 WHERE task_id = %s", lambda w: (w["task"],)),
    ("UPDATE task_usage SET created_at = created_at - interval '3 hours'", lambda w: ()),
    ("DELETE FROM agent_task_queue WHERE id = %s", lambda w: (w["task"],)),
    ("DELETE FROM agent", lambda w: ()),
]


def test_queue_of_our_own_would_be_a_dead_end_once_the_window_is_theirs(head: Database) -> None:
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    catch_up(head)
    later_release(head)
    head.execute("UPDATE task_usage SET input_tokens = 1")
    head.execute("SELECT rollup_task_usage_hourly_window('-infinity', '-infinity')")
    assert head.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 1
    head.execute("DELETE FROM task_usage_hourly_invalidation")
    assert len(differing_hours(head.url)) == 1
    head.execute(EVERY_HOUR)
    head.execute("SELECT prune_task_usage_hourly_dirty()")
    head.execute(TICK)


def test_changes_reach_a_later_release_s_window_through_prune(head: Database) -> None:
    world = small_world(head.url)
    moved = task(head.url, world.agents[0], issue_id=world.issues[0])
    usage(head.url, moved, "2025-03-01 10:15+00")
    for agent in range(3):
        event(head.url, world, "2025-03-01 10:45+00", agent=agent, issue=agent)
    catch_up(head)
    later_release(head)
    ids = {
        "task": moved,
        "agent": world.agents[1],
        "issue": world.issues[0],
        "workspace": world.workspaces[1],
    }
    for statement, parameters in CHANGES:
        head.execute(statement, *parameters(ids))
        assert head.value("SELECT count(*) FROM task_usage_hourly_invalidation") > 0, statement
        # The first tick hands over, the second one works it off.
        head.execute(TICK)
        assert head.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 0, statement
        assert head.value("SELECT count(*) FROM task_usage_hourly_dirty") > 0, statement
        assert head.value(TICK) > 0, statement
        assert queued(head) == 0, statement
        assert differing_hours(head.url) == [], statement
    assert head.value("SELECT count(*) FROM task_usage_hourly") == 0


def test_prune_hands_over_keys_that_exist_and_keys_that_should(head: Database) -> None:
    world = small_world(head.url)
    moved = task(head.url, world.agents[0])
    usage(head.url, moved, "2025-03-01 10:15+00")
    catch_up(head)
    later_release(head)
    head.execute("UPDATE agent_task_queue SET agent_id = %s", world.agents[1])
    assert head.value("SELECT prune_task_usage_hourly_dirty()") == 1
    keys = "SELECT bucket_hour, agent_id FROM task_usage_hourly_dirty"
    hour = datetime(2025, 3, 1, 10, tzinfo=UTC)
    assert set(head.execute(keys)) == {(hour, world.agents[0]), (hour, world.agents[1])}

    # Handed over again, a key stays one row and gets no older.
    head.execute("UPDATE task_usage_hourly_dirty SET enqueued_at = 'infinity'")
    head.execute(EVERY_HOUR)
    assert head.value("SELECT prune_task_usage_hourly_dirty()") == 1
    assert set(head.execute(keys)) == {(hour, world.agents[0]), (hour, world.agents[1])}
    assert head.value("SELECT bool_and(enqueued_at = 'infinity') FROM task_usage_hourly_dirty")
    head.execute("UPDATE task_usage_hourly_dirty SET enqueued_at = now()")
    head.execute(TICK)
    assert differing_hours(head.url) == []


def test_truncated_usage_reaches_a_later_release_s_window_too(head: Database) -> None:
    world = small_world(head.url)
    for hour in (10, 11):
        event(head.url, world, f"2025-03-01 {hour}:15+00")
    catch_up(head)
    later_release(head)
    head.execute("TRUNCATE agent CASCADE")
    head.execute(TICK)
    head.execute(TICK)
    assert head.value("SELECT count(*) FROM task_usage_hourly") == 0
    assert queued(head) == 0


def test_usage_deleted_while_a_workspace_is_torn_down_is_queued_though_the_product_s_triggers_stand_back(
    head: Database,
) -> None:
    world = small_world(head.url)
    torn_down = event(head.url, world, "2025-03-01 10:15+00")
    event(head.url, world, "2025-03-01 11:15+00", agent=2, issue=3)
    catch_up(head)
    later_release(head)
    assert {
        name
        for (name,) in head.execute(
            "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND pg_get_triggerdef(oid) LIKE '% AFTER %'"
        )
    } == {
        *(
            f"trg_{of}_dirty_hourly_{what}"
            for of in ("tu", "atq", "issue", "agent")
            for what in ("gone", "truncate")
        ),
        *("trg_tu_dirty_hourly_write", "trg_agent_dirty_hourly"),
        *("trg_atq_dirty_hourly_move", "trg_issue_dirty_hourly_move"),
    }

    teardown = head.connect()
    teardown.execute("SET LOCAL multica.workspace_teardown = 'on'")
    teardown.execute("DELETE FROM task_usage WHERE id = %s", [torn_down])
    # The product removes the workspace's buckets itself.
    teardown.execute("DELETE FROM task_usage_hourly WHERE workspace_id = %s", [world.workspaces[0]])
    teardown.commit()
    assert head.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 1
    head.execute(TICK)
    assert differing_hours(head.url) == []

    head.execute("DELETE FROM task_usage")
    assert head.value("SELECT count(*) FROM task_usage_hourly_invalidation") == 1
    head.execute(TICK)
    head.execute(TICK)
    assert head.value("SELECT count(*) FROM task_usage_hourly") == 0
