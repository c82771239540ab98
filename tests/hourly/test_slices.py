"""How a backfill is planned: what is left to walk, its slices, and the indexes it does without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import errors
from psycopg.types.multirange import TimestamptzMultirange
from psycopg.types.range import TimestamptzRange

from tests.support.database import Connection, Database
from tests.support.deadline import DEADLINE_S
from tests.support.product import LONG_MODEL, Timestamp, event, small_world, task, utc, wait_until
from tests.support.roles import MakeRole
from tests.support.rollup import WATERMARK, corrupt, run_hook, wrong_hours
from tests.support.sessions import is_blocked
from tests.support.walks import blocked_at, runners, slices, wait_until_blocked
from usage_rollup.contract import HOURLY_ROLLUP, MIGRATION_RUN
from usage_rollup.errors import UnsuitableDatabase
from usage_rollup.hourly import slices as slice_plan
from usage_rollup.hourly.backfill import backfill_before_103
from usage_rollup.session import advisory_lock
from usage_rollup.session.options import Options

pytestmark = pytest.mark.server

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)

SECONDARY_INDEXES = {
    "idx_task_usage_hourly_workspace_time",
    "idx_task_usage_hourly_runtime_time",
    "idx_task_usage_hourly_workspace_agent_time",
    "idx_task_usage_hourly_workspace_project_time",
}


# ---------------------------------------------------------------------------------------------
# Slices
# ---------------------------------------------------------------------------------------------

EPOCH = utc(2023, 12, 28)
HOURS = 24 * 70  # over two ends of a month, one of them of a year, into March
MONTHS = [utc(2024, 1, 1), utc(2024, 2, 1), utc(2024, 3, 1)]

hours = st.integers(0, HOURS).map(lambda n: EPOCH + n * HOUR)
# Few of them, so that some hours are fuller than the budget.
busy_hours = st.sampled_from([utc(2023, 12, 31, 23), *MONTHS, utc(2024, 1, 17, 5), utc(2024, 1, 17, 6)])
instants = st.one_of(
    st.builds(lambda hour, us: hour + us * MICROSECOND, hours, st.sampled_from([0, 1, 3_599_999_999])),
    st.builds(lambda hour, us: hour + us * MICROSECOND, busy_hours, st.integers(0, 3_599_999_999)),
    st.sampled_from([*MONTHS, *(month - MICROSECOND for month in MONTHS)]),
)
ranges_of_hours = st.lists(st.tuples(st.one_of(hours, busy_hours), st.integers(1, 24 * 40)), max_size=5).map(
    lambda drawn: melted([(first, first + length * HOUR) for first, length in drawn])
)

Ranges = list[tuple[datetime, datetime]]


def melted(ranges: Ranges) -> Ranges:
    """Return the same hours in order, those that touch or overlap as one, as a multirange has them."""
    result: Ranges = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], last)
        else:
            result.append((first, last))
    return result


def write_usage(connection: Connection, task_id: Any, instants: Sequence[datetime]) -> None:
    """Write a row at each instant, as if it had always been there."""
    connection.execute("SET LOCAL session_replication_role = replica")
    connection.execute(
        "INSERT INTO task_usage (task_id, provider, model, created_at, updated_at)"
        " SELECT %s, '', n::text, at, NULL FROM unnest(%s::timestamptz[]) WITH ORDINALITY AS e (at, n)",
        [task_id, list(instants)],
    )


def cut(connection: Connection, ranges: Ranges, rows: int) -> list[tuple[datetime, datetime, int]]:
    multirange = TimestamptzMultirange([TimestamptzRange(first, last) for first, last in ranges])
    found = connection.execute("SELECT * FROM task_usage_hourly_slices(%s, %s)", [multirange, rows])
    return [(first.astimezone(UTC), last.astimezone(UTC), count) for first, last, count in found]


def floor_to_hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def check_slices(
    found: list[tuple[datetime, datetime, int]], events: Sequence[datetime], ranges: Ranges, rows: int
) -> None:
    assert found == sorted(found)
    assert melted([(first, last) for first, last, _ in found]) == ranges
    for first, last, count in found:
        assert first == floor_to_hour(first) < last == floor_to_hour(last)
        inside = [instant for instant in events if first <= instant < last]
        assert count == len(inside)
        fullest = max(Counter(map(floor_to_hour, inside)).values(), default=0)
        assert count < rows + max(1, fullest)
    for first, last in ranges:
        parts = [part for part in found if first <= part[0] < last]
        # One after the other from end to end.
        assert [part[0] for part in parts] == [first, *(part[1] for part in parts[:-1])]
        assert parts[-1][1] == last
        # And no more of them than the budget asks for, or every hour were a good slice.
        assert len(parts) <= 1 + (sum(first <= instant < last for instant in events) + rows // 2) // rows


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/St_Johns"])
def test_slices_cover_their_ranges_exactly_by_hours_and_rows(at_102: Database, zone: str) -> None:
    world = small_world(at_102.url)
    task_id = task(at_102.url, world.agents[0])
    with at_102.connect(options=f"-c TimeZone={zone}") as connection:

        @settings(max_examples=40, deadline=None)
        @given(events=st.lists(instants, max_size=30), ranges=ranges_of_hours, rows=st.integers(1, 8))
        @example(events=[], ranges=[], rows=1)
        @example(events=[], ranges=[(utc(2024, 1, 1), utc(2024, 3, 5))], rows=1)
        # Nothing in February, one hour fuller than the budget, a range from the middle of a month on.
        @example(
            events=[utc(2024, 1, 17, 5)] * 9 + [utc(2024, 1, 31, 23), utc(2024, 3, 1)],
            ranges=[(utc(2024, 1, 10), utc(2024, 3, 9))],
            rows=2,
        )
        # The last microsecond of a month, the first of the next one, and the first after the range.
        @example(
            events=[utc(2024, 1, 1) - MICROSECOND, utc(2024, 1, 1), utc(2024, 1, 3)],
            ranges=[(utc(2023, 12, 30), utc(2024, 1, 3))],
            rows=8,
        )
        # Two ranges in one month, each with its own budget.
        @example(
            events=[utc(2024, 1, 17, hour) for hour in (5, 6, 9, 10)],
            ranges=[(utc(2024, 1, 17, 5), utc(2024, 1, 17, 7)), (utc(2024, 1, 17, 9), utc(2024, 1, 17, 11))],
            rows=3,
        )
        def check(events: list[datetime], ranges: Ranges, rows: int) -> None:
            write_usage(connection, task_id, events)
            found = cut(connection, ranges, rows)
            connection.rollback()
            check_slices(found, events, ranges, rows)

        check()


def test_hours_without_events_belong_to_the_slice_before_them(at_102: Database) -> None:
    world = small_world(at_102.url)
    task_id = task(at_102.url, world.agents[0])
    with at_102.connect() as connection:
        write_usage(connection, task_id, [utc(2024, 1, 20, 7), utc(2024, 6, 2, 3)])
        found = cut(connection, [(utc(2024, 1, 10), utc(2024, 7, 1))], 1)
        connection.rollback()
    assert found == [(utc(2024, 1, 10), utc(2024, 6, 2, 3), 1), (utc(2024, 6, 2, 3), utc(2024, 7, 1), 1)]


def test_slices_are_an_eighth_of_all_where_that_is_less_than_what_is_asked_for(at_102: Database) -> None:
    world = small_world(at_102.url)
    with at_102.connect() as connection:
        # Telling triggers and six indexes of half a million rows takes most of the time; slices need one.
        connection.execute(
            "ALTER TABLE task_usage DISABLE TRIGGER USER, DROP CONSTRAINT task_usage_pkey,"
            " DROP CONSTRAINT task_usage_task_id_provider_model_key; DROP INDEX idx_task_usage_updated_at,"
            " idx_task_usage_task_id, idx_task_usage_created_at_legacy"
        )
        write_usage(connection, task(at_102.url, world.agents[0]), [])
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO task_usage (task_id, provider, model, created_at, updated_at)"
            " SELECT id, '', n::text, timestamptz '2024-01-01 00:00+00' + n * interval '1 minute', NULL"
            " FROM agent_task_queue, generate_series(0, 479999) AS n"
        )
        whole = [(utc(2024, 1, 1), utc(2025, 1, 1))]
        connection.execute("SET usage_rollup.slice_rows = ''")
        by_itself = cut(connection, whole, 1_000_000)
        at_most = cut(connection, whole, 30_000)
        connection.execute("SET usage_rollup.slice_rows = '240000'")
        by_setting = cut(connection, whole, 300_000)
        connection.rollback()
    # The first is half of one; no hour is split.
    assert [count for _, _, count in by_itself] == [30_060, *[60_000] * 7, 29_940]
    assert [count for _, _, count in at_most] == [15_000, *[30_000] * 15, 15_000]
    assert [count for _, _, count in by_setting] == [240_000] * 2


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e3", "many", "1234567890", " 1"])
def test_setting_that_is_no_number_of_rows_leaves_the_slices_as_they_are(at_102: Database, text: str) -> None:
    world = small_world(at_102.url)
    task_id = task(at_102.url, world.agents[0])
    with at_102.connect() as connection:
        write_usage(connection, task_id, [utc(2024, 1, 1, hour) for hour in range(8)])
        connection.execute("SELECT set_config('usage_rollup.slice_rows', %s, true)", [text])
        found = cut(connection, [(utc(2024, 1, 1), utc(2024, 1, 2))], 4)
        connection.rollback()
    assert [count for _, _, count in found] == [2, 4, 2]


def test_range_without_events_is_one_slice_without_rows(at_102: Database) -> None:
    ranges = [(utc(2024, 1, 10), utc(2024, 7, 1)), (utc(2025, 1, 1), utc(2025, 1, 1, 1))]
    with at_102.connect() as connection:
        assert cut(connection, ranges, 1) == [(first, last, 0) for first, last in ranges]


# ---------------------------------------------------------------------------------------------
# What is left to walk
# ---------------------------------------------------------------------------------------------


def unwalked(database: Database) -> Ranges:
    """Return what is left, read in a zone whose days begin at 18:15 UTC."""
    with database.connect(options="-c TimeZone=Asia/Kathmandu") as connection:
        row = connection.execute("SELECT task_usage_hourly_unwalked()").fetchone()
    assert row is not None
    return [(part.lower.astimezone(UTC), part.upper.astimezone(UTC)) for part in row[0]]


def move_watermark(database: Database, to: Timestamp) -> None:
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = %s::timestamptz", to)


def test_untouched_rollup_has_every_day_from_the_first_to_the_last_to_walk(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2024-01-10 23:59:59.999999+00", "2024-05-01 00:00+00")
    event(at_102.url, world, "2024-02-29 00:00+00", None)
    assert unwalked(at_102) == [(utc(2024, 1, 10), utc(2024, 3, 1))]
    # At the first event it has still passed none.
    move_watermark(at_102, "2024-02-29 00:00+00")
    assert unwalked(at_102) == [(utc(2024, 1, 10), utc(2024, 3, 1))]
    move_watermark(at_102, "-infinity")
    assert unwalked(at_102) == [(utc(2024, 1, 10), utc(2024, 3, 1))]
    move_watermark(at_102, "epoch")


def test_above_the_first_event_only_days_touched_since_the_watermark_are_to_walk(at_102: Database) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2024-01-10 10:00+00")
    event(at_102.url, world, "2024-01-15 18:30+00", "2024-05-01 00:00+00")  # corrected at the watermark
    event(at_102.url, world, "2024-01-16 18:30+00", "2024-04-30 23:59:59.999999+00")  # just before it
    event(at_102.url, world, "2024-05-02 00:00+00", None)
    event(at_102.url, world, "2024-05-03 23:59:59.999999+00")
    event(at_102.url, world, "2024-05-10 10:00+00", "2024-04-01 10:00+00")  # dated before it was created
    event(at_102.url, world, "infinity")
    # What is queued is the drain's.
    move_watermark(at_102, "2024-05-01 00:00+00")
    assert unwalked(at_102) == [
        (utc(2024, 1, 15), utc(2024, 1, 16)),
        (utc(2024, 5, 2), utc(2024, 5, 4)),
    ]


def test_nothing_is_to_walk_without_usage_or_without_an_event_above_the_watermark(at_102: Database) -> None:
    assert unwalked(at_102) == []
    world = small_world(at_102.url)
    event(at_102.url, world, "2024-01-10 10:00+00")
    event(at_102.url, world, "2024-01-11 10:00+00", None)
    move_watermark(at_102, "2024-01-11 10:00:00.000001+00")
    assert unwalked(at_102) == []


@pytest.mark.parametrize(
    ("below", "above"),
    [
        # By created_at only where there is no updated_at.
        ([("2024-03-01 10:00+00", None)], [("2024-05-02 10:00+00", "2024-05-02 10:00+00")]),
        ([("2024-03-01 10:00+00", "2024-03-01 10:00+00")], [("2024-05-02 10:00+00", None)]),
        # At the watermark is above it.
        ([("2024-03-01 10:00+00", None)], [("2024-05-01 00:00+00", None), ("2024-05-02 10:00+00", None)]),
    ],
)
def test_first_event_decides_by_the_time_it_goes_by(
    at_102: Database, below: list[tuple[str, str | None]], above: list[tuple[str, str | None]]
) -> None:
    world = small_world(at_102.url)
    for created_at, updated_at in (*below, *above):
        event(at_102.url, world, created_at, updated_at)
    move_watermark(at_102, "2024-05-01 00:00+00")
    first = utc(2024, 5, 1) if len(above) > 1 else utc(2024, 5, 2)
    assert unwalked(at_102) == [(first, utc(2024, 5, 3))]


def test_everything_is_to_walk_where_all_was_corrected_above_the_watermark(at_102: Database) -> None:
    world = small_world(at_102.url)
    for day in (1, 10):
        event(at_102.url, world, f"2024-03-{day:02} 10:00+00", "2024-05-02 10:00+00")
    move_watermark(at_102, "2024-05-01 00:00+00")
    assert unwalked(at_102) == [(utc(2024, 3, 1), utc(2024, 3, 11))]


# All that is left, or what an event of either kind has touched.
@pytest.mark.parametrize("passed", [False, True], ids=["untouched", "above_the_first_event"])
@pytest.mark.parametrize("updated_at", [None, "2024-05-02 10:00+00"], ids=["by_created_at", "by_updated_at"])
def test_rows_that_belong_to_no_hour_are_not_to_walk(
    at_102: Database, updated_at: str | None, passed: bool
) -> None:
    world = small_world(at_102.url)
    for created_at in ("infinity", "-infinity", "20250-03-01 10:00+00", "0044-03-15 10:00+00 BC"):
        event(at_102.url, world, created_at, updated_at)
    move_watermark(at_102, "-infinity")
    assert unwalked(at_102) == []
    event(at_102.url, world, "2024-05-01 10:00+00", "2024-04-01 10:00+00" if passed else None)
    if passed:
        move_watermark(at_102, "2024-05-01 00:00+00")
    assert unwalked(at_102) == ([] if passed else [(utc(2024, 5, 1), utc(2024, 5, 2))])


# ---------------------------------------------------------------------------------------------
# Indexes that a long walk does without
# ---------------------------------------------------------------------------------------------


def indexes(database: Database, *, identity: bool = False) -> dict[str, Any]:
    """Return the valid secondary indexes of the hourly table: their definitions, or what is rebuilt."""
    wanted = "ARRAY[i.indexrelid, c.relfilenode]" if identity else "pg_get_indexdef(i.indexrelid)"
    return {
        row[0]: row[1]
        for row in database.execute(
            f"SELECT c.relname, {wanted} FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = 'task_usage_hourly'::regclass AND NOT i.indisunique AND i.indisvalid"
        )
    }


def plan(database: Database, rows: int) -> None:
    """Plan as the hook does, in slices of `rows` usage rows."""
    database.execute("SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', %s)", rows)


@pytest.fixture
def used(at_102: Database) -> Database:
    """Return a database at 102 with an event in each of the first four months of 2025."""
    with at_102.connect() as connection:
        world = small_world(connection)
        for month in range(1, 5):
            event(connection, world, f"2025-0{month}-10 10:20+00", agent=month % 3, issue=month % 3)
    assert set(indexes(at_102)) == SECONDARY_INDEXES
    return at_102


def test_walk_of_several_slices_into_an_empty_table_builds_the_indexes_again_at_its_end(
    used: Database,
) -> None:
    before = indexes(used)
    plan(used, 1)
    assert indexes(used) == {}
    used.execute("SELECT rollup_task_usage_hourly_slice()")
    assert indexes(used) == {}
    assert run_hook(used).slices == 3
    assert indexes(used) == before


@pytest.mark.parametrize("key", [HOURLY_ROLLUP, MIGRATION_RUN])
def test_watermark_is_not_moved_by_a_session_that_has_lost_a_lock(at_102: Database, key: int) -> None:
    event(at_102.url, small_world(at_102.url), "2025-01-10 10:20+00")
    with at_102.migration_connection() as session:
        for one in (MIGRATION_RUN, HOURLY_ROLLUP):
            advisory_lock.acquire(session, one)
        slice_plan.plan(session)
        assert slice_plan.walk_next(session) is not None
        assert slice_plan.walk_next(session) is None
        session.execute(sa.text(f"SELECT pg_advisory_unlock({key})"))
        with pytest.raises(UnsuitableDatabase):
            slice_plan.finish(session)
    assert at_102.value("SELECT watermark_at = 'epoch' FROM task_usage_hourly_rollup_state")
    run_hook(at_102)


def test_hook_builds_the_indexes_again(used: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_plan, "SLICE_ROWS", 1)
    before, built = indexes(used), indexes(used, identity=True)
    assert run_hook(used).slices == 4
    assert indexes(used) == before
    after = indexes(used, identity=True)
    assert not [name for name in after if after[name] == built[name]]


def test_walk_keeps_the_indexes_of_a_table_that_holds_rows(
    used: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_plan, "SLICE_ROWS", 1)
    built = indexes(used, identity=True)
    used.execute("SELECT rollup_task_usage_hourly_range('2025-02-01', '2025-03-01')")
    assert run_hook(used).slices == 4
    assert indexes(used, identity=True) == built


def test_walk_of_one_slices_worth_of_rows_keeps_the_indexes(
    used: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_plan, "SLICE_ROWS", 4)
    built = indexes(used, identity=True)
    assert run_hook(used).rows == 4
    assert indexes(used, identity=True) == built


def test_walk_keeps_the_indexes_of_a_table_that_somebody_reads(
    used: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_plan, "SLICE_ROWS", 1)
    built = indexes(used, identity=True)
    reader = used.connect()
    reader.execute("SELECT count(*) FROM task_usage_hourly")
    # Until its end, without which a walk that waited would wait for ever.
    with used.migration_connection() as connection:
        connection.exec_driver_sql(f"SET statement_timeout = '{DEADLINE_S:.0f}s'")
        connection.commit()
        assert backfill_before_103(connection, Options(jobs=1)).slices == 4
    assert reader.execute("SELECT count(*) FROM task_usage_hourly").fetchone() == (4,)
    assert indexes(used, identity=True) == built


def test_backfill_without_anything_to_walk_leaves_the_indexes_alone(
    used: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_plan, "SLICE_ROWS", 1)
    run_hook(used)
    built = indexes(used, identity=True)
    assert run_hook(used).skipped == "watermark_within_threshold"
    plan(used, 1)
    assert indexes(used, identity=True) == built


def kill_without_indexes(database: Database) -> None:
    """Kill a run at the slice of March, with SIGKILL, after its plan has dropped the indexes."""
    plan(database, 1)
    with blocked_at(database, utc(2025, 3, 1)):
        runner = database.spawn("alembic", "upgrade", "head")
        wait_until_blocked(database)
        runner.kill()
        runner.communicate(timeout=DEADLINE_S)
        assert runner.returncode != 0
    wait_until(lambda: runners(database) == 0, "its backend has ended the statement")
    assert database.revision == "102"
    assert indexes(database) == {}


@pytest.mark.parametrize("writes", ["ROW EXCLUSIVE", "ACCESS SHARE"])
def test_indexes_that_are_there_are_not_built_again_and_nobody_is_waited_for(
    used: Database, writes: str
) -> None:
    somebody = used.connect()
    somebody.execute(f"LOCK TABLE task_usage_hourly IN {writes} MODE")
    with used.connect(options="-c lock_timeout=1s") as connection:
        connection.execute("SELECT rollup_task_usage_hourly_build_indexes()")
    assert set(indexes(used)) == SECONDARY_INDEXES


def test_walk_keeps_the_indexes_where_its_role_could_not_build_them_again(
    used: Database, make_role: MakeRole
) -> None:
    role = make_role("owner")
    used.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    used.execute(f"ALTER TABLE task_usage_hourly OWNER TO {role}")
    built = indexes(used, identity=True)
    with used.connect(user=role, password=role) as connection:
        connection.execute("SELECT rollup_task_usage_hourly_plan(now(), 1)")
    assert indexes(used, identity=True) == built
    # The trap: it may drop them.
    with used.connect(user=role, password=role) as connection:
        connection.execute("DROP INDEX idx_task_usage_hourly_workspace_time")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("CREATE INDEX ON task_usage_hourly (workspace_id)")
    run_hook(used)


def test_plan_fails_where_anything_but_a_reader_keeps_the_indexes(used: Database) -> None:
    used.execute(
        "CREATE FUNCTION fail() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END$$;"
        "CREATE EVENT TRIGGER fail ON ddl_command_start WHEN TAG IN ('DROP INDEX') EXECUTE FUNCTION fail()"
    )
    with pytest.raises(errors.DiskFull):
        plan(used, 1)
    assert used.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0
    used.execute("DROP EVENT TRIGGER fail")
    assert run_hook(used).rows == 4


def test_long_walk_does_without_the_indexes_whatever_its_slices_may_hold(used: Database) -> None:
    with used.connect() as connection:
        connection.execute("ALTER TABLE task_usage DISABLE TRIGGER USER")
        connection.execute(
            "INSERT INTO task_usage (task_id, provider, model, created_at, updated_at)"
            " SELECT (SELECT id FROM agent_task_queue LIMIT 1), '', n::text, '2025-01-10 11:00+00', NULL"
            " FROM generate_series(1, 50000) AS n"
        )
        connection.execute("SELECT rollup_task_usage_hourly_plan(now(), 500000)")
        left = "SELECT count(*) FROM pg_index WHERE indrelid = 'task_usage_hourly'::regclass"
        assert connection.execute(left).fetchone() == (1,)
        connection.rollback()


def test_killed_walk_that_is_run_again_ends_with_all_indexes(used: Database) -> None:
    before = indexes(used)
    kill_without_indexes(used)
    # March and April: a slice without its client's COMMIT is as if it had not been.
    assert slices(used.upgrade()) == 2
    assert used.revision == "104"
    assert indexes(used) == before


def test_downgrade_after_a_killed_walk_leaves_the_table_with_all_its_indexes(used: Database) -> None:
    before = indexes(used)
    kill_without_indexes(used)
    result = used.alembic("downgrade", "101")
    assert result.returncode == 0, result.stdout
    assert used.revision == "101"
    assert indexes(used) == before


@pytest.mark.parametrize("walked", [0, 2])
def test_usage_emptied_after_a_killed_walk_leaves_the_table_with_all_its_indexes(
    used: Database, walked: int
) -> None:
    before = indexes(used)
    plan(used, 1)
    for _ in range(walked):
        used.execute("SELECT rollup_task_usage_hourly_slice()")
    used.execute("TRUNCATE task_usage")
    assert run_hook(used).skipped == "task_usage_empty"
    assert indexes(used) == before


# ---------------------------------------------------------------------------------------------
# Plan, slice and finish
# ---------------------------------------------------------------------------------------------

SLICE = "SELECT slice_from, slice_to FROM rollup_task_usage_hourly_slice()"
FINISH = "SELECT rollup_task_usage_hourly_finish()"
UNWALKED = "SELECT from_hour FROM task_usage_hourly_backfill WHERE walked_at IS NULL ORDER BY 1"


def walk(database: Database) -> Ranges:
    """Walk all slices that are left; return them."""
    walked: Ranges = []
    while found := database.execute(SLICE):
        walked.extend(found)
    return walked


def test_slice_that_another_session_walks_is_passed_over_and_not_waited_for(used: Database) -> None:
    plan(used, 1)
    (first,), (second,), *others = used.execute(UNWALKED)
    another = used.connect()
    another.execute(f"{UNWALKED} LIMIT 1 FOR UPDATE")
    with used.connect(options="-c lock_timeout=2s") as session:
        row = session.execute(SLICE).fetchone()
    assert row is not None
    assert row[0] == second
    # Only its own mark is made.
    another.rollback()
    assert used.execute(UNWALKED) == [(first,), *others]
    assert run_hook(used).slices == 3


def test_backfill_is_not_finished_before_its_last_slice_is_walked(used: Database) -> None:
    plan(used, 1)
    for left in range(4, 0, -1):
        assert len(used.execute(UNWALKED)) == left
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="not finished"):
            used.execute(FINISH)
        assert used.value(WATERMARK) == utc(1970, 1, 1)
        used.execute(SLICE)
    assert used.execute(SLICE) == []
    used.execute(FINISH)
    assert used.value(WATERMARK) > utc(2025, 5, 1)
    assert used.value("SELECT count(*) FROM task_usage_hourly_backfill") == 0


def test_settings_of_a_plan_and_a_slice_end_with_their_transactions(used: Database) -> None:
    session = used.connect()
    settings = "SELECT current_setting('synchronous_commit'), current_setting('lock_timeout')"
    session.execute("SET synchronous_commit = on; SET lock_timeout = '7s'")
    session.commit()
    session.execute("SELECT rollup_task_usage_hourly_plan(now(), 1)")
    session.commit()
    assert session.execute(settings).fetchone() == ("on", "7s")
    session.execute(SLICE)
    # Its own commit need not wait for the disk; the next one is 103's.
    assert session.execute(settings).fetchone() == ("off", "7s")
    session.commit()
    assert session.execute(settings).fetchone() == ("on", "7s")
    session.rollback()
    run_hook(used)


@pytest.mark.parametrize("horizon", ["now() - interval '5 minutes'", "'-infinity'"])
def test_plan_of_nothing_takes_the_watermark_forward_and_never_back(at_102: Database, horizon: str) -> None:
    move_watermark(at_102, "2025-01-01 00:00+00")
    before = at_102.value(WATERMARK)
    at_102.execute(f"SELECT rollup_task_usage_hourly_plan({horizon}, 1)")
    assert (at_102.value(WATERMARK) > before) is ("now" in horizon)
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp()")
    before = at_102.value(WATERMARK)
    at_102.execute(f"SELECT rollup_task_usage_hourly_plan({horizon}, 1)")
    assert at_102.value(WATERMARK) == before


def test_finish_does_not_take_back_a_watermark_that_has_moved_on(used: Database) -> None:
    plan(used, 1)
    walk(used)
    used.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp()")
    before = used.value(WATERMARK)
    assert used.value(FINISH) == used.value(WATERMARK) == before


def test_watermark_goes_to_the_horizon_of_the_plan_when_the_last_slice_is_walked(used: Database) -> None:
    used.execute("SELECT rollup_task_usage_hourly_plan('2025-04-20 00:00+00', 1)")
    walk(used)
    assert used.value(FINISH) == used.value(WATERMARK) == utc(2025, 4, 20)


LEAVE_OUT = "SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', 1, %s)"


def test_what_is_left_out_is_what_was_acknowledged_last_and_by_whom(used: Database) -> None:
    # From the first hour there is on: nothing is left out.
    used.execute(LEAVE_OUT, utc(2025, 1, 10))
    assert used.value("SELECT count(*) FROM task_usage_hourly_left_out") == 0

    used.execute(LEAVE_OUT, utc(2025, 4, 1))
    assert used.execute(UNWALKED) == [(utc(2025, 4, 1),)]
    used.execute(
        "UPDATE task_usage_hourly_left_out SET acknowledged_at = 'epoch', acknowledged_by = 'somebody'"
    )
    before = used.value("SELECT clock_timestamp()")
    used.execute(LEAVE_OUT, utc(2025, 3, 1))
    ((hour, at, by),) = used.execute(
        "SELECT before_hour, acknowledged_at, acknowledged_by FROM task_usage_hourly_left_out"
    )
    assert (hour, by) == (utc(2025, 3, 1), used.value("SELECT session_user::text"))
    assert at > before
    assert [row[0] for row in used.execute(UNWALKED)] == [utc(2025, 3, 1), utc(2025, 4, 10, 10)]
    run_hook(used)
    assert used.value("SELECT count(*) FROM task_usage_hourly_left_out") == 0
    assert wrong_hours(used) == []


@pytest.mark.parametrize("walked", [1, 2, 3])
def test_repair_that_meets_slices_of_an_unfinished_walk_has_them_walked_whole_again(
    used: Database, walked: int
) -> None:
    plan(used, 2)
    february, april, last = utc(2025, 2, 10, 10), utc(2025, 4, 10, 10), utc(2025, 4, 11)
    assert used.execute(UNWALKED) == [(utc(2025, 1, 10),), (february,), (april,)]
    for _ in range(walked):
        used.execute(SLICE)
    corrupt(used, f"bucket_hour = '{february}'")
    used.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT %s, workspace_id, runtime_id, id, '', 'gone' FROM agent LIMIT 1",
        last + HOUR,
    )
    # One shorter than the slice that begins there, and one that goes on beyond it.
    hours = [february, *(april + n * HOUR for n in range(16))]
    assert used.value("SELECT rollup_task_usage_hourly_plan_repair(100, %s)", hours) == 17
    assert used.execute(UNWALKED) == [(february,), (april,)]
    assert walk(used) == [(february, april), (april, last + 2 * HOUR)]
    used.execute(FINISH)
    assert used.value("SELECT count(*) FROM task_usage_hourly") == 4
    assert wrong_hours(used) == []


def test_repair_beside_an_unfinished_walk_claims_no_more_than_was_claimed_before(used: Database) -> None:
    plan(used, 1)
    assert used.value("SELECT rollup_task_usage_hourly_plan_repair(100, %s)", [utc(2001, 1, 1)]) == 1
    assert len(walk(used)) == 5
    used.execute(FINISH)
    assert used.value(WATERMARK) == utc(1970, 1, 1)
    run_hook(used)
    assert used.value(WATERMARK) > utc(2025, 5, 1)


def test_bucket_that_two_walkers_set_aside_bears_the_time_of_the_second(at_102: Database) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:15+00", model=LONG_MODEL)
    plan(at_102, 1)
    # An hour of a slice that is still to walk.
    at_102.execute("SELECT rollup_task_usage_hourly_plan_repair(100, %s)", [utc(2025, 3, 1, 10)])
    assert at_102.execute(UNWALKED) == [(utc(2025, 3, 1),), (utc(2025, 3, 1, 10),)]
    first = at_102.connect()
    first.execute(SLICE)
    with (
        at_102.connect(options=f"-c statement_timeout={DEADLINE_S:.0f}s") as second,
        ThreadPoolExecutor(1) as pool,
    ):
        began = second.execute("SELECT now()").fetchone()
        walking = pool.submit(second.execute, SLICE)
        wait_until(lambda: is_blocked(at_102, second), "the second walker meets the first one's bucket")
        first.commit()
        walking.result()
    assert at_102.execute("SELECT set_aside_at FROM task_usage_hourly_set_aside") == [began]
    assert wrong_hours(at_102) == []


def test_repair_finds_what_differs_itself_and_takes_whole_hours(used: Database) -> None:
    run_hook(used)
    before = used.value(WATERMARK)
    # What is pending is a tick's.
    used.execute("UPDATE task_usage SET input_tokens = 1 WHERE created_at < '2025-02-01'")
    corrupt(used, "bucket_hour > '2025-02-01'")
    used.execute(
        "UPDATE task_usage_hourly SET bucket_hour = bucket_hour + interval '30 minutes'"
        " WHERE bucket_hour > '2025-04-01'"
    )
    assert used.value("SELECT rollup_task_usage_hourly_plan_repair(100)") == 3
    assert walk(used) == [(hour, hour + HOUR) for hour in (utc(2025, n, 10, 10) for n in (2, 3, 4))]
    used.execute(FINISH)
    assert used.value(WATERMARK) == before
    used.execute("SELECT rollup_task_usage_hourly()")
    assert wrong_hours(used) == []
