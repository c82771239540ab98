"""rollup_task_usage_hourly_window(): whole hours, from raw usage, whoever calls it and from where."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import IsolationLevel, errors, sql

from tests.support.database import Connection, Database
from tests.support.deadline import DEADLINE_S
from tests.support.product import (
    LONG_MODEL,
    counts,
    event,
    small_world,
    task,
    upsert_usage,
    usage,
    wait_until,
)
from tests.support.roles import MakeRole
from tests.support.rollup import (
    EVERY_HOUR,
    MEASURES,
    QUEUED_ONLY,
    UNQUEUE,
    WINDOW,
    corrupt,
    queued,
    wrong_hours,
)
from tests.support.sessions import is_blocked, is_polling
from tests.support.v034 import generate_history

pytestmark = pytest.mark.server

# A statement that must not wait fails when it does.
DOES_NOT_WAIT = f"-c lock_timeout={DEADLINE_S:.0f}s -c statement_timeout={DEADLINE_S:.0f}s"

LEVELS = [
    pytest.param(level, id=level.name.lower())
    for level in (
        IsolationLevel.READ_COMMITTED,
        IsolationLevel.REPEATABLE_READ,
        IsolationLevel.SERIALIZABLE,
    )
]


def rollup(db: Database, *extra: str) -> set[tuple[Any, ...]]:
    columns = (
        *("bucket_hour", "workspace_id", "runtime_id", "agent_id", "project_id", "provider", "model"),
        *MEASURES,
        *extra,
    )
    return set(db.execute(f"SELECT {', '.join(columns)} FROM task_usage_hourly"))


def dirty(db: Database, where: str = "true") -> None:
    """Queue the keys of the rollup in the public queue, as the product would."""
    db.execute(
        "INSERT INTO task_usage_hourly_dirty"
        " (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)"
        " SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model"
        f" FROM task_usage_hourly WHERE {where}"
    )


# What it writes


def test_window_makes_the_rollup_equal_to_raw_usage_and_counts_written_and_deleted(
    at_102: Database,
) -> None:
    with at_102.connect() as connection:
        generate_history(connection, 600, months=2, agents=6, analyze=False)
    # A history has no queue: time alone must find it.
    at_102.execute("DELETE FROM task_usage_hourly_invalidation")
    assert wrong_hours(at_102) != []
    assert at_102.value(WINDOW) == at_102.value("SELECT count(*) FROM task_usage_hourly") > 0
    assert wrong_hours(at_102) == []

    before = rollup(at_102)
    at_102.execute("DELETE FROM task_usage WHERE input_tokens % 5 = 0")
    at_102.execute("UPDATE task_usage SET output_tokens = 1, updated_at = now() WHERE input_tokens % 7 = 0")
    at_102.execute(
        "UPDATE agent_task_queue SET runtime_id = (SELECT min(id::text)::uuid FROM agent_runtime)"
        " WHERE created_at < (SELECT percentile_disc(0.3) WITHIN GROUP (ORDER BY created_at)"
        " FROM agent_task_queue)"
    )
    written_and_deleted = at_102.value(WINDOW)
    after = rollup(at_102)
    keys_gone = {row[:7] for row in before} - {row[:7] for row in after}
    assert keys_gone
    assert written_and_deleted == len(keys_gone) + len(after - before)
    assert wrong_hours(at_102) == []


def test_second_window_returns_zero_and_rewrites_nothing(at_102: Database) -> None:
    with at_102.connect() as connection:
        generate_history(connection, 300, months=1, agents=3, analyze=False)
    at_102.execute(WINDOW)
    before = rollup(at_102, "xmin::text", "ctid::text", "updated_at")
    dirty(at_102)
    at_102.execute(EVERY_HOUR)
    assert at_102.value(WINDOW) == 0
    assert rollup(at_102, "xmin::text", "ctid::text", "updated_at") == before
    assert queued(at_102) == 0


def test_window_rewrites_only_the_keys_that_changed_in_their_hour(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    changed = event(at_102.url, world, "2025-03-01 10:45+00", model="other")
    at_102.execute(WINDOW)
    before = rollup(at_102, "xmin::text")
    at_102.execute("UPDATE task_usage SET input_tokens = 7 WHERE id = %s", changed)
    assert at_102.value(WINDOW) == 1
    assert len(rollup(at_102, "xmin::text") & before) == 1
    assert wrong_hours(at_102) == []


def test_window_deletes_what_has_no_raw_rows_wherever_the_hour_is_queued(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    event(at_102.url, world, "2025-03-02 11:15+00", agent=2, issue=3)
    at_102.execute(WINDOW)
    at_102.execute(
        "ALTER TABLE task_usage DISABLE TRIGGER USER; DELETE FROM task_usage;"
        " ALTER TABLE task_usage ENABLE TRIGGER USER"
    )
    # Without raw rows no range of time leads to these hours any more.
    assert at_102.value(WINDOW) == 0
    assert len(wrong_hours(at_102)) == 2
    dirty(at_102)
    assert at_102.value(WINDOW) == 2
    assert rollup(at_102) == set()


def test_orphan_in_a_touched_hour_heals_though_nobody_queued_its_key(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00", agent=2, issue=3)
    at_102.execute(WINDOW)
    at_102.execute(
        "ALTER TABLE task_usage DISABLE TRIGGER USER; DELETE FROM task_usage;"
        " ALTER TABLE task_usage ENABLE TRIGGER USER"
    )
    event(at_102.url, world, "2025-03-01 10:59:59.999999+00")
    assert at_102.value(WINDOW) == 2
    assert wrong_hours(at_102) == []


@pytest.mark.parametrize("by_scan", [False, True], ids=["by_look_up", "by_scan"])
@pytest.mark.parametrize("measure", MEASURES)
def test_bucket_in_which_one_measure_alone_is_wrong_is_rewritten_and_no_other(
    at_102: Database, measure: str, by_scan: bool
) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    event(at_102.url, world, "2025-03-01 10:45+00", model="other")
    at_102.execute(WINDOW)
    at_102.execute("UPDATE task_usage_hourly SET updated_at = '2025-03-02'")
    before = rollup(at_102, "xmin::text")
    corrupt(at_102, "model = 'other'", measure)
    assert len(wrong_hours(at_102)) == 1
    hour = "rollup_task_usage_hourly_range('2025-03-01 10:00+00', '2025-03-01 11:00+00', %s)"
    assert at_102.value(f"SELECT {hour}", by_scan) == 1
    assert len(rollup(at_102, "xmin::text") & before) == 1
    assert at_102.value("SELECT count(*) FROM task_usage_hourly WHERE updated_at > '2025-03-02'") == 1
    assert wrong_hours(at_102) == []


@pytest.mark.parametrize("by_scan", [False, True], ids=["by_look_up", "by_scan"])
def test_usage_of_a_task_without_a_runtime_is_in_no_bucket(head: Database, by_scan: bool) -> None:
    # As later releases allow it.
    head.execute("ALTER TABLE agent_task_queue ALTER COLUMN runtime_id DROP NOT NULL")
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    unbound = task(head.url, world.agents[0], issue_id=world.issues[0])
    for hour in (10, 11):
        usage(head.url, unbound, f"2025-03-01 {hour}:45+00", model=f"of {hour}")
    head.execute("UPDATE agent_task_queue SET runtime_id = NULL WHERE id = %s", unbound)
    day = "('2025-03-01 00:00+00', '2025-03-02 00:00+00'"
    # Neither refused and set aside, nor, for that, written again and again.
    assert head.value(f"SELECT rollup_task_usage_hourly_range{day}, %s)", by_scan) == 1
    assert head.value(f"SELECT rollup_task_usage_hourly_range{day}, %s)", by_scan) == 0
    assert head.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 0
    assert wrong_hours(head) == []
    for aggregate in ("task_usage_hourly_expected", *AGGREGATES):
        assert head.value(f"SELECT sum(event_count) FROM {aggregate}{day})") == 1, aggregate


AGGREGATES = ("rollup_task_usage_hourly_aggregate", "rollup_task_usage_hourly_aggregate_by_scan")


@pytest.mark.parametrize("by_scan", [False, True], ids=["by_look_up", "by_scan"])
@pytest.mark.parametrize("filled", [False, True], ids=["into_empty_hours", "over_what_is_there"])
def test_both_ways_to_aggregate_write_the_same(at_102: Database, by_scan: bool, filled: bool) -> None:
    with at_102.connect() as connection:
        history = generate_history(connection, 300, months=1, agents=3, analyze=False)
    if filled:
        at_102.execute(WINDOW)
        at_102.execute("UPDATE task_usage SET model = model || ' renamed' WHERE input_tokens % 3 = 0")
        corrupt(at_102)
    at_102.execute(UNQUEUE)
    assert len(wrong_hours(at_102)) > 5
    at_102.execute(
        "SELECT rollup_task_usage_hourly_range(date_trunc('day', %s), date_trunc('day', %s) + interval '1"
        " day', %s)",
        *(history.since, history.until, by_scan),
    )
    assert wrong_hours(at_102) == []


def test_both_ways_to_aggregate_say_what_the_plainest_says_of_any_range(at_102: Database) -> None:
    world = small_world(at_102.url)
    times = ("09:59:59.999999", "10:00", "10:00:00.000001", "11:59:59.999999", "12:00", "12:00:00.000001")
    with at_102.connect() as connection:
        # One task in the range and beyond its ends; others of another project, an issue without one, or none.
        long = task(connection, world.agents[0], issue_id=world.issues[0])
        for number, time in enumerate(times):
            usage(connection, long, f"2025-03-01 {time}+00", model=f"model {number}")
            event(
                connection, world, f"2025-03-01 {time}+00", agent=number % 3, issue=(None, 2, 3)[number % 3]
            )
        for at in ("infinity", "-infinity", "20250-03-01 10:00+00", "0044-03-15 10:00+00 BC"):
            event(connection, world, at)
    for first, last, events in (
        ("2025-03-01 10:00+00", "2025-03-01 12:00+00", 6),
        ("2025-03-01 12:00+00", "2025-03-01 13:00+00", 4),
        ("-infinity", "infinity", 12),
    ):
        of = f"('{first}', '{last}')"
        plainest = at_102.execute(
            f"SELECT * FROM task_usage_hourly_expected{of} ORDER BY 1, 2, 3, 4, 5, 6, 7"
        )
        assert sum(row[-1] for row in plainest) == events
        for aggregate in AGGREGATES:
            assert at_102.execute(f"SELECT * FROM {aggregate}{of}") == plainest, (aggregate, first)
    at_102.execute(WINDOW)
    assert wrong_hours(at_102) == []


@pytest.mark.parametrize("column", counts(0))
def test_sums_beyond_bigint_saturate_in_their_own_column_and_stop_nobody_else(
    at_102: Database, column: str
) -> None:
    world = small_world(at_102.url)
    for _ in range(3):
        event(at_102.url, world, "2025-03-01 10:15+00", tokens=10)
    event(at_102.url, world, "2025-03-01 10:15+00", agent=1, tokens=50)
    at_102.execute(f"UPDATE task_usage SET {column} = 9000000000000000000 WHERE input_tokens = 10")
    with pytest.raises(errors.NumericValueOutOfRange):
        at_102.execute(f"SELECT sum({column})::bigint FROM task_usage")

    assert at_102.value(WINDOW) == 2
    threefold = {each: 3 * tokens for each, tokens in counts(10).items()}
    assert at_102.execute(
        f"SELECT {', '.join(threefold)}, event_count FROM task_usage_hourly ORDER BY event_count"
    ) == [(*counts(50).values(), 1), (*{**threefold, column: 2**63 - 1}.values(), 3)]
    assert at_102.value(WINDOW) == 0
    assert wrong_hours(at_102) == []


def test_window_leaves_hours_alone_that_no_event_in_its_range_touches(at_102: Database) -> None:
    world = small_world(at_102.url)
    # By updated_at, and by created_at only where that is NULL; the range is half open.
    for created_at, updated_at in (
        ("2025-03-01 10:15+00", "2025-05-01 00:00+00"),
        ("2025-05-01 00:00+00", None),
        ("2025-05-01 12:15+00", None),
        ("2025-05-01 14:15+00", "2025-05-02 00:00+00"),
        ("2025-05-02 00:00+00", None),
    ):
        event(at_102.url, world, created_at, updated_at)
    at_102.execute("DELETE FROM task_usage_hourly_invalidation")
    at_102.execute("SELECT rollup_task_usage_hourly_window('2025-05-01 00:00+00', '2025-05-02 00:00+00')")
    assert {row[0] for row in rollup(at_102)} == {
        datetime(2025, 3, 1, 10, tzinfo=UTC),
        datetime(2025, 5, 1, 0, tzinfo=UTC),
        datetime(2025, 5, 1, 12, tzinfo=UTC),
    }
    at_102.execute(WINDOW)
    assert wrong_hours(at_102) == []


def test_buckets_that_no_client_can_read_are_taken_out_and_their_neighbours_in_time_stay(
    at_102: Database,
) -> None:
    # As the Go release's window filed them.
    kept = ["0001-01-01 00:00+00", "9998-12-31 23:00+00"]
    removed = [
        "-infinity",
        "0044-03-15 12:00+00 BC",
        "9999-01-01 00:00+00",
        "20250-01-01 00:00+00",
        "infinity",
    ]
    world = small_world(at_102.url)
    for hour in kept:
        event(at_102.url, world, hour)
    at_102.execute(WINDOW)
    at_102.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT hour, workspace_id, runtime_id, agent_id, '', '' FROM unnest(%s::timestamptz[]) AS hour,"
        " (SELECT * FROM task_usage_hourly LIMIT 1) AS h",
        removed,
    )
    with at_102.connect() as connection:
        told: list[str] = []
        connection.add_notice_handler(lambda diagnostic: told.append(str(diagnostic.message_primary)))
        assert connection.execute(WINDOW).fetchone() == (5,)
    assert [line for line in told if line.startswith("5 buckets dated outside years 1-9998 are removed: ")]
    assert at_102.value("SELECT count(*) FROM task_usage_hourly WHERE model <> ''") == 2
    assert at_102.value("SELECT count(*) FROM task_usage_hourly") == 2


# What PostgreSQL refuses


def refuse(db: Database) -> None:
    """Have PostgreSQL refuse buckets: for a reason in the data where the model begins with its SQLSTATE; any
    other once, for want of room, where the model says so."""
    db.execute(
        "CREATE SEQUENCE refusals; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.model ~ '^[0-9]{5} ' THEN"
        " RAISE EXCEPTION 'refused' USING ERRCODE = left(NEW.model, 5);"
        " ELSIF NEW.model = 'no room' AND nextval('public.refusals') = 1 THEN"
        " RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER refuse BEFORE INSERT ON task_usage_hourly FOR EACH ROW EXECUTE FUNCTION refuse()"
    )


@pytest.mark.parametrize("sqlstate", ["22003", "23514", "54000"])
def test_bucket_that_is_refused_for_what_is_in_it_is_set_aside_alone_until_it_is_mended(
    at_102: Database, sqlstate: str
) -> None:
    refuse(at_102)
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00", model=f"{sqlstate} refused")
    event(at_102.url, world, "2025-03-01 10:15+00")
    event(at_102.url, world, "2025-03-01 11:15+00")
    at_102.execute(WINDOW)
    assert at_102.execute("SELECT sqlstate, error FROM task_usage_hourly_set_aside") == [
        (sqlstate, "refused")
    ]
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 2
    at_102.execute("DROP TRIGGER refuse ON task_usage_hourly")
    at_102.execute(EVERY_HOUR)
    assert at_102.value(WINDOW) == 1
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 0
    assert wrong_hours(at_102) == []


# On the way to the bucket that is refused, or beside one.
@pytest.mark.parametrize("models", [("no room",), ("22003 refused", "no room")], ids=["alone", "beside"])
def test_error_that_is_not_in_the_data_ends_the_window_and_sets_nothing_aside(
    at_102: Database, models: tuple[str, ...]
) -> None:
    refuse(at_102)
    world = small_world(at_102.url)
    for model in models:
        event(at_102.url, world, "2025-03-01 10:15+00", model=model)
    with pytest.raises(errors.DiskFull):
        at_102.execute(WINDOW)
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 0
    assert queued(at_102) == len(models)
    at_102.execute(WINDOW)
    assert at_102.value("SELECT count(*) FROM task_usage_hourly WHERE model = 'no room'") == 1
    at_102.execute("DROP TRIGGER refuse ON task_usage_hourly")
    at_102.execute(EVERY_HOUR)
    at_102.execute(WINDOW)
    assert wrong_hours(at_102) == []


def test_halves_of_a_range_in_which_a_bucket_is_refused_meet_at_a_whole_hour(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00", model=LONG_MODEL)
    # The middle of three hours is half past eleven.
    for at in ("11:10", "11:50", "12:15"):
        event(at_102.url, world, f"2025-03-01 {at}+00")
    assert at_102.value(WINDOW) == 2
    assert {(row[0].astimezone(UTC).hour, row[-1]) for row in rollup(at_102)} == {(11, 2), (12, 1)}
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 1


def test_refused_hour_is_written_as_it_is_now_whatever_it_held(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00", model=LONG_MODEL)
    gone = event(at_102.url, world, "2025-03-01 10:15+00", model="gone")
    event(at_102.url, world, "2025-03-01 10:15+00", model="stays")
    at_102.execute(WINDOW)
    at_102.execute("DELETE FROM task_usage WHERE id = %s", gone)
    at_102.execute(WINDOW)
    assert at_102.execute("SELECT model, event_count FROM task_usage_hourly") == [("stays", 1)]
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 1


def test_hour_that_is_recomputed_forgets_what_was_set_aside_of_it_and_of_no_other(at_102: Database) -> None:
    world = small_world(at_102.url)
    for hour in (9, 10, 11):
        event(at_102.url, world, f"2025-03-01 {hour}:00+00", model=LONG_MODEL)
    at_102.execute(WINDOW)
    at_102.execute("UPDATE task_usage SET model = 'short' WHERE created_at = '2025-03-01 10:00+00'")
    at_102.execute(QUEUED_ONLY)
    assert at_102.execute(
        "SELECT extract(hour FROM bucket_hour AT TIME ZONE 'UTC')::int FROM task_usage_hourly_set_aside"
        " ORDER BY 1"
    ) == [(9,), (11,)]
    assert at_102.execute("SELECT model FROM task_usage_hourly") == [("short",)]


def test_hour_that_is_emptied_goes_though_its_neighbour_holds_the_same_key(at_102: Database) -> None:
    world = small_world(at_102.url)
    moved = [task(at_102.url, world.agents[0]) for _ in range(2)]
    for hour, task_id in enumerate(moved, 10):
        usage(at_102.url, task_id, f"2025-03-01 {hour}:15+00")
    at_102.execute(WINDOW)
    at_102.execute("DELETE FROM task_usage WHERE task_id = %s", moved[0])
    at_102.execute(EVERY_HOUR)
    assert at_102.value(WINDOW) == 1
    assert wrong_hours(at_102) == []


# Invalidations that arrive meanwhile


def test_recomputing_first_and_deleting_by_time_would_eat_an_invalidation(at_102: Database) -> None:
    world = small_world(at_102.url)
    victim = event(at_102.url, world, "2025-03-01 10:15+00")
    naive = at_102.connect()
    naive.execute("SELECT rollup_task_usage_hourly_range('2025-03-01', '2025-03-02')")
    at_102.execute("DELETE FROM task_usage WHERE id = %s", victim)
    naive.execute("DELETE FROM task_usage_hourly_invalidation WHERE enqueued_at < 'infinity'")
    naive.commit()
    assert at_102.value(WINDOW) == 0
    assert len(wrong_hours(at_102)) == 1
    at_102.execute(EVERY_HOUR)
    assert at_102.value(WINDOW) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_invalidation_committed_between_drain_and_recompute_survives(
    at_102: Database, level: IsolationLevel
) -> None:
    world = small_world(at_102.url)
    victim = event(at_102.url, world, "2025-03-01 10:15+00")
    moved = task(at_102.url, world.agents[0])
    usage(at_102.url, moved, "2025-03-01 11:15+00")
    at_102.execute(WINDOW)
    dirty(at_102)
    at_102.execute(EVERY_HOUR)

    blocker = at_102.connect()
    blocker.execute("LOCK TABLE task_usage_hourly")
    caller = at_102.connect(options=f"-c statement_timeout={DEADLINE_S:.0f}s")
    caller.isolation_level = level
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(caller.execute, WINDOW)
        wait_until(lambda: is_blocked(at_102, caller), "the window waits behind its drain")
        at_102.execute("DELETE FROM task_usage WHERE id = %s", victim)
        at_102.execute("UPDATE agent_task_queue SET agent_id = %s WHERE id = %s", world.agents[1], moved)
        blocker.rollback()
        window.result()
    caller.commit()
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_invalidation") > 0
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_dirty") == 0

    at_102.execute(WINDOW)
    assert queued(at_102) == 0
    assert wrong_hours(at_102) == []


@pytest.mark.parametrize("level", LEVELS[1:])
def test_window_with_an_old_snapshot_does_not_overwrite_a_newer_result(
    at_102: Database, level: IsolationLevel
) -> None:
    world = small_world(at_102.url)
    moved = task(at_102.url, world.agents[0])
    usage(at_102.url, moved, "2025-03-01 10:15+00")
    at_102.execute(WINDOW)
    move = "UPDATE agent_task_queue SET agent_id = %s WHERE id = %s"

    def old_snapshot() -> Connection:
        connection = at_102.connect()
        connection.isolation_level = level
        connection.execute("SELECT FROM workspace")
        return connection

    naive = old_snapshot()
    at_102.execute(move, world.agents[1], moved)
    at_102.execute(WINDOW)
    assert wrong_hours(at_102) == []
    naive.execute("SELECT rollup_task_usage_hourly_range('2025-03-01', '2025-03-02')")
    naive.commit()
    assert len(wrong_hours(at_102)) == 1
    at_102.execute(WINDOW)

    caller = old_snapshot()
    at_102.execute(move, world.agents[0], moved)
    at_102.execute(WINDOW)
    # To fail, for the caller to try again, is right; to bring the old key back is not.
    with suppress(errors.SerializationFailure):
        caller.execute(WINDOW)
        caller.commit()
    caller.rollback()
    assert wrong_hours(at_102) == []


WRITERS = {
    "window": (WINDOW,),
    "slice": ("SELECT rollup_task_usage_hourly_plan(now(), 1)", "SELECT rollup_task_usage_hourly_slice()"),
}


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("writer", WRITERS)
def test_window_fails_where_its_snapshot_is_older_than_what_the_last_writer_left(
    at_102: Database, writer: str, level: IsolationLevel
) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00")
    at_102.execute(UNQUEUE)  # or the two would meet there
    caller = at_102.connect()
    caller.isolation_level = level
    caller.execute("SELECT FROM workspace")
    for statement in WRITERS[writer]:
        at_102.execute(statement)
    # Even where there is nothing to do for it, as far as it can see.
    with pytest.raises(errors.SerializationFailure):
        caller.execute(QUEUED_ONLY)
    caller.rollback()
    caller.execute(WINDOW)
    caller.commit()
    assert wrong_hours(at_102) == []


# One writer


def test_window_refuses_after_its_deadline_while_another_session_holds_the_lock(
    at_102: Database,
) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    holder = at_102.connect()
    holder.execute("SELECT pg_advisory_lock(4246)")
    holder.commit()
    with pytest.raises(errors.LockNotAvailable) as refusal:
        at_102.execute(WINDOW)
    assert "another session" in str(refusal.value.diag.message_primary)
    assert "4246" in str(refusal.value.diag.message_primary)
    assert refusal.value.diag.message_hint
    assert rollup(at_102) == set()
    assert queued(at_102) == 1

    assert holder.execute(WINDOW).fetchone() == (1,)
    holder.commit()
    assert wrong_hours(at_102) == []


def test_window_waits_for_another_one_and_sees_what_that_one_could_not(at_102: Database) -> None:
    world = small_world(at_102.url)
    victim = event(at_102.url, world, "2025-03-01 10:15+00")
    event(at_102.url, world, "2025-03-01 10:45+00")
    first, second = at_102.connect(), at_102.connect(options=f"-c statement_timeout={DEADLINE_S:.0f}s")
    first.execute(WINDOW)
    at_102.execute("DELETE FROM task_usage WHERE id = %s", victim)
    with ThreadPoolExecutor(1) as pool:
        window = pool.submit(second.execute, WINDOW)
        wait_until(lambda: is_polling(at_102, second), "the second window waits for the first")
        first.commit()
        assert window.result().fetchone() == (1,)
    second.commit()
    assert wrong_hours(at_102) == []


def test_window_holds_the_lock_until_its_transaction_ends_and_no_longer(at_102: Database) -> None:
    caller = at_102.connect()
    caller.execute(WINDOW)
    assert at_102.value("SELECT pg_try_advisory_lock(4246)") is False
    caller.rollback()
    assert at_102.value("SELECT pg_try_advisory_lock(4246)") is True


# The queues


@pytest.mark.parametrize("queue", ["task_usage_hourly_dirty", "task_usage_hourly_invalidation"])
def test_queued_row_locked_by_another_session_is_left_and_not_waited_for(
    at_102: Database, queue: str
) -> None:
    world = small_world(at_102.url)
    for hour in (10, 11):
        event(at_102.url, world, f"2025-03-01 {hour}:15+00")
    at_102.execute(WINDOW)
    at_102.execute(
        "ALTER TABLE task_usage DISABLE TRIGGER USER; DELETE FROM task_usage;"
        " ALTER TABLE task_usage ENABLE TRIGGER USER"
    )
    if queue == "task_usage_hourly_dirty":
        dirty(at_102)
    else:
        at_102.execute(f"INSERT INTO {queue} (bucket_hour) SELECT bucket_hour FROM task_usage_hourly")

    other = at_102.connect()
    other.execute(f"SELECT FROM {queue} WHERE bucket_hour = '2025-03-01 10:00+00' FOR UPDATE")
    caller = at_102.connect(autocommit=True, options=DOES_NOT_WAIT)
    assert caller.execute(WINDOW).fetchone() == (1,)
    assert at_102.execute(f"SELECT bucket_hour FROM {queue}") == [(datetime(2025, 3, 1, 10, tzinfo=UTC),)]
    assert {row[0] for row in rollup(at_102)} == {datetime(2025, 3, 1, 10, tzinfo=UTC)}
    other.rollback()
    assert caller.execute(WINDOW).fetchone() == (1,)
    assert queued(at_102) == 0
    assert rollup(at_102) == set()


def test_public_row_requeued_while_the_window_waits_for_nobody_is_not_lost(at_102: Database) -> None:
    world = small_world(at_102.url)
    victim = event(at_102.url, world, "2025-03-01 10:15+00")
    at_102.execute(WINDOW)
    dirty(at_102)
    # The product's later triggers upsert the key they see; this one has not committed yet.
    product = at_102.connect()
    product.execute("DELETE FROM task_usage WHERE id = %s", [victim])
    product.execute("DELETE FROM task_usage_hourly_invalidation")
    product.execute("UPDATE task_usage_hourly_dirty SET enqueued_at = now()")
    caller = at_102.connect(autocommit=True, options=DOES_NOT_WAIT)
    assert caller.execute(WINDOW).fetchone() == (0,)
    product.commit()
    assert queued(at_102) == 1
    assert caller.execute(WINDOW).fetchone() == (1,)
    assert rollup(at_102) == set()


def test_public_row_that_is_not_a_whole_hour_recomputes_its_whole_hour(at_102: Database) -> None:
    world = small_world(at_102.url)
    for minute in (15, 45):
        event(at_102.url, world, f"2025-03-01 10:{minute}+00")
    at_102.execute(WINDOW)
    dirty(at_102)
    at_102.execute("UPDATE task_usage_hourly_dirty SET bucket_hour = bucket_hour + interval '30 minutes'")
    corrupt(at_102)
    assert at_102.value(QUEUED_ONLY) == 1
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_set_aside") == 0
    assert wrong_hours(at_102) == []


# Time


# Offsets of 30 and 45 minutes, a DST change of half an hour, and one at midnight.
ZONES = ["Asia/Kathmandu", "Australia/Lord_Howe", "America/Havana"]
INSTANTS = [
    start + timedelta(minutes=step)
    for start in (
        datetime(2025, 4, 5, 13, 10, tzinfo=UTC),  # Lord Howe turns back at 15:00 UTC
        datetime(2025, 10, 4, 14, 10, tzinfo=UTC),  # and forward at 15:30 UTC
        datetime(2025, 11, 2, 3, 10, tzinfo=UTC),  # Havana turns back at 05:00 UTC
        datetime(2025, 3, 9, 4, 10, tzinfo=UTC),  # and forward at 05:00 UTC
    )
    for step in range(0, 180, 25)
]


@pytest.mark.parametrize("zone", ZONES)
def test_usage_is_filed_under_the_utc_hour_whatever_the_time_zone_of_the_session(
    at_102: Database, zone: str
) -> None:
    expected = {instant.replace(minute=0) for instant in INSTANTS}
    caller = at_102.connect()
    caller.execute("SELECT set_config('TimeZone', %s, false)", [zone])
    local = (
        "SELECT count(*) FROM unnest(%s::timestamptz[]) AS t WHERE task_usage_hour_bucket(t)"
        " <> date_trunc('hour', t AT TIME ZONE %s) AT TIME ZONE %s"
    )
    assert caller.execute(local, [INSTANTS, zone, zone]).fetchone() != (0,)

    world = small_world(caller)
    task_id = task(caller, world.agents[0])
    for number, instant in enumerate(INSTANTS):
        usage(caller, task_id, instant, model=str(number))
    assert caller.execute(WINDOW).fetchone() == (len(INSTANTS),)
    caller.commit()
    assert {row[0] for row in rollup(at_102)} == expected
    assert wrong_hours(at_102) == []
    # A session in UTC has nothing to mend.
    dirty(at_102)
    assert at_102.value(WINDOW) == 0


@pytest.mark.parametrize("zone", ["UTC", *ZONES])
def test_usage_is_queued_under_its_utc_hour_whatever_the_time_zone_of_the_session(
    at_102: Database, zone: str
) -> None:
    # The later half of its hour, which is the earlier one of another where a zone is half an hour off.
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:50+00")
    at_102.execute(WINDOW)
    caller = at_102.connect()
    caller.execute("SELECT set_config('TimeZone', %s, false)", [zone])
    for statement, hours in (
        ("UPDATE task_usage SET input_tokens = 7", {10}),
        ("UPDATE task_usage SET created_at = created_at + interval '2 hours'", {10, 12}),
        ("DELETE FROM task_usage", {12}),
    ):
        caller.execute(UNQUEUE)
        caller.execute(statement)
        queued_hours = caller.execute("SELECT bucket_hour FROM task_usage_hourly_invalidation").fetchall()
        assert {hour for (hour,) in queued_hours} == {
            datetime(2025, 3, 1, hour, tzinfo=UTC) for hour in hours
        }, statement
    caller.rollback()


def test_hour_bucket_is_immutable_enough_for_an_index(at_102: Database) -> None:
    with pytest.raises(errors.InvalidObjectDefinition):
        at_102.execute("CREATE INDEX ON task_usage (date_trunc('hour', created_at))")
    at_102.execute("CREATE INDEX ON task_usage (task_usage_hour_bucket(created_at))")
    assert at_102.value(
        "SELECT provolatile FROM pg_proc WHERE oid = 'task_usage_hour_bucket(timestamptz)'::regprocedure"
    ) in ("i", b"i")


@pytest.mark.parametrize(
    ("instant", "hour"),
    [
        ("infinity", "infinity"),
        ("-infinity", "-infinity"),
        ("0044-03-15 12:34:56.789 BC", "0044-03-15 12:00:00 BC"),
        ("4713-11-24 00:30:00+00 BC", "4713-11-24 00:00:00 BC"),
        ("1969-12-31 23:59:59.999999+00", "1969-12-31 23:00:00"),
        ("294276-12-31 23:59:59.999999+00", "294276-12-31 23:00:00"),
    ],
)
def test_hour_bucket_is_right_at_the_ends_of_time(at_102: Database, instant: str, hour: str) -> None:
    for zone in ("UTC", *ZONES):
        with at_102.connect() as connection:
            # Text, because Python's datetime ends at the year 9999.
            row = connection.execute(
                "SELECT set_config('TimeZone', %s, true), (task_usage_hour_bucket"
                "((%s::timestamp AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC')::text = %s::timestamp::text",
                [zone, instant, hour],
            ).fetchone()
        assert row is not None
        assert row[1], zone


@pytest.mark.parametrize("instant", ["infinity", "-infinity", "0044-03-15 12:00 BC", "294276-12-31 23:30+00"])
def test_usage_at_the_ends_of_time_stops_nobody_else(at_102: Database, instant: str) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, instant)
    ordinary = event(at_102.url, world, "2025-03-01 10:15+00")
    at_102.execute(WINDOW)
    assert (
        at_102.value("SELECT event_count FROM task_usage_hourly WHERE bucket_hour = '2025-03-01 10:00+00'")
        == 1
    )
    assert queued(at_102) == 0
    at_102.execute("DELETE FROM task_usage WHERE id <> %s", ordinary)
    at_102.execute(WINDOW)
    assert len(rollup(at_102)) == 1
    assert wrong_hours(at_102) == []


# Who calls, and with what search_path

SHADOWS = """
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.date_trunc(text, timestamp) RETURNS timestamp LANGUAGE sql IMMUTABLE
    AS $$SELECT timestamp '1970-01-01'$$;
