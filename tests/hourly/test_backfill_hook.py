"""The hook before 103: what it does to each kind of database, what a crash leaves, what it refuses."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.database import Database
from tests.support.deadline import DEADLINE_S
from tests.support.horizon import HORIZON, named_at_once, rewrite_function, without_margin
from tests.support.product import event, small_world, task, upsert_usage, usage, utc, wait_until
from tests.support.rollup import corrupt, queued, row_versions, run_hook, wrong_hours
from tests.support.sessions import is_idle
from tests.support.terminal import on_a_terminal
from tests.support.walks import (
    advisory_locks,
    blocked_at,
    committed_months,
    runners,
    slices,
    slices_of,
    wait_until_blocked,
    waiters,
)
from usage_rollup.contract import HOURLY_ROLLUP, MIGRATION_RUN
from usage_rollup.errors import BackfillRefused, LockBusy
from usage_rollup.hourly.backfill import Backfill
from usage_rollup.session import advisory_lock

JANUARY, MARCH, APRIL = utc(2025, 1, 1), utc(2025, 3, 1), utc(2025, 4, 1)


def watermark(database: Database) -> datetime:
    found: datetime = database.value("SELECT watermark_at FROM task_usage_hourly_rollup_state")
    return found


def now(database: Database) -> datetime:
    read: datetime = database.value("SELECT clock_timestamp()")
    return read


def buckets(database: Database) -> list[tuple[datetime, int]]:
    return [
        (row[0], row[1])
        for row in database.execute(
            "SELECT bucket_hour, sum(event_count)::int FROM task_usage_hourly GROUP BY 1 ORDER BY 1"
        )
    ]


def events(database: Database) -> int:
    total: int = database.value("SELECT COALESCE(sum(event_count), 0)::int FROM task_usage_hourly")
    return total


@pytest.mark.parametrize("dated", ["1960-01-01 00:00+00", "-infinity", "2200-01-01 00:00+00", "infinity"])
def test_usage_older_than_102_whose_date_no_tick_comes_to_is_told_and_rolled_up_by_the_upgrade(
    v034: Database, dated: str
) -> None:
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:20+00")
    event(v034.url, world, "2025-04-01 10:20+00")
    v034.execute("UPDATE task_usage SET updated_at = created_at")
    v034.execute(f"UPDATE task_usage SET updated_at = '{dated}' WHERE created_at < '{APRIL}'")
    v034.upgrade("102")
    while watermark(v034) < now(v034) - timedelta(hours=1):
        v034.execute("SELECT rollup_task_usage_hourly()")
    assert events(v034) == 1
    verified = v034.usage_rollup("verify")
    assert verified.returncode == 3
    assert "hours that differ: 1; mend them: usage-rollup backfill --repair" in verified.stdout
    v034.upgrade()
    assert events(v034) == 2
    assert v034.usage_rollup("verify").returncode == 0


def versions(database: Database, where: str = "true") -> Sequence[tuple[Any, ...]]:
    """Return the row versions of the hourly table: a row written again is another version."""
    return database.execute(f"SELECT bucket_hour, ctid, xmin FROM task_usage_hourly WHERE {where} ORDER BY 2")


def with_older_transactions(database: Database) -> None:
    """Make every open transaction look two hours older than it is."""
    rewrite_function(
        database,
        HORIZON,
        "interval '5 minutes', v_oldest)",
        "interval '5 minutes', v_oldest - interval '2 hours')",
    )


@pytest.fixture
def used(at_102: Database) -> Database:
    """Return a database at 102 with five events of January to April 2025: four hours, three slices."""
    with at_102.connect() as connection:
        world = small_world(connection)
        event(connection, world, "2025-01-10 10:20+00")
        event(connection, world, "2025-01-10 10:40+00", agent=1)
        event(connection, world, "2025-01-20 00:00+00", agent=2, issue=3)
        event(connection, world, "2025-03-31 23:59:59+00", None, issue=2)
        event(connection, world, "2025-04-01 00:00+00", "2025-06-01 12:00+00", issue=None)
    slices_of(at_102, 2)
    return at_102


# ---------------------------------------------------------------------------------------------
# Why it does not walk
# ---------------------------------------------------------------------------------------------


def test_without_a_state_table_the_hook_leaves_it_to_the_guard(used: Database) -> None:
    used.execute("DROP TABLE task_usage_hourly_rollup_state")
    assert run_hook(used) == Backfill(skipped="rollup_state_missing")
    assert events(used) == 0


def test_missing_state_row_is_put_back_and_the_history_walked(used: Database) -> None:
    used.execute("DELETE FROM task_usage_hourly_rollup_state")
    assert run_hook(used).rows == 5
    assert watermark(used) > utc(2025, 6, 1)


# The second is how the field writes it: with what the Go server's pool reads and libpq rejects.
@pytest.mark.parametrize("parameters", ["", "&pool_max_conns=4"])
def test_watermark_in_the_future_is_refused_with_a_command_that_mends_it(
    used: Database, parameters: str
) -> None:
    url = used.url + parameters
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 minute'")
    before = row_versions(used)
    printed = used.refused(DATABASE_URL=url)
    assert "lies in the future" in printed
    assert row_versions(used) == before

    command = re.search(r"HINT: (UPDATE .*); the next upgrade", printed)
    assert command is not None, printed
    used.execute(command[1])
    used.upgrade(DATABASE_URL=url)
    assert events(used) == 5


def test_watermark_of_minus_infinity_walks_the_whole_history(used: Database) -> None:
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = '-infinity'")
    assert run_hook(used).rows == 5
    assert watermark(used) > utc(2025, 6, 1)


def test_missing_state_row_is_put_back_without_usage_too(at_102: Database) -> None:
    at_102.execute("DELETE FROM task_usage_hourly_rollup_state")
    assert run_hook(at_102) == Backfill(skipped="task_usage_empty")
    assert watermark(at_102) > utc(2025, 6, 1)


def test_without_usage_the_watermark_moves_to_the_horizon(at_102: Database) -> None:
    before = now(at_102)
    assert run_hook(at_102) == Backfill(skipped="task_usage_empty")
    assert before <= watermark(at_102) + timedelta(minutes=5) <= now(at_102)


def test_without_usage_the_watermark_does_not_pass_an_open_transaction(at_102: Database) -> None:
    without_margin(at_102)
    writer = at_102.connect()
    event(writer, small_world(writer))
    assert run_hook(at_102) == Backfill(skipped="task_usage_empty")
    began = writer.execute("SELECT now()").fetchone()
    writer.commit()
    # The trap: by the clock alone the watermark would have passed what was still to be committed.
    assert (watermark(at_102),) == began
    at_102.execute("SELECT rollup_task_usage_hourly()")
    assert events(at_102) == 1


def test_without_usage_nobody_has_to_wait_for_a_horizon(at_102: Database) -> None:
    rewrite_function(at_102, HORIZON, "v_start + p_wait", "v_start")
    gid = f"forgotten {uuid.uuid4()}"
    with at_102.connect(autocommit=True) as session:
        session.execute("BEGIN")
        event(session, small_world(session))
        session.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        assert at_102.value("SELECT task_usage_hourly_horizon('0 s') = '-infinity'")
        assert run_hook(at_102) == Backfill(skipped="task_usage_empty")
        assert watermark(at_102) == utc(1970, 1, 1)
    finally:
        at_102.execute(f"COMMIT PREPARED '{gid}'")


def test_usage_emptied_after_a_killed_walk_leaves_no_plan_behind(used: Database) -> None:
    used.execute("SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', 1)")
    used.execute("SELECT rollup_task_usage_hourly_slice()")
    used.execute("TRUNCATE task_usage")
    run_hook(used)
    assert events(used) == 0
    assert used.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0
    assert watermark(used) > utc(2025, 6, 1)


def test_watermark_within_an_hour_is_left_alone_and_nothing_is_lost_below_it(used: Database) -> None:
    run_hook(used)
    # As after ticks that have stopped 50 minutes ago: half an hour ago something was reported. A
    # restored watermark is a lower one, which is always true.
    with used.connect() as connection:
        event(connection, small_world(connection))
        connection.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly_write")
        connection.execute(
            "UPDATE task_usage SET created_at = now() - interval '30 minutes',"
            " updated_at = now() - interval '30 minutes' WHERE created_at = now()"
        )
        connection.execute("ALTER TABLE task_usage ENABLE TRIGGER trg_tu_dirty_hourly_write")
        connection.execute(
            "UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '50 minutes'"
        )
    before = row_versions(used)
    assert run_hook(used) == Backfill(skipped="watermark_within_threshold")
    assert row_versions(used) == before

    assert events(used) == 5
    used.execute("SELECT rollup_task_usage_hourly()")
    assert events(used) == 6


@pytest.mark.parametrize(("lag", "walks"), [("1 hour", False), ("1 hour 1 second", True)])
def test_watermark_may_trail_the_newest_event_by_exactly_an_hour(
    used: Database, lag: str, walks: bool
) -> None:
    run_hook(used)
    used.execute(
        "UPDATE task_usage_hourly_rollup_state"
        " SET watermark_at = (SELECT max(updated_at) FROM task_usage) - %s::interval",
        lag,
    )
    assert (run_hook(used).skipped is None) == walks


def test_repair_that_was_interrupted_is_gone_on_with_though_the_watermark_is_fresh(used: Database) -> None:
    run_hook(used)
    used.execute("UPDATE task_usage_hourly SET input_tokens = 0 WHERE bucket_hour < '2025-02-01 00:00+00'")
    used.execute("SELECT rollup_task_usage_hourly_plan_repair(1)")
    assert run_hook(used) == Backfill(
        slices=2, rows=3, from_=utc(2025, 1, 10, 10), to=utc(2025, 1, 20, 1), sessions=1
    )


def test_what_is_queued_is_rolled_up_though_there_is_nothing_to_walk(used: Database) -> None:
    run_hook(used)
    used.execute("UPDATE task_usage SET input_tokens = 7 WHERE created_at < '2025-01-15 00:00+00'")
    assert queued(used) > 0
    assert run_hook(used) == Backfill(skipped="watermark_within_threshold")
    assert queued(used) == 0
    assert used.value("SELECT count(*) FROM task_usage_hourly WHERE input_tokens = 7") == 2


# ---------------------------------------------------------------------------------------------
# The walk
# ---------------------------------------------------------------------------------------------


def test_walk_takes_slices_of_so_many_rows_and_skips_hours_without_events(used: Database) -> None:
    before = now(used)
    assert run_hook(used) == Backfill(
        slices=3, rows=5, from_=utc(2025, 1, 10), to=utc(2025, 4, 2), repaired_hours=0, sessions=1
    )
    assert buckets(used) == [
        (utc(2025, 1, 10, 10), 2),
        (utc(2025, 1, 20), 1),
        (utc(2025, 3, 31, 23), 1),
        (utc(2025, 4, 1), 1),
    ]
    assert before <= watermark(used) + timedelta(minutes=5) <= now(used)
    assert used.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0


def test_slice_ends_where_its_row_budget_does_but_never_inside_an_hour(
    used: Database,
) -> None:
    slices_of(used, 1)
    done = run_hook(used)
    assert (done.slices, done.rows, done.repaired_hours) == (4, 5, 0)


def test_every_slice_is_committed_on_its_own(used: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        with blocked_at(used, APRIL):
            hook = pool.submit(run_hook, used)
            wait_until_blocked(used)
            assert committed_months(used) == [JANUARY, MARCH]
            assert used.execute(
                "SELECT from_hour FROM task_usage_hourly_backfill WHERE walked_at IS NULL"
            ) == [(APRIL,)]
            assert watermark(used) == utc(1970, 1, 1)
        assert hook.result().slices == 3
    assert committed_months(used) == [JANUARY, MARCH, APRIL]


def test_killed_walk_resumes_without_redoing_finished_slices(used: Database) -> None:
    with blocked_at(used, MARCH):
        runner = used.spawn("alembic", "upgrade", "head")
        wait_until_blocked(used)
        finished = versions(used)
        assert [hour for hour, *_ in finished] == [utc(2025, 1, 10, 10)] * 2
        runner.kill()
        printed, _ = runner.communicate(timeout=DEADLINE_S)
        assert runner.returncode != 0
        assert "Traceback" not in printed
    assert used.revision == "102"
    assert watermark(used) == utc(1970, 1, 1)

    printed = used.upgrade()
    assert "resuming the backfill" in printed
    # Where that brings it up to date, no other walk is planned.
    assert printed.count("usage rows to walk") == 1
    assert slices(printed) == 2
    assert versions(used, "bucket_hour < '2025-01-15 00:00+00'") == finished
    assert events(used) == 5
    assert used.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0
    assert used.revision == "104"


def test_walk_that_was_interrupted_long_ago_is_followed_by_one_for_what_came_since(used: Database) -> None:
    used.execute("SELECT rollup_task_usage_hourly_plan('2025-02-01 00:00+00', 2)")
    used.execute("SELECT rollup_task_usage_hourly_slice()")
    # The slices that were left, then the days of what came after February began.
    assert run_hook(used) == Backfill(
        slices=3, rows=5, from_=utc(2025, 1, 20), to=utc(2025, 4, 2), repaired_hours=0, sessions=1
    )
    assert watermark(used) > utc(2025, 6, 1)
    assert events(used) == 5


def test_walk_loses_nothing_of_a_transaction_that_was_open_when_it_began(used: Database) -> None:
    without_margin(used)
    writer = used.connect()
    # A report for January, whose slice is over when it commits, and one for today.
    january = used.value("SELECT task_id FROM task_usage WHERE created_at = '2025-01-20 00:00+00'")
    upsert_usage(writer, january, tokens=7)
    event(writer, small_world(writer))
    began = writer.execute("SELECT now()").fetchone()
    with ThreadPoolExecutor(1) as pool:
        with blocked_at(used, MARCH):
            hook = pool.submit(run_hook, used)
            wait_until_blocked(used)
            writer.commit()
        hook.result()
    # The trap: both are missing, and the clock has passed them.
    assert events(used) == 5
    assert (watermark(used),) == began
    used.execute("SELECT rollup_task_usage_hourly()")
    assert events(used) == 6
    assert used.value("SELECT input_tokens FROM task_usage_hourly WHERE bucket_hour = '2025-01-20'") == 7


STRANGE_DATES = [
    ("2025-03-01 10:00+00", "2025-05-01 10:00+00"),  # corrected when the newest row was March's
    ("2025-02-01 10:00+00", None),
    ("2025-02-02 10:00+00", "2024-12-31 10:00+00"),  # before the first created_at
    ("1999-12-31 23:00+00", "2025-05-01 10:00+00"),
    ("1969-07-20 20:17+00", "1969-07-20 20:17+00"),  # before the watermark of an empty rollup
    ("2025-02-03 10:00+00", "infinity"),
    ("2025-02-04 10:00+00", "-infinity"),
    ("2025-02-05 10:00+00", "2125-01-01 00:00+00"),
    ("2125-01-01 00:00+00", "2125-01-01 00:00+00"),
    ("2126-01-01 00:00+00", None),
    ("2126-01-02 00:00+00", "2025-02-01 00:00+00"),
]


def test_rows_with_strange_dates_are_rolled_up(v034: Database) -> None:
    with v034.connect() as connection:
        world = small_world(connection)
        for created_at, updated_at in STRANGE_DATES:
            event(connection, world, created_at, updated_at)
        # These belong to no hour, and must stop nobody.
        event(connection, world, "infinity", "infinity")
        event(connection, world, "-infinity", None)
    v034.upgrade()
    assert events(v034) == len(STRANGE_DATES)


@pytest.mark.parametrize(
    "updated_at", ["infinity", "-infinity", "2125-01-01 00:00+00", "1960-01-01 00:00+00"]
)
def test_row_with_a_strange_date_is_rolled_up_when_there_is_no_other(v034: Database, updated_at: str) -> None:
    event(v034.url, small_world(v034.url), "2025-03-01 10:00+00", updated_at)
    v034.upgrade()
    assert events(v034) == 1


# Years that PostgreSQL stores and Python's datetime does not, and the two ends of PostgreSQL's own.
@pytest.mark.parametrize(
    "created_at",
    ["20250-03-01 10:00+00", "0044-03-15 10:00+00 BC", "294276-12-31 23:30+00", "4714-11-24 00:10+00 BC"],
)
def test_row_from_an_impossible_year_stops_nobody(v034: Database, created_at: str) -> None:
    with v034.connect() as connection:
        world = small_world(connection)
        event(connection, world, created_at, None)
        event(connection, world, "2025-03-01 10:00+00")
    v034.upgrade()
    assert v034.value(
        "SELECT sum(event_count) FROM task_usage_hourly WHERE bucket_hour = '2025-03-01 10:00+00'"
    )


def test_walk_behind_a_watermark_reads_only_the_days_it_has_not_passed(used: Database) -> None:
    run_hook(used)
    untouched = versions(used, "bucket_hour < '2025-04-01 00:00+00'")
    # As the server would have written them in July: it went by time, so it queued nothing.
    with used.connect() as connection:
        world = small_world(connection)
        connection.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly_write")
        connection.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = '2025-07-01 00:00+00'")
        connection.execute(
            "UPDATE task_usage SET input_tokens = 7, updated_at = '2025-07-15 00:00+00'"
            " WHERE created_at = '2025-04-01 00:00+00'"
        )
        event(connection, world, "2025-07-20 05:30+00", None)
        event(connection, world, "2025-08-01 00:00+00", "2025-07-10 00:00+00")
        event(connection, world, "2024-01-01 00:00+00", "2025-07-16 00:00+00")
        event(connection, world, "2025-05-05 00:00+00", "infinity")
        connection.execute("ALTER TABLE task_usage ENABLE TRIGGER trg_tu_dirty_hourly_write")
    # Found by the walk, not by the proof after it.
    assert run_hook(used) == Backfill(
        slices=5, rows=5, from_=utc(2024, 1, 1), to=utc(2025, 8, 2), repaired_hours=0, sessions=1
    )
    assert versions(used, "bucket_hour BETWEEN '2025-01-01 00:00+00' AND '2025-03-31 23:00+00'") == untouched
    assert events(used) == 9


# ---------------------------------------------------------------------------------------------
# The proof
# ---------------------------------------------------------------------------------------------


def test_proof_finds_and_heals_a_watermark_set_by_hand_over_an_empty_rollup(used: Database) -> None:
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now()")
    used.execute("TRUNCATE task_usage_hourly_invalidation")
    set_by_hand = watermark(used)
    assert run_hook(used) == Backfill(skipped="watermark_within_threshold", repaired_hours=4)
    assert events(used) == 5
    assert watermark(used) == set_by_hand


def test_proof_removes_buckets_without_raw_rows(used: Database) -> None:
    run_hook(used)
    # One alone in its hour, before everything; one beside a right one.
    used.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT hour, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'claude', 'gone'"
        " FROM unnest(ARRAY['2001-01-01 00:00+00', '2025-01-20 00:00+00']::timestamptz[]) AS hour"
    )
    right = versions(used, "model <> 'gone'")
    assert run_hook(used) == Backfill(skipped="watermark_within_threshold", repaired_hours=2)
    assert versions(used) == right


def test_killed_repair_resumes(used: Database) -> None:
    run_hook(used)
    proven = watermark(used)
    corrupt(used, "bucket_hour < '2025-04-01 00:00+00'")
    assert used.value("SELECT rollup_task_usage_hourly_plan_repair(1)") == 3
    used.execute("SELECT rollup_task_usage_hourly_slice()")
    assert run_hook(used).repaired_hours == 0
    assert wrong_hours(used) == []
    assert watermark(used) == proven


def test_rollup_that_cannot_be_healed_stops_the_upgrade_at_102(used: Database) -> None:
    used.execute(
        "CREATE FUNCTION falsify() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.input_tokens := NEW.input_tokens + 1; RETURN NEW; END$$;"
        "CREATE TRIGGER falsify BEFORE INSERT OR UPDATE ON task_usage_hourly"
        " FOR EACH ROW EXECUTE FUNCTION falsify()"
    )
    with pytest.raises(BackfillRefused):
        run_hook(used)
    printed = used.refused()
    assert "hours of the hourly rollup that still differ from raw usage after recomputing: 4" in printed
    assert used.revision == "102"
    assert used.value("SELECT to_regclass('public.task_usage_daily') IS NOT NULL")
    # The hint is a statement that names them.
    hint = re.search(r"HINT: (SELECT \S+)", printed)
    assert hint is not None, printed
    assert len(used.execute(hint[1])) == 4

    used.execute("DROP TRIGGER falsify ON task_usage_hourly")
    used.upgrade()
    assert events(used) == 5


# ---------------------------------------------------------------------------------------------
# Advisory lock 4246
# ---------------------------------------------------------------------------------------------


def test_holder_of_4246_is_named_when_the_deadline_has_passed(at_102: Database) -> None:
    holder = at_102.connect(autocommit=True, application_name="a stuck tick")
    holder.execute("SELECT pg_advisory_lock(4246)")
    with at_102.migration_connection() as connection:
        with pytest.raises(LockBusy) as caught:
            advisory_lock.acquire(connection, HOURLY_ROLLUP, patience_s=0.2)
        assert is_idle(connection)
    message = str(caught.value)
    assert f"pid {holder.info.backend_pid} (postgres, a stuck tick, idle since " in message
    assert "4246" in message


def wait_until_polling(database: Database) -> None:
    attempts: set[datetime] = set()

    def polled_again_and_again() -> bool:
        attempts.update(
            row[0]
            for row in database.execute(
                "SELECT query_start FROM pg_stat_activity WHERE application_name = 'usage-rollup'"
                " AND datname = current_database() AND query LIKE '%pg_try_advisory_lock%' AND state = 'idle'"
            )
        )
        return len(attempts) > 2

    wait_until(polled_again_and_again, "the hook has asked for the lock more than once")


def test_what_the_holder_of_4246_has_rolled_up_meanwhile_is_not_walked_again(used: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        with used.connect(autocommit=True) as holder:
            holder.execute("SELECT pg_advisory_lock(4246)")
            hook = pool.submit(run_hook, used)
            wait_until_polling(used)
            holder.execute("SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', 1000)")
            for _ in range(3):
                holder.execute("SELECT rollup_task_usage_hourly_slice()")
            holder.execute("SELECT rollup_task_usage_hourly_finish()")
        assert hook.result() == Backfill(skipped="watermark_within_threshold")


def test_hook_waits_for_4246_and_reads_the_state_only_then(used: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        with used.connect(autocommit=True) as holder:
            holder.execute("SELECT pg_advisory_lock(4246)")
            hook = pool.submit(run_hook, used)
            wait_until_polling(used)
            assert events(used) == 0
            # A month begins while it waits.
            event(used.url, small_world(used.url), "2025-05-01 00:00+00")
        assert hook.result() == Backfill(
            slices=3, rows=6, from_=utc(2025, 1, 10), to=utc(2025, 5, 2), sessions=1
        )


def test_4246_is_held_while_103_runs_and_free_afterwards(used: Database) -> None:
    reader = used.connect()
    reader.execute("SELECT count(*) FROM task_usage_daily")
    runner = used.spawn("alembic", "upgrade", "head")
    wait_until(
        lambda: used.value(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')"
        ),
        "103 asks for its table locks",
    )
    assert used.revision == "102"
    assert set(advisory_locks(used)) == {MIGRATION_RUN, HOURLY_ROLLUP}
    reader.rollback()
    printed, _ = runner.communicate(timeout=DEADLINE_S)
    assert runner.returncode == 0, printed
    wait_until(lambda: runners(used) == 0, "the session has ended")
    assert advisory_locks(used) == []


def test_session_that_waits_for_4246_gets_its_turn_between_slices(used: Database) -> None:
    with ThreadPoolExecutor(2) as pool, used.connect() as waiter:
        with blocked_at(used, JANUARY):
            hook = pool.submit(run_hook, used)
            wait_until_blocked(used)
            turn = pool.submit(waiter.execute, "SELECT pg_advisory_xact_lock(4246)")
            wait_until(lambda: waiters(used) == 1, "a session waits for 4246")
        turn.result(timeout=DEADLINE_S)
        assert committed_months(used) == [JANUARY]
        waiter.commit()
        assert hook.result().slices == 3


# ---------------------------------------------------------------------------------------------
# What holds the horizon back
# ---------------------------------------------------------------------------------------------


def test_old_transaction_is_named_and_the_walk_before_it_kept(used: Database) -> None:
    with_older_transactions(used)
    named_at_once(used)
    event(used.url, small_world(used.url))
    session = used.connect(application_name="a forgotten psql")
    session.execute("UPDATE task_usage SET provider = provider WHERE false")
    printed = used.refused()
    assert f"pid {session.info.backend_pid} (postgres, a forgotten psql, idle in transaction" in printed
    assert used.revision == "102"
    assert used.value("SELECT to_regclass('public.task_usage_daily') IS NOT NULL")
    assert events(used) == 6
    kept = versions(used, "bucket_hour < '2025-05-01 00:00+00'")

    session.close()
    used.upgrade()
    assert versions(used, "bucket_hour < '2025-05-01 00:00+00'") == kept


def test_prepared_transaction_that_wrote_usage_is_named_and_loses_nothing(used: Database) -> None:
    # The ten seconds in which it might still go away.
    rewrite_function(used, HORIZON, "v_start + p_wait", "v_start")
    without_margin(used)
    gid = f"forgotten {uuid.uuid4()}"
    with used.connect(autocommit=True) as session:
        session.execute("BEGIN")
        usage(session, task(session, small_world(session).agents[0]))
        session.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        printed = used.refused()
        assert f"prepared transaction '{gid}' (postgres, since " in printed
        assert used.revision == "102"
        # No walk was begun that could not end.
        assert events(used) == 0
        assert used.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0
    finally:
        used.execute(f"COMMIT PREPARED '{gid}'")
    used.upgrade()
    assert events(used) == 6


# ---------------------------------------------------------------------------------------------
# Again
# ---------------------------------------------------------------------------------------------


def test_second_hook_writes_nothing(used: Database) -> None:
    run_hook(used)
    before = row_versions(used)
    assert run_hook(used) == Backfill(skipped="watermark_within_threshold")
    assert row_versions(used) == before


def test_second_upgrade_writes_nothing(used: Database) -> None:
    used.upgrade()
    before, catalog = row_versions(used), used.catalog()
    printed = used.upgrade()
    assert "slice" not in printed
    assert "Running upgrade" not in printed
    assert row_versions(used) == before
    assert used.catalog() == catalog


# ---------------------------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------------------------


def test_in_a_pipe_the_walk_prints_a_line_a_slice(used: Database) -> None:
    printed = used.upgrade()
    assert re.findall(r"slice \d+: (.* buckets), ", printed) == [
        "2025-01-10 00:00 to 2025-01-20 00:00, 2 rows, 2 buckets",
        "2025-01-20 00:00 to 2025-04-01 00:00, 2 rows, 2 buckets",
        "2025-04-01 00:00 to 2025-04-02 00:00, 1 rows, 1 buckets",
    ]
    assert "3 rows left" in printed
    assert "0 rows left" in printed
    assert "\x1b" not in printed


def test_on_a_terminal_the_walk_shows_a_bar(used: Database) -> None:
    shown = on_a_terminal(used, "upgrade", "head", program="alembic", columns=120)
    assert "━" in shown
    assert "5/5" in shown
    assert "slice 1:" not in shown
    assert used.revision == "104"
