"""Every way in which the first implementation lost usage, told twice: as it happened, and as it is now.

A story runs on a naive pipeline (tests/support/naive.py) and on ours. Its last line says what each must
show. docs/correctness.md lists the stories, and those that other files tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from tests.support.database import ROOT, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.naive import Naive, NaiveRefusal, Ours, Pipeline
from tests.support.product import (
    LONG_MODEL,
    World,
    event,
    small_world,
    task,
    upsert_usage,
    usage,
    wait_until,
)
from tests.support.sessions import is_blocked
from tests.support.walks import slices_of

WINDOW = "SELECT public.rollup_task_usage_hourly_window('-infinity', 'infinity')"
BOUNDED = f"-c statement_timeout={DEADLINE_S:.0f}s"


@pytest.fixture(params=["naive", "ours"])
def pipeline(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Pipeline:
    """Return a v0.3.4 database with the hourly tables and one of the two pipelines on it."""
    return Naive(make_database("101")) if request.param == "naive" else Ours(make_database("102"))


@pytest.fixture
def world(pipeline: Pipeline) -> World:
    return small_world(pipeline.db.url)


def shows(pipeline: Pipeline) -> bool:
    """Say whether the trap is sprung where it must be, and only there."""
    return pipeline.wrong() is pipeline.expected(naive=True, ours=False)


def waits_or_is_done(pipeline: Pipeline, session: psycopg.Connection[Any], running: Future[Any]) -> None:
    """Wait until what runs in `session` is blocked by somebody, or over."""
    wait_until(
        lambda: running.done() or is_blocked(pipeline.db, session),
        "the statement waits or is done",
    )


def hook_waits(pipeline: Pipeline, *, polls: bool = False) -> None:
    """Wait until the hook is blocked by a lock; ours asks again and again for an advisory one."""
    condition = (
        "state = 'idle' AND query LIKE '%pg_try_advisory_lock%'"
        if polls and not pipeline.naive
        else "wait_event_type = 'Lock'"
    )
    wait_until(
        lambda: pipeline.db.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            f" AND application_name IN ('usage-rollup', 'naive hook') AND {condition}"
        ),
        "the hook waits",
    )


@contextmanager
def hook_held_up(pipeline: Pipeline, statement: str) -> Iterator[Future[None]]:
    """Run the hook, held up by what `statement` locks for as long as the block lasts."""
    with ThreadPoolExecutor(1) as pool:
        with pipeline.db.connect() as obstacle:
            obstacle.execute(statement)
            hook = pool.submit(pipeline.hook)
            hook_waits(pipeline, polls="advisory" in statement)
            yield hook
            obstacle.rollback()
        hook.result()


def test_both_pipelines_are_right_on_an_ordinary_day(pipeline: Pipeline, world: World) -> None:
    # Otherwise a story could show the naive one wrong for no reason of its own.
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    event(pipeline.db.url, world, "2025-04-01 10:15+00", agent=1, issue=1)
    gone = event(pipeline.db.url, world, "2025-04-01 12:15+00", agent=2, issue=3)
    reported = task(pipeline.db.url, world.agents[0], issue_id=world.issues[0])
    pipeline.as_history()
    pipeline.hook()
    assert not pipeline.wrong()
    upsert_usage(pipeline.db.url, reported)
    assert pipeline.wrong()
    pipeline.catch_up()
    assert not pipeline.wrong()
    pipeline.db.execute("UPDATE issue SET project_id = NULL WHERE id = %s", world.issues[0])
    pipeline.db.execute("DELETE FROM task_usage WHERE id = %s", gone)
    pipeline.db.execute("DELETE FROM issue WHERE id = %s", world.issues[1])
    upsert_usage(pipeline.db.url, reported, tokens=7)
    assert pipeline.wrong()
    pipeline.catch_up()
    pipeline.tick()
    assert not pipeline.wrong()
    pipeline.upgrade()
    assert legacy_is_gone(pipeline)
    assert not pipeline.wrong()


# At the upgrade


def test_h1_usage_of_the_last_hour_is_not_stamped_away(pipeline: Pipeline, world: World) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    pipeline.catch_up()
    # Ticks stopped fifty minutes ago; half an hour ago something was reported, as it is every day.
    with pipeline.db.connect() as connection:
        connection.execute("ALTER TABLE task_usage DISABLE TRIGGER USER")
        event(connection, world, connection.execute("SELECT now() - interval '30 minutes'").fetchone()[0])  # type: ignore[index]
        connection.execute("ALTER TABLE task_usage ENABLE TRIGGER USER")
    pipeline.stands_at("now() - interval '50 minutes'")
    pipeline.hook()
    pipeline.catch_up()
    assert shows(pipeline)


def test_h2_rows_committed_during_the_last_slice_are_not_below_the_stamp(
    pipeline: Pipeline, world: World
) -> None:
    pipeline.without_margin()
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    reported = task(pipeline.db.url, world.agents[0])
    # A slice that lasts longer than the margin: here there is none, so any slice does.
    with hook_held_up(pipeline, "LOCK TABLE task_usage_hourly IN SHARE MODE"):
        upsert_usage(pipeline.db.url, reported)
    pipeline.catch_up()
    assert shows(pipeline)


@pytest.mark.parametrize("writes", ["before_the_tick", "after_the_tick"])
def test_h3_a_writer_that_is_open_longer_than_the_margin_loses_nothing(
    pipeline: Pipeline, world: World, writes: str
) -> None:
    pipeline.without_margin()
    reported = task(pipeline.db.url, world.agents[0])
    pipeline.catch_up()
    writer = pipeline.db.connect()
    writer.execute("SELECT now()")
    if writes == "before_the_tick":
        upsert_usage(writer, reported)
    pipeline.tick()
    if writes == "after_the_tick":
        upsert_usage(writer, reported)
    writer.commit()
    pipeline.catch_up()
    assert shows(pipeline)


def test_h4_an_invalidation_that_arrives_during_the_recompute_is_not_eaten(
    pipeline: Pipeline, world: World
) -> None:
    corrected = task(pipeline.db.url, world.agents[0])
    usage(pipeline.db.url, corrected, "2025-03-01 10:15+00")
    victim = event(pipeline.db.url, world, "2025-03-01 12:15+00")
    pipeline.catch_up()
    upsert_usage(pipeline.db.url, corrected, tokens=7)

    blocker, caller = pipeline.db.connect(), pipeline.db.connect(options=BOUNDED)
    blocker.execute("SELECT FROM task_usage_hourly FOR UPDATE")
    with ThreadPoolExecutor(1) as pool:
        # To the end of the month, as the walk of the first implementation called it.
        window = pool.submit(
            caller.execute, "SELECT rollup_task_usage_hourly_window('2025-01-01', '2999-01-01')"
        )
        waits_or_is_done(pipeline, caller, window)
        pipeline.db.execute("DELETE FROM task_usage WHERE id = %s", victim)
        blocker.rollback()
        window.result()
    caller.commit()
    pipeline.catch_up()
    assert shows(pipeline)


def test_h4_a_bucket_queued_again_while_the_delete_waits_for_it_is_not_eaten(
    pipeline: Pipeline, world: World
) -> None:
    both = [event(pipeline.db.url, world, f"2025-03-01 10:{minute}+00") for minute in (15, 45)]
    pipeline.catch_up()
    pipeline.db.execute("DELETE FROM task_usage WHERE id = %s", both[0])
    requeues, caller = pipeline.db.connect(), pipeline.db.connect(options=BOUNDED)
    requeues.execute("DELETE FROM task_usage WHERE id = %s", [both[1]])
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(
            caller.execute, "SELECT rollup_task_usage_hourly_window('2025-01-01', '2999-01-01')"
        )
        waits_or_is_done(pipeline, caller, window)
        requeues.commit()
        window.result()
    caller.commit()
    pipeline.catch_up()
    assert shows(pipeline)


@pytest.mark.parametrize(
    ("created_at", "updated_at"),
    [
        ("2025-03-10 10:15+00", "2025-05-05 10:15+00"),  # corrected when no row of May exists
        ("2025-03-10 10:15+00", "2024-12-31 10:15+00"),  # before the first created_at
    ],
)
def test_h5_a_row_is_found_wherever_its_two_dates_lie(
    pipeline: Pipeline, world: World, created_at: str, updated_at: str
) -> None:
    event(pipeline.db.url, world, "2025-02-01 10:15+00")
    event(pipeline.db.url, world, created_at, updated_at)
    pipeline.as_history()
    pipeline.hook()
    pipeline.catch_up()
    assert shows(pipeline)


def test_h9_an_event_dated_in_the_future_does_not_block_the_upgrade_for_ever(
    pipeline: Pipeline, world: World
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00", "2125-01-01 00:00+00")
    pipeline.as_history()
    refusals = 0
    for _ in range(2):
        try:
            pipeline.upgrade()
        except NaiveRefusal:
            refusals += 1
    assert refusals == pipeline.expected(naive=2, ours=0)
    assert legacy_is_gone(pipeline) is pipeline.expected(naive=False, ours=True)


def legacy_is_gone(pipeline: Pipeline) -> bool:
    gone: bool = pipeline.db.value("SELECT to_regclass('public.task_usage_daily') IS NULL")
    return gone


def test_h10_a_watermark_set_by_hand_does_not_open_the_guard(pipeline: Pipeline, world: World) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    pipeline.as_history()
    pipeline.stands_at("now()")
    pipeline.upgrade()
    assert legacy_is_gone(pipeline)
    assert shows(pipeline)


def test_h10_a_missing_state_row_does_not_leave_the_pipeline_dead(pipeline: Pipeline, world: World) -> None:
    pipeline.db.execute("DELETE FROM task_usage_hourly_rollup_state")
    pipeline.upgrade()
    assert legacy_is_gone(pipeline)
    upsert_usage(pipeline.db.url, task(pipeline.db.url, world.agents[0]))
    pipeline.catch_up()
    assert shows(pipeline)


def test_h15_a_walk_that_was_stopped_does_not_redo_its_slices(pipeline: Pipeline, world: World) -> None:
    for month in range(1, 5):
        event(pipeline.db.url, world, f"2025-0{month}-10 10:15+00")
    slices_of(pipeline.db, 1)
    pipeline.as_history()
    # A key of March that somebody else has inserted and not committed.
    in_the_way = (
        "INSERT INTO task_usage_hourly"
        " (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)"
        " SELECT '2025-03-10 10:00+00', a.workspace_id, q.runtime_id, q.agent_id, i.project_id,"
        " tu.provider, tu.model FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id"
        " JOIN agent a ON a.id = q.agent_id JOIN issue i ON i.id = q.issue_id LIMIT 1"
    )
    versions = (
        "SELECT xmin::text FROM task_usage_hourly WHERE bucket_hour < '2025-03-01' ORDER BY bucket_hour"
    )
    with pytest.raises(Exception, match="canceling statement"), hook_held_up(pipeline, in_the_way):
        pipeline.db.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name IN ('usage-rollup', 'naive hook')"
        )
    finished = pipeline.db.execute(versions)
    assert len(finished) == 2
    pipeline.hook()
    assert not pipeline.wrong()
    assert (pipeline.db.execute(versions) == finished) is pipeline.expected(naive=False, ours=True)


def test_h16_an_index_may_be_built_concurrently_while_the_hook_waits_for_its_lock(
    pipeline: Pipeline, world: World
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    holder = pipeline.db.connect(autocommit=True)
    holder.execute("SET deadlock_timeout = '50ms'")
    holder.execute("SELECT pg_advisory_lock(4246)")
    deadlock = False
    with ThreadPoolExecutor(1) as pool:
        hook = pool.submit(pipeline.hook)
        hook_waits(pipeline, polls=True)
        try:
            holder.execute("CREATE INDEX CONCURRENTLY idx_by_hand ON task_usage (model)")
        except errors.DeadlockDetected:
            deadlock = True
        holder.close()
        hook.result()
    assert deadlock is pipeline.expected(naive=True, ours=False)


def test_h17_what_arrives_while_the_walk_waits_for_its_lock_is_walked_too(
    pipeline: Pipeline, world: World
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    with hook_held_up(pipeline, "SELECT pg_advisory_xact_lock(4246)"):
        event(pipeline.db.url, world, "2025-05-01 10:15+00")
        pipeline.as_history()
    pipeline.catch_up()
    assert shows(pipeline)


def test_h23_totals_whose_raw_rows_are_gone_are_not_dropped(pipeline: Pipeline, world: World) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    pipeline.db.execute("SELECT rollup_task_usage_daily_window('-infinity', 'infinity')")
    pipeline.db.execute(
        "ALTER TABLE task_usage DISABLE TRIGGER USER; DELETE FROM task_usage;"
        " ALTER TABLE task_usage ENABLE TRIGGER USER"
    )
    pipeline.as_history()
    pipeline.upgrade()
    kept = "SELECT count(*) FROM pg_class WHERE relname = 'task_usage_daily'"
    assert pipeline.db.value(kept) == pipeline.expected(naive=0, ours=1)


def test_h26_a_run_killed_between_103_and_its_ledger_row_can_be_repeated(
    pipeline: Pipeline, world: World
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    pipeline.as_history()
    refused = False
    try:
        pipeline.upgrade_again_after_a_crash_between_103_and_its_ledger_row()
    except errors.UndefinedTable:
        refused = True
    assert refused is pipeline.expected(naive=True, ours=False)


# In the pipeline


def test_h6_what_nobody_has_processed_is_not_pruned(pipeline: Pipeline, world: World) -> None:
    victim = event(pipeline.db.url, world, "2025-03-01 10:15+00")
    pipeline.catch_up()
    pipeline.db.execute("DELETE FROM task_usage WHERE id = %s", victim)
    # The tick is a month behind; the deletion was queued eight days ago.
    pipeline.age_the_queue(days=8)
    pipeline.stands_at("now() - interval '30 days'")
    pipeline.tick()
    pipeline.catch_up()
    assert shows(pipeline)


def test_h7_a_cancelled_tick_does_not_keep_the_lock(pipeline: Pipeline, world: World) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    blocker = pipeline.db.connect()
    blocker.execute("LOCK TABLE task_usage_hourly")
    pooled = pipeline.db.connect(autocommit=True, options=BOUNDED)
    with ThreadPoolExecutor(1) as pool:
        tick = pool.submit(pooled.execute, "SELECT rollup_task_usage_hourly()")
        waits_or_is_done(pipeline, pooled, tick)
        pooled.cancel()
        with pytest.raises(errors.QueryCanceled):
            tick.result()
    blocker.rollback()
    free = pipeline.db.value("SELECT pg_try_advisory_lock(4246)")
    assert free is pipeline.expected(naive=False, ours=True)


def test_h8_a_new_pipeline_does_not_tick_through_the_years_since_1970(
    pipeline: Pipeline, world: World
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    pipeline.as_history()
    for _ in range(3):
        pipeline.tick()
    behind = pipeline.db.value(
        "SELECT watermark_at < now() - interval '1 hour' FROM task_usage_hourly_rollup_state"
    )
    assert behind is pipeline.expected(naive=True, ours=False)
    assert shows(pipeline)


@pytest.mark.parametrize(
    "deletion",
    [
        "DELETE FROM agent WHERE id = %(agent)s",
        "DELETE FROM workspace WHERE id = %(workspace)s",
        "TRUNCATE task_usage",
    ],
)
def test_h11_what_a_cascade_deletes_leaves_the_rollup(
    pipeline: Pipeline, world: World, deletion: str
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00", issue=None)
    event(pipeline.db.url, world, "2025-03-01 11:15+00", agent=2, issue=3)
    pipeline.catch_up()
    with pipeline.db.connect() as connection:
        parameters = {"agent": world.agents[0], "workspace": world.workspaces[0]}
        connection.execute(deletion, parameters if "%" in deletion else None)
    pipeline.catch_up()
    assert shows(pipeline)


# What changes the bucket of a report, or its sums, by a way that the naive triggers do not see.
CHANGES = {
    "issue_of_another_workspace_moves": "UPDATE issue SET project_id = NULL WHERE id = %(foreign_issue)s",
    "agent_moves": "UPDATE agent SET workspace_id = %(workspace)s WHERE id = %(agent)s",
    "task_moves": "UPDATE agent_task_queue SET agent_id = %(other_agent)s WHERE id = %(task)s",
    "model_renamed": "UPDATE task_usage SET model = 'renamed' WHERE task_id = %(task)s",
    "created_at_corrected": "UPDATE task_usage SET created_at = created_at - interval '1 day'"
    " WHERE task_id = %(task)s",
    "tokens_without_updated_at": "UPDATE task_usage SET input_tokens = 7 WHERE task_id = %(task)s",
    "restored_with_its_old_date": "INSERT INTO task_usage (task_id, model, created_at, updated_at)"
    " VALUES (%(task)s, 'restored', '2025-02-01', '2025-02-01')",
}


@pytest.mark.parametrize("change", CHANGES)
def test_h12_every_change_of_key_or_sum_is_seen(pipeline: Pipeline, world: World, change: str) -> None:
    reported = task(pipeline.db.url, world.agents[0], issue_id=world.issues[3])
    usage(pipeline.db.url, reported, "2025-03-01 10:15+00")
    pipeline.catch_up()
    with pipeline.db.connect() as connection:
        connection.execute(
            CHANGES[change],
            {
                "foreign_issue": world.issues[3],
                "workspace": world.workspaces[1],
                "agent": world.agents[0],
                "other_agent": world.agents[1],
                "task": reported,
            },
        )
    assert pipeline.wrong()
    pipeline.catch_up()
    assert shows(pipeline)


def test_h13_two_transactions_that_touch_the_same_buckets_do_not_deadlock(
    pipeline: Pipeline, world: World
) -> None:
    rows = {
        (hour, number): event(pipeline.db.url, world, f"2025-03-01 {hour}:15+00")
        for hour in (10, 11)
        for number in (1, 2)
    }
    pipeline.catch_up()
    # The legacy triggers have the same fault; they are gone after 103.
    for trigger in ("trg_tu_dirty_rollup", "trg_tu_dirty_dashboard"):
        pipeline.db.execute(f"DROP TRIGGER {trigger} ON task_usage")
    delete = "DELETE FROM task_usage WHERE id = %s"
    one, other = (
        pipeline.db.connect(options=f"{BOUNDED} -c deadlock_timeout=50ms"),
        pipeline.db.connect(options=f"{BOUNDED} -c deadlock_timeout=50ms"),
    )
    one.execute(delete, [rows[10, 1]])
    other.execute(delete, [rows[11, 1]])
    victims = 0
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(one.execute, delete, [rows[11, 2]])
        waits_or_is_done(pipeline, one, first)
        second = pool.submit(other.execute, delete, [rows[10, 2]])
        for session, deletion in ((other, second), (one, first)):
            try:
                deletion.result()
                session.commit()
            except errors.DeadlockDetected:
                victims += 1
                session.rollback()
    assert victims == pipeline.expected(naive=1, ours=0)


def test_h13_an_idle_transaction_does_not_freeze_the_tick(pipeline: Pipeline, world: World) -> None:
    both = [event(pipeline.db.url, world, f"2025-03-01 10:{minute}+00") for minute in (15, 45)]
    pipeline.catch_up()
    pipeline.db.execute("DELETE FROM task_usage WHERE id = %s", both[0])
    pipeline.age_the_queue(days=1)
    pipeline.stands_at("now() - interval '10 minutes'")
    idle = pipeline.db.connect()
    idle.execute("DELETE FROM task_usage WHERE id = %s", [both[1]])
    frozen = False
    caller = pipeline.db.connect(autocommit=True, options=BOUNDED)
    if pipeline.naive:
        caller.execute("SET lock_timeout = '500ms'")
    try:
        caller.execute("SELECT rollup_task_usage_hourly()")
    except errors.LockNotAvailable:
        frozen = True
    idle.rollback()
    assert frozen is pipeline.expected(naive=True, ours=False)


def rows_read(pipeline: Pipeline, history: int) -> int:
    """Add `history` tasks with usage, all of one agent, and count what one changed row costs to roll up."""
    world = small_world(pipeline.db.url)
    with pipeline.db.connect() as connection:
        connection.execute(
            "WITH t AS (INSERT INTO agent_task_queue (agent_id, runtime_id, status, created_at)"
            " SELECT %s, %s, 'completed', '2025-03-01'::timestamptz + n * interval '10 minutes'"
            " FROM generate_series(1, %s::int) AS n RETURNING id, created_at)"
            " INSERT INTO task_usage (task_id, model, created_at, updated_at)"
            " SELECT id, 'm', created_at, created_at FROM t",
            [world.agents[0], world.runtimes[0], history],
        )
    pipeline.catch_up()
    with pipeline.db.connect() as connection:
        upsert_usage(connection, task(connection, world.agents[0]))
    pipeline.db.connect(autocommit=True).execute("ANALYZE")
    with pipeline.db.connect() as connection:
        connection.execute(
            "SELECT rollup_task_usage_hourly_window(watermark_at, now()) FROM task_usage_hourly_rollup_state"
        )
        row = connection.execute(
            "SELECT sum(COALESCE(seq_tup_read, 0) + COALESCE(idx_tup_fetch, 0))::bigint"
            " FROM pg_stat_xact_user_tables WHERE relname IN ('task_usage', 'agent_task_queue')"
        ).fetchone()
    assert row is not None
    read: int = row[0]
    return read


def test_h14_the_cost_of_a_tick_does_not_grow_with_history(pipeline: Pipeline) -> None:
    short, long = rows_read(pipeline, 1000), rows_read(pipeline, 8000)
    grew = long > short + 4000
    assert grew is pipeline.expected(naive=True, ours=False), (short, long)


def test_h18_one_absurd_row_does_not_stop_the_usage_of_everybody_else(
    pipeline: Pipeline, world: World
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    event(pipeline.db.url, world, "2025-03-01 10:20+00")
    pipeline.db.execute(
        f"UPDATE task_usage SET model = '{LONG_MODEL}' WHERE created_at > '2025-03-01 10:18+00'"
    )
    pipeline.as_history()
    stopped = False
    try:
        pipeline.hook()
    except errors.ProgramLimitExceeded:
        stopped = True
    assert stopped is pipeline.expected(naive=True, ours=False)
    others = pipeline.db.value("SELECT count(*) FROM task_usage_hourly WHERE agent_id = %s", world.agents[2])
    assert others == pipeline.expected(naive=0, ours=1)


def test_h18_a_sum_beyond_bigint_does_not_stop_the_tick(pipeline: Pipeline, world: World) -> None:
    for minute in (15, 20):
        event(pipeline.db.url, world, f"2025-03-01 10:{minute}+00", tokens=2**62 + 1)
    event(pipeline.db.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    stopped = False
    try:
        pipeline.catch_up()
    except errors.NumericValueOutOfRange:
        stopped = True
    assert stopped is pipeline.expected(naive=True, ours=False)
    others = pipeline.db.value("SELECT count(*) FROM task_usage_hourly WHERE agent_id = %s", world.agents[2])
    assert others == pipeline.expected(naive=0, ours=1)


def test_h19_a_function_of_the_same_name_does_not_file_usage_under_1970(
    pipeline: Pipeline, world: World
) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:15+00")
    pipeline.db.execute(
        "CREATE SCHEMA hostile; CREATE FUNCTION hostile.date_trunc(text, timestamptz) RETURNS timestamptz"
        " LANGUAGE sql AS 'SELECT timestamptz ''epoch'''; CREATE FUNCTION hostile.date_trunc(text, timestamp)"
        " RETURNS timestamp LANGUAGE sql AS 'SELECT timestamp ''epoch'''"
    )
    session = pipeline.db.connect()
    session.execute("SET search_path = hostile, pg_catalog, public")
    session.commit()
    pipeline.catch_up(session)
    in_1970 = pipeline.db.value("SELECT count(*) FROM task_usage_hourly WHERE bucket_hour = 'epoch'")
    assert in_1970 == pipeline.expected(naive=1, ours=0)
    assert shows(pipeline)


def test_h20_the_time_zone_of_the_session_does_not_cut_the_hours(pipeline: Pipeline, world: World) -> None:
    event(pipeline.db.url, world, "2025-03-01 10:05+00")
    session = pipeline.db.connect()
    session.execute("SET TimeZone = 'Asia/Kathmandu'")
    session.commit()
    pipeline.catch_up(session)
    assert pipeline.db.value("SELECT bucket_hour FROM task_usage_hourly") == pipeline.expected(
        naive=datetime(2025, 3, 1, 9, 15, tzinfo=UTC), ours=datetime(2025, 3, 1, 10, tzinfo=UTC)
    )
    assert shows(pipeline)


def test_h22_lag_says_stale_while_the_watermark_stands_in_1970(pipeline: Pipeline, world: World) -> None:
    upsert_usage(pipeline.db.url, task(pipeline.db.url, world.agents[0]))
    pipeline.db.execute(
        "UPDATE task_usage_hourly_rollup_state SET last_run_started_at = now(), last_run_finished_at = now()"
    )
    fresh = pipeline.db.value("SELECT task_usage_hourly_rollup_lag_seconds() < 3600")
    assert fresh is pipeline.expected(naive=True, ours=False)


def test_h24_an_older_snapshot_does_not_overwrite_a_newer_result(pipeline: Pipeline, world: World) -> None:
    moved = task(pipeline.db.url, world.agents[0], issue_id=world.issues[0])
    usage(pipeline.db.url, moved, "2025-03-01 10:15+00")
    pipeline.db.execute(WINDOW)
    older = pipeline.db.connect()
    older.isolation_level = IsolationLevel.REPEATABLE_READ
    older.execute("SELECT FROM workspace")
    pipeline.db.execute("UPDATE issue SET project_id = NULL WHERE id = %s", world.issues[0])
    pipeline.db.execute(WINDOW)
    try:
        older.execute(WINDOW)
        older.commit()
    except errors.SerializationFailure:
        older.rollback()  # for the caller to try again
    pipeline.stands_at("now()")
    pipeline.catch_up()
    assert shows(pipeline)


def test_h25_a_report_that_races_a_move_ends_under_the_new_key(pipeline: Pipeline, world: World) -> None:
    reported = task(pipeline.db.url, world.agents[0], issue_id=world.issues[0])
    pipeline.catch_up()
    mover = pipeline.db.connect()
    mover.execute("UPDATE issue SET project_id = NULL WHERE id = %s", [world.issues[0]])
    upsert_usage(pipeline.db.url, reported)
    pipeline.catch_up()
    mover.commit()
    pipeline.catch_up()
    assert shows(pipeline)


# The table of traps, cures and their tests

CORRECTNESS = ROOT / "docs" / "correctness.md"


def test_correctness_table_names_tests_that_exist_for_every_trap_and_invariant() -> None:
    text = CORRECTNESS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([HI]\d+) \|.*$", text, re.MULTILINE)
    assert rows == [*(f"I{n}" for n in (*range(1, 12), 13, 14)), *(f"H{n}" for n in range(1, 27))]
    for row in re.findall(r"^\| [HI]\d+ \|.*$", text, re.MULTILINE):
        assert "::test_" in row, row

    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert named
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        source = path.read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file}::{test}"


def test_every_story_of_the_naive_pipeline_is_in_the_table() -> None:
    text = CORRECTNESS.read_text(encoding="utf-8")
    stories = re.findall(r"^def (test_h\d+_\w+)\(", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(stories) > 26
    assert [story for story in stories if f"::{story}`" not in text] == []