CREATE FUNCTION hostile.date_trunc(text, timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE
    AS $$SELECT timestamptz '1970-01-01 00:00+00'$$;
CREATE FUNCTION hostile.timezone(text, timestamptz) RETURNS timestamp LANGUAGE sql IMMUTABLE
    AS $$SELECT timestamp '1970-01-01'$$;
CREATE FUNCTION hostile.task_usage_hour_bucket(timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE
    AS $$SELECT timestamptz '1970-01-01 00:00+00'$$;
CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql IMMUTABLE
    AS $$SELECT timestamptz '1970-01-01 00:00+00'$$;
CREATE FUNCTION hostile.isfinite(timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$SELECT false$$;
CREATE FUNCTION hostile.rollup_task_usage_hourly_drain()
    RETURNS public.task_usage_hourly_invalidation[] LANGUAGE sql
    AS $$SELECT NULL::public.task_usage_hourly_invalidation[]$$;
CREATE FUNCTION hostile.rollup_task_usage_hourly_range(timestamptz, timestamptz) RETURNS bigint
    LANGUAGE sql AS $$SELECT 0::bigint$$;
CREATE FUNCTION hostile.pg_try_advisory_xact_lock(integer) RETURNS boolean LANGUAGE sql
    AS $$SELECT true$$;
CREATE FUNCTION hostile.never(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE
    AS $$SELECT false$$;
CREATE FUNCTION hostile.always(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE
    AS $$SELECT true$$;
CREATE FUNCTION hostile.never(uuid, uuid) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$SELECT false$$;
CREATE FUNCTION hostile.never(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$SELECT false$$;
CREATE OPERATOR hostile.= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.always);
CREATE OPERATOR hostile.< (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.never);
CREATE OPERATOR hostile.>= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = hostile.never);
CREATE OPERATOR hostile.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = hostile.never);
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.never);
CREATE TABLE hostile.task_usage (LIKE public.task_usage);
CREATE TABLE hostile.agent_task_queue (LIKE public.agent_task_queue);
CREATE TABLE hostile.agent (LIKE public.agent);
CREATE TABLE hostile.issue (LIKE public.issue);
CREATE TABLE hostile.task_usage_hourly (LIKE public.task_usage_hourly);
CREATE TABLE hostile.task_usage_hourly_dirty (LIKE public.task_usage_hourly_dirty);
CREATE TABLE hostile.task_usage_hourly_invalidation (LIKE public.task_usage_hourly_invalidation);
CREATE TABLE hostile.task_usage_hourly_rollup_state (LIKE public.task_usage_hourly_rollup_state);
"""


def shadowed(db: Database) -> Connection:
    """Open a session in which everything named like the product's is somebody else's."""
    db.execute(SHADOWS)
    connection = db.connect(autocommit=True)
    connection.execute("SET search_path = hostile, pg_catalog, public")
    for table in ("task_usage", "task_usage_hourly", "task_usage_hourly_invalidation"):
        connection.execute(sql.SQL("CREATE TEMP TABLE {0} (LIKE public.{0})").format(sql.Identifier(table)))
    # The trap: what is not qualified means something else here.
    row = connection.execute(
        "SELECT date_trunc('hour', timestamptz '2025-03-01 10:15+00') = '2025-01-01',"
        " (SELECT count(*) FROM task_usage)"
    ).fetchone()
    assert row == (True, 0)
    return connection


def test_shadowing_names_mislead_neither_the_triggers_nor_the_window(head: Database) -> None:
    world = small_world(head.url)
    reported, moved = task(head.url, world.agents[0]), task(head.url, world.agents[0])
    usage(head.url, moved, "2025-03-01 11:15+00")
    head.execute(WINDOW)
    caller = shadowed(head)

    # As the server writes, but with old timestamps: the trigger must see that they are old.
    caller.execute(
        "INSERT INTO public.task_usage (task_id, model, created_at, updated_at)"
        " VALUES (%s, 'm', '2025-03-01 10:15+00', '2025-03-01 10:15+00')",
        [reported],
    )
    assert head.execute("SELECT bucket_hour FROM task_usage_hourly_invalidation") == [
        (datetime(2025, 3, 1, 10, tzinfo=UTC),)
    ]
    caller.execute("UPDATE public.task_usage SET created_at = created_at - interval '1 day'")
    caller.execute("UPDATE public.agent_task_queue SET agent_id = %s", [world.agents[1]])
    caller.execute("UPDATE public.issue SET project_id = NULL")
    caller.execute("UPDATE public.agent SET workspace_id = %s", [world.workspaces[1]])
    caller.execute("SELECT public.rollup_task_usage_hourly_window('-infinity', 'infinity')")
    assert queued(head) == 0
    assert len(rollup(head)) == 2
    assert wrong_hours(head) == []
    caller.execute("DELETE FROM public.issue")
    caller.execute("DELETE FROM public.agent_task_queue")
    caller.execute("SELECT public.rollup_task_usage_hourly_window('-infinity', 'infinity')")
    assert rollup(head) == set()
    assert head.value("SELECT count(*) FROM hostile.task_usage_hourly_invalidation") == 0


def test_shadowing_type_name_does_not_fail_the_server_s_writes(at_102: Database) -> None:
    world = small_world(at_102.url)
    task_id = task(at_102.url, world.agents[0])
    at_102.execute("CREATE SCHEMA hostile; CREATE DOMAIN hostile.timestamptz AS integer")
    caller = at_102.connect(autocommit=True)
    caller.execute("SET search_path = hostile, pg_catalog, public")
    with pytest.raises(errors.InvalidTextRepresentation):
        caller.execute("SELECT '2025-03-01 10:15+00'::timestamptz")
    upsert_usage(caller, task_id)
    upsert_usage(caller, task_id, tokens=7)
    caller.execute(WINDOW)
    assert wrong_hours(at_102) == []


@pytest.fixture
def dml_role(head: Database, make_role: MakeRole) -> str:
    """Make a role with DML rights on the product's tables and none on the hourly family."""
    role = make_role("server")
    head.execute(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON workspace, agent_runtime, agent, project, issue,"
        f' agent_task_queue, task_usage, "user" TO {role}'
    )
    return role


def test_server_without_rights_on_the_hourly_family_writes_with_an_empty_search_path(
    head: Database, dml_role: str
) -> None:
    world = small_world(head.url)
    reported, moved = task(head.url, world.agents[0]), task(head.url, world.agents[0])
    usage(head.url, moved, "2025-03-01 11:15+00")
    head.execute(WINDOW)

    product = head.connect(autocommit=True)
    product.execute(f"SET ROLE {dml_role}")
    for table in ("invalidation", "dirty", "rollup_state"):
        with pytest.raises(errors.InsufficientPrivilege):
            product.execute(f"SELECT FROM task_usage_hourly_{table}")
    with pytest.raises(errors.InsufficientPrivilege):
        product.execute(EVERY_HOUR)

    product.execute("SET search_path = ''")
    upsert_usage(product, reported)
    upsert_usage(product, reported, tokens=7)
    usage(product, reported, "2025-03-01 10:15+00", model="restored")
    head.execute(WINDOW)
    for statement in (
        "UPDATE public.task_usage SET created_at = created_at - interval '1 day'",
        f"UPDATE public.agent_task_queue SET agent_id = '{world.agents[1]}'",
        f"UPDATE public.agent_task_queue SET issue_id = '{world.issues[0]}'",
        f"UPDATE public.issue SET project_id = NULL WHERE id = '{world.issues[0]}'",
        f"UPDATE public.agent SET workspace_id = '{world.workspaces[1]}'",
    ):
        product.execute(statement)
        assert head.value(QUEUED_ONLY) > 0, statement
        assert wrong_hours(head) == [], statement
    assert head.value("SELECT sum(event_count) FROM task_usage_hourly") == 3

    product.execute("DELETE FROM public.task_usage WHERE model = 'restored'")
    product.execute("DELETE FROM public.agent_task_queue WHERE id = %s", [moved])
    product.execute("DELETE FROM public.issue")
    product.execute("DELETE FROM public.agent")
    head.execute(WINDOW)
    assert rollup(head) == set()

    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    head.execute(WINDOW)
    head.execute(f"GRANT TRUNCATE ON task_usage TO {dml_role}")
    product.execute("TRUNCATE public.task_usage")
    head.execute(WINDOW)
    assert rollup(head) == set()
