"""102's own oracle, asked directly: what should be there, which keys are wrong, which hours are pending."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.database import Connection, Database
from tests.support.product import LONG_MODEL, Timestamp, World, event, small_world, task, usage, utc
from tests.support.rollup import UNQUEUE, WINDOW

pytestmark = pytest.mark.server

TEN = utc(2025, 3, 1, 10)
HOUR = timedelta(hours=1)
# Later than all that the fixtures write.
WATERMARK = utc(2025, 6, 1)

Rows = list[tuple[Any, ...]]


def roll_up(database: Database) -> None:
    database.execute(WINDOW)
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = %s", WATERMARK)


def tried(connection: Connection) -> AbstractContextManager[Any]:
    """Return a block whose changes are undone at its end."""
    return connection.transaction(force_rollback=True)


def hours(connection: Connection, query: str, *parameters: Any) -> list[datetime]:
    return sorted(row[0] for row in connection.execute(query, parameters))


def differences(connection: Connection, since: Any = "-infinity", until: Any = "infinity") -> list[datetime]:
    return hours(connection, "SELECT task_usage_hourly_differences(%s, %s)", since, until)


def wrong_keys(connection: Connection) -> Rows:
    """Return hour, workspace, runtime, agent, project, provider and model of what is wrong."""
    return connection.execute(
        "SELECT * FROM task_usage_hourly_wrong_keys('-infinity', 'infinity')"
    ).fetchall()


def pending(connection: Connection) -> list[datetime]:
    return hours(connection, "SELECT task_usage_hourly_pending_hours()")


# What the rollup should hold

AGGREGATES = (
    "task_usage_hourly_expected",
    "rollup_task_usage_hourly_aggregate",
    "rollup_task_usage_hourly_aggregate_by_scan",
)


def test_each_kind_of_tokens_is_summed_into_its_own_column_and_each_task_counted_once(
    at_102: Database,
) -> None:
    world = small_world(at_102.url)
    for n in (1, 2):
        at_102.execute(
            "INSERT INTO task_usage (task_id, provider, model, input_tokens, output_tokens,"
            " cache_read_tokens, cache_write_tokens, created_at) VALUES (%s, 'p', 'm', %s, %s, %s, %s, %s)",
            task(at_102.url, world.agents[0], issue_id=world.issues[0]),
            *(n, 20 * n, 300 * n, 4_000 * n),
            TEN,
        )
    key = (TEN, world.workspaces[0], world.runtimes[0], world.agents[0], world.projects[0], "p", "m")
    for function in AGGREGATES:
        assert at_102.execute(f"SELECT * FROM {function}(%s, %s)", TEN, TEN + HOUR) == [
            (*key, 3, 60, 900, 12_000, 2, 2)
        ]


def test_every_way_to_aggregate_takes_the_first_instant_of_a_range_and_not_the_one_after_it(
    at_102: Database,
) -> None:
    world = small_world(at_102.url)
    with at_102.connect() as connection:
        for instant in (TEN - HOUR, TEN, TEN + HOUR):
            # On the hour; of one task, whose other usage is an hour away; without a project, too.
            reported = task(connection, world.agents[0], issue_id=world.issues[0])
            for model, moved in (("within", 0), ("before", -1), ("after", 1)):
                usage(connection, reported, instant + moved * HOUR, model=model)
            event(connection, world, instant, issue=None)
            event(connection, world, instant, agent=2, issue=3, provider="codex")
        found = [
            connection.execute(f"SELECT * FROM {function}(%s, %s)", [TEN, TEN + HOUR]).fetchall()
            for function in AGGREGATES
        ]
    assert {row[0] for row in found[0]} == {TEN}
    assert len(found[0]) == 5
    assert sorted(found[0], key=str) == sorted(found[1], key=str) == sorted(found[2], key=str)


def test_sum_beyond_bigint_is_the_nearest_bigint_on_either_side(at_102: Database) -> None:
    most, least = 2**63 - 1, -(2**63)
    totals = {most + 1: most, most: most, 7: 7, -7: -7, least: least, least - 1: least, 10**30: most}
    assert {total: at_102.value(f"SELECT task_usage_hourly_sum({total})") for total in totals} == totals


def test_labels_that_read_alike_one_after_the_other_have_digests_of_their_own(at_102: Database) -> None:
    digest = "SELECT task_usage_hourly_label_digest(%s, %s)"
    labels = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("c", "ab")]
    assert len({at_102.value(digest, *label) for label in labels}) == len(labels)


# What is wrong


@pytest.fixture
def right(at_102: Database) -> tuple[Database, World]:
    """Return a database at 102 whose rollup is right: one hour, with and without a project."""
    world = small_world(at_102.url)
    with at_102.connect() as connection:
        event(connection, world, TEN, agent=0, issue=None)
        event(connection, world, TEN, agent=0, issue=0)
        event(connection, world, TEN, agent=2, issue=3)
    roll_up(at_102)
    return at_102, world


MEASURES = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "task_count",
    "event_count",
)


def test_every_measure_alone_makes_a_bucket_wrong(right: tuple[Database, World]) -> None:
    database, world = right
    with database.connect() as connection:
        assert differences(connection) == wrong_keys(connection) == []
        for measure in MEASURES:
            for change in (1, -1):
                with tried(connection):
                    connection.execute(
                        f"UPDATE task_usage_hourly SET {measure} = {measure} + %s WHERE agent_id = %s",
                        [change, world.agents[2]],
                    )
                    assert differences(connection) == [TEN], measure
                    assert [key[3] for key in wrong_keys(connection)] == [world.agents[2]], measure


NOBODY = "'00000000-0000-0000-0000-000000000000'"
# Of the bucket with a project, and of the one without.
KEYS = [
    *((2, f"{column} = gen_random_uuid()") for column in ("workspace_id", "runtime_id", "agent_id")),
    *((2, f"{column} = 'other'") for column in ("provider", "model")),
    *((2, f"project_id = {project}") for project in ("NULL", "gen_random_uuid()", NOBODY)),
    *((0, f"project_id = {project}") for project in ("gen_random_uuid()", NOBODY)),
    (2, "bucket_hour = bucket_hour + interval '1 hour'"),
]


def test_every_part_of_the_key_alone_makes_one_bucket_missing_and_another_left_over(
    right: tuple[Database, World],
) -> None:
    database, world = right
    with database.connect() as connection:
        for agent, change in KEYS:
            with tried(connection):
                changed = connection.execute(
                    f"UPDATE task_usage_hourly SET {change} WHERE agent_id = %s"
                    " AND (project_id IS NULL OR agent_id = %s)",
                    [world.agents[agent], world.agents[2]],
                )
                assert changed.rowcount == 1
                assert len(wrong_keys(connection)) == 2, change


@pytest.mark.parametrize("gone", ["task_usage_hourly", "task_usage"])
def test_range_has_its_first_hour_and_not_the_one_after_it(at_102: Database, gone: str) -> None:
    world = small_world(at_102.url)
    for instant in (TEN - HOUR, TEN, TEN + HOUR):
        event(at_102.url, world, instant)
    roll_up(at_102)
    with at_102.connect() as connection, tried(connection):
        assert differences(connection) == []
        connection.execute(f"DELETE FROM {gone}")
        connection.execute(UNQUEUE)
        assert differences(connection, TEN, TEN + HOUR) == [TEN]
        assert differences(connection, TEN) == [TEN, TEN + HOUR]
        assert differences(connection, "-infinity", TEN) == [TEN - HOUR]


def test_buckets_of_hours_that_no_client_can_read_are_not_judged(right: tuple[Database, World]) -> None:
    database, _ = right
    left_over = (
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT %s, workspace_id, runtime_id, agent_id, '', '' FROM task_usage_hourly LIMIT 1"
    )
    with database.connect(options="-c TimeZone=UTC") as connection, tried(connection):
        for hour in ("-infinity", "0044-03-15 10:00+00 BC", "9999-01-01 00:00+00", "infinity"):
            connection.execute(left_over, [hour])
        assert wrong_keys(connection) == []
        # Those at either end of what can be read are.
        for hour in ("0001-01-01 00:00+00", "9998-12-31 23:00+00"):
            connection.execute(left_over, [hour])
        assert differences(connection) == [utc(1, 1, 1), utc(9998, 12, 31, 23)]


def test_what_is_pending_is_no_difference_unless_it_is_asked_for(right: tuple[Database, World]) -> None:
    database, world = right
    event(database.url, world, TEN + HOUR)
    roll_up(database)
    with database.connect() as connection, tried(connection):
        connection.execute("UPDATE task_usage_hourly SET event_count = 0")
        assert differences(connection) == [TEN, TEN + HOUR]
        connection.execute("INSERT INTO task_usage_hourly_invalidation (bucket_hour) VALUES (%s)", [TEN])
        assert differences(connection) == [TEN + HOUR]
        everything = "SELECT task_usage_hourly_differences('-infinity', 'infinity', true)"
        assert hours(connection, everything) == [TEN, TEN + HOUR]


# What is set aside


def test_a_bucket_that_is_set_aside_excuses_itself_and_no_neighbour(at_102: Database) -> None:
    world = small_world(at_102.url)
    with at_102.connect() as connection:
        # None fits the table's index; each differs from the first in one part of the key.
        event(connection, world, TEN, model=LONG_MODEL)
        event(connection, world, TEN + HOUR, model=LONG_MODEL)
        event(connection, world, TEN, model=LONG_MODEL, agent=1)
        event(connection, world, TEN, model=LONG_MODEL, issue=None)
        event(connection, world, TEN, model=LONG_MODEL, issue=3)
        event(connection, world, TEN, model=LONG_MODEL, provider="codex")
        event(connection, world, TEN, model=LONG_MODEL[::-1])
        elsewhere = task(connection, world.agents[0], world.runtimes[1], world.issues[0])
        usage(connection, elsewhere, TEN, model=LONG_MODEL)
    roll_up(at_102)
    assert at_102.value("SELECT count(*) FROM task_usage_hourly") == 0
    with at_102.connect() as connection:
        assert wrong_keys(connection) == []
        aside = connection.execute(
            "SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, label_digest, ctid"
            " FROM task_usage_hourly_set_aside"
        ).fetchall()
        assert len(aside) == 8
        for *key, digest, place in aside:
            for change in (
                "DELETE FROM task_usage_hourly_set_aside WHERE ctid = %s",
                "UPDATE task_usage_hourly_set_aside SET workspace_id = gen_random_uuid() WHERE ctid = %s",
            ):
                with tried(connection):
                    connection.execute(change, [place])
                    (wrong,) = wrong_keys(connection)
                    assert list(wrong[:5]) == key
                    labelled = "SELECT task_usage_hourly_label_digest(%s, %s)"
                    assert connection.execute(labelled, wrong[5:]).fetchone() == (digest,)


def test_a_bucket_that_is_stored_is_judged_although_it_is_set_aside(right: tuple[Database, World]) -> None:
    database, world = right
    with database.connect() as connection, tried(connection):
        connection.execute(
            "INSERT INTO task_usage_hourly_set_aside (bucket_hour, workspace_id, runtime_id, agent_id,"
            " project_id, label_digest, label_start, sqlstate, error)"
            " SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id,"
            " task_usage_hourly_label_digest(provider, model), '', '', '' FROM task_usage_hourly"
        )
        assert wrong_keys(connection) == []
        connection.execute(
            "UPDATE task_usage_hourly SET event_count = 2 WHERE agent_id = %s", [world.agents[2]]
        )
        assert [key[3] for key in wrong_keys(connection)] == [world.agents[2]]
        connection.execute("DELETE FROM task_usage_hourly")
        assert wrong_keys(connection) == []


# What is pending


def test_what_is_queued_stands_for_its_hours_and_no_others(at_102: Database) -> None:
    world = small_world(at_102.url)
    with at_102.connect() as connection:
        reported = task(connection, world.agents[0], issue_id=world.issues[0])
        usage(connection, reported, TEN, model="one")
        usage(connection, reported, TEN + 2 * HOUR, model="two")
        event(connection, world, TEN + 3 * HOUR, agent=0, issue=1)
        event(connection, world, TEN + 4 * HOUR, agent=1, issue=0)
        event(connection, world, TEN + 5 * HOUR, agent=2, issue=None)
    roll_up(at_102)
    queued: list[tuple[dict[str, Any], tuple[int, ...]]] = [
        ({"bucket_hour": TEN + HOUR}, (1,)),
        ({"task_id": reported}, (0, 2)),
        # That task's buckets, in this hour alone.
        ({"task_id": reported, "bucket_hour": TEN}, (0,)),
        ({"issue_id": world.issues[0]}, (0, 2, 4)),
        ({"agent_id": world.agents[0]}, (0, 2, 3)),
        ({"enqueued_at": TEN}, (0, 2, 3, 4, 5)),
        ({"task_id": world.agents[0]}, ()),
    ]
    with at_102.connect() as connection:
        assert pending(connection) == []
        for row, expected in queued:
            with tried(connection):
                connection.execute(
                    f"INSERT INTO task_usage_hourly_invalidation ({', '.join(row)})"
                    f" VALUES ({', '.join(['%s'] * len(row))})",
                    list(row.values()),
                )
                assert pending(connection) == [TEN + hour * HOUR for hour in expected], row
        with tried(connection):
            # Of the product's own queue the whole hour, wherever in it a row lies.
            connection.execute(
                "INSERT INTO task_usage_hourly_dirty (bucket_hour, workspace_id, runtime_id, agent_id,"
                " provider, model) SELECT bucket_hour + interval '59 minutes', workspace_id, runtime_id,"
                " agent_id, provider, model FROM task_usage_hourly WHERE agent_id = %s",
                [world.agents[2]],
            )
            assert pending(connection) == [TEN + 5 * HOUR]


MOMENT = timedelta(microseconds=1)
# created_at, updated_at, and whether a window that begins at the watermark comes by.
BY_TIME: list[tuple[datetime, Timestamp | None, bool]] = [
    (utc(2025, 3, 1, 1), WATERMARK - MOMENT, False),
    (utc(2025, 3, 1, 2), WATERMARK, True),
    (utc(2025, 3, 1, 3), WATERMARK + MOMENT, True),
    # Nobody will come again for what is dated in the future: it was queued when it was written.
    (utc(2025, 3, 1, 4), utc(2200, 1, 1), False),
    (utc(2025, 3, 1, 5), "infinity", False),
    (utc(2025, 3, 1, 6), "-infinity", False),
    # Rows older than the column updated_at go by created_at, and no others do.
    (WATERMARK - HOUR, None, False),
    (WATERMARK, None, True),
    (WATERMARK + HOUR, None, True),
    (utc(2200, 1, 1), None, False),
    (WATERMARK + 2 * HOUR, WATERMARK - MOMENT, False),
    (utc(2200, 1, 2), WATERMARK, True),
]


def test_what_is_not_behind_the_watermark_is_pending_by_its_own_time(at_102: Database) -> None:
    world = small_world(at_102.url)
    roll_up(at_102)
    with at_102.connect() as connection, tried(connection):
        for created_at, updated_at, _ in BY_TIME:
            event(connection, world, created_at, updated_at)
        connection.execute(UNQUEUE)
        expected = [created_at for created_at, _, comes_by in BY_TIME if comes_by]
        assert pending(connection) == sorted(expected)
        # Nothing of it is rolled up: what is not pending is wrong.
        assert differences(connection) == sorted({created_at for created_at, *_ in BY_TIME} - {*expected})
        connection.execute("DELETE FROM task_usage_hourly_rollup_state")
        dated_later = {utc(2025, 3, 1, 4), utc(2025, 3, 1, 5), utc(2200, 1, 1)}
        assert pending(connection) == sorted({created_at for created_at, *_ in BY_TIME} - dated_later)
