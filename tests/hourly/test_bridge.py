"""The bridge to a later release's window: what prune_task_usage_hourly_dirty() hands over, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from psycopg import IsolationLevel, errors

from tests.support.database import Connection, Database
from tests.support.horizon import rewrite_function
from tests.support.later_release import apply_later_release, later_tick
from tests.support.oracle import wrong_buckets, wrong_costs
from tests.support.product import LONG_MODEL, World, counts, event, project, small_world, task, usage
from tests.support.rollup import EVERY_HOUR, QUEUED_ONLY, TICK, WINDOW, queued

pytestmark = pytest.mark.server

PRUNE = "SELECT prune_task_usage_hourly_dirty()"
HANDED_OVER = "SELECT count(*) FROM task_usage_hourly_dirty"
WAITING = "SELECT count(*) FROM task_usage_hourly_invalidation"
SET_ASIDE = "SELECT left(label_start, 12), sqlstate FROM task_usage_hourly_set_aside ORDER BY 1"

# Together one more than bigint holds.
HALF = 2**62

AT = "2025-03-01 10:15+00"


def roll_up(database: Database) -> None:
    """Roll everything up and say so, as our own pipeline does."""
    database.execute(WINDOW)
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '5 minutes'")
    assert queued(database) == 0


def models(target: Connection | str, task_id: UUID, number: int, at: str = AT) -> None:
    """Write usage of `number` models of one task in one hour: as many buckets."""
    for n in range(number):
        usage(target, task_id, at, model=f"model {n}")


@pytest.fixture
def world(head: Database) -> World:
    return small_world(head.url)


CHANGES: list[tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]]]] = [
    ("UPDATE agent_task_queue SET agent_id = %s WHERE id = %s", lambda w: (w["agent"], w["task"])),
    ("UPDATE issue SET project_id = NULL WHERE id = %s", lambda w: (w["issue"],)),
    ("UPDATE agent SET workspace_id = %s WHERE id = %s", lambda w: (w["workspace"], w["agent"])),
    ("UPDATE task_usage SET input_tokens = 1 WHERE task_id = %s", lambda w: (w["task"],)),
    ("UPDATE task_usage SET created_at = created_at - interval '3 hours'", lambda w: ()),
    ("DELETE FROM agent_task_queue WHERE id = %s", lambda w: (w["task"],)),
    ("DELETE FROM agent", lambda w: ()),
]


def test_queue_of_our_own_would_be_a_dead_end_once_the_window_is_theirs(head: Database, world: World) -> None:
    event(head.url, world, AT)
    roll_up(head)
    apply_later_release(head)
    head.execute("UPDATE task_usage SET input_tokens = 1")
    head.execute(QUEUED_ONLY)
    assert head.value(WAITING) > 0
    head.execute("DELETE FROM task_usage_hourly_invalidation")
    assert len(wrong_buckets(head.url)) == 1
    head.execute(EVERY_HOUR)
    later_tick(head)
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_changes_reach_a_later_release_s_window_through_prune(head: Database, world: World) -> None:
    moved = task(head.url, world.agents[0], issue_id=world.issues[0])
    usage(head.url, moved, AT)
    for agent in range(3):
        event(head.url, world, "2025-03-01 10:45+00", agent=agent, issue=agent)
    roll_up(head)
    apply_later_release(head)
    ids = {
        "task": moved,
        "agent": world.agents[1],
        "issue": world.issues[0],
        "workspace": world.workspaces[1],
    }
    for statement, parameters in CHANGES:
        head.execute(statement, *parameters(ids))
        assert head.value(WAITING) > 0, statement
        # The first tick hands over, the second one works it off.
        later_tick(head)
        assert head.value(WAITING) == 0, statement
        assert head.value(HANDED_OVER) > 0, statement
        assert later_tick(head) > 0, statement
        assert queued(head) == 0, statement
        assert wrong_buckets(head.url) == wrong_costs(head.url) == [], statement
    assert head.value("SELECT count(*) FROM task_usage_hourly") == 0


def test_truncated_usage_reaches_a_later_release_s_window_too(head: Database, world: World) -> None:
    for hour in (10, 11):
        event(head.url, world, f"2025-03-01 {hour}:15+00")
    roll_up(head)
    apply_later_release(head)
    head.execute("TRUNCATE agent CASCADE")
    later_tick(head)
    later_tick(head)
    assert head.value("SELECT count(*) FROM task_usage_hourly") == 0
    assert queued(head) == 0


def test_statements_that_change_nothing_queue_nothing(head: Database, world: World) -> None:
    done = task(head.url, world.agents[0], issue_id=world.issues[0])
    models(head.url, done, 3)
    roll_up(head)
    apply_later_release(head)
    for statement in (
        "UPDATE issue SET title = 'edited', project_id = project_id",
        "UPDATE agent_task_queue SET status = 'failed', runtime_id = runtime_id, issue_id = issue_id,"
        " agent_id = agent_id",
        "UPDATE agent SET status = 'idle', workspace_id = workspace_id",
        "UPDATE task_usage SET input_tokens = input_tokens",
        # As the server reports the same figures again: found by time.
        "UPDATE task_usage SET input_tokens = input_tokens, updated_at = now()",
    ):
        head.execute(statement)
        assert queued(head) == 0, statement
    later_tick(head)
    assert queued(head) == 0


def test_moved_issue_hands_over_what_differs_and_the_keys_of_its_tasks(head: Database, world: World) -> None:
    with head.connect() as connection:
        for issue_id in world.issues[:3]:
            for _ in range(2):
                models(connection, task(connection, world.agents[0], issue_id=issue_id), 20)
        moved = task(connection, world.agents[1], issue_id=world.issues[0])
        models(connection, moved, 2)
        # Another hour that has nothing to do with it.
        models(
            connection, task(connection, world.agents[0], issue_id=world.issues[2]), 20, "2025-03-01 11:15+00"
        )
    # Twenty models by one agent, for a project that two issues share and for none; two by another agent.
    roll_up(head)
    assert head.value("SELECT count(*) FROM task_usage_hourly") == 20 + 20 + 2 + 20
    apply_later_release(head)
    head.execute(
        "UPDATE issue SET project_id = %s WHERE id = %s",
        project(head.url, world.workspaces[0]),
        world.issues[0],
    )
    # Twenty buckets keep the other issue's usage, two are gone, twenty-two are new.
    assert head.value(PRUNE) == 44
    assert head.value(HANDED_OVER) == 44
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_equal_tokens_do_not_hide_costs_that_changed_places(head: Database, world: World) -> None:
    one, other = (task(head.url, world.agents[0], issue_id=world.issues[n]) for n in (0, 2))
    usage(head.url, one, AT)
    usage(head.url, other, AT)
    apply_later_release(head)
    head.execute("UPDATE task_usage SET cost_usd_ticks = CASE WHEN task_id = %s THEN 5 ELSE 7 END", one)
    head.execute("SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')")
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '5 minutes'")
    head.execute("DELETE FROM task_usage_hourly_invalidation")
    assert wrong_costs(head.url) == []
    head.execute(
        "UPDATE agent_task_queue SET issue_id = CASE WHEN id = %s THEN %s ELSE %s END",
        *(one, world.issues[2], world.issues[0]),
    )
    # No comparison of tokens could know.
    assert wrong_buckets(head.url) == []
    assert len(wrong_costs(head.url)) == 2
    assert head.value(PRUNE) == 2
    later_tick(head)
    assert wrong_buckets(head.url) == wrong_costs(head.url) == []


def test_portions_are_bounded_and_end(head: Database, world: World) -> None:
    with head.connect() as connection:
        for hour in range(12):
            models(connection, task(connection, world.agents[0]), 100, f"2025-03-01 {hour:02}:15+00")
    roll_up(head)
    apply_later_release(head)
    head.execute("DELETE FROM task_usage_hourly")
    head.execute(EVERY_HOUR)
    handed_over = []
    while head.value(WAITING):
        handed_over.append(head.value(PRUNE))
        # An hour is never split.
        assert head.value(
            "SELECT bool_and(n = 100) FROM (SELECT count(*) AS n"
            " FROM task_usage_hourly_dirty GROUP BY bucket_hour) AS hours"
        )
    assert handed_over == [500, 500, 200]
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_what_waits_for_the_next_portion_still_names_its_tasks(head: Database, world: World) -> None:
    apply_later_release(head)
    with head.connect() as connection:
        models(connection, task(connection, world.agents[1]), 500)
        late = task(connection, world.agents[0], issue_id=world.issues[0])
        usage(connection, late, "2025-03-01 12:15+00")
    head.execute("SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')")
    head.execute("TRUNCATE task_usage_hourly_invalidation")
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() - interval '5 minutes'")
    head.execute("DELETE FROM task_usage_hourly WHERE agent_id = %s", world.agents[1])
    head.execute(
        "INSERT INTO task_usage_hourly_invalidation (bucket_hour, task_id) VALUES (%s, NULL), (NULL, %s)",
        *(AT, late),
    )
    assert head.value(PRUNE) == 500
    assert head.execute("SELECT bucket_hour::text, task_id FROM task_usage_hourly_invalidation") == [
        ("2025-03-01 12:00:00+00", late)
    ]
    # Nothing differs in that hour: the key is there because its costs may.
    assert head.value(PRUNE) == 1
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_bucket_that_is_set_aside_or_saturated_stops_no_later_tick(head: Database, world: World) -> None:
    event(head.url, world, AT, model=LONG_MODEL)
    for _ in range(2):
        event(head.url, world, AT, tokens=HALF, model="vast")
    neighbour = event(head.url, world, AT, agent=1)
    roll_up(head)
    assert head.execute(SET_ASIDE) == [("claude/c4ca4", "54000")]
    apply_later_release(head)
    head.execute("UPDATE task_usage SET input_tokens = 1 WHERE id = %s", neighbour)
    head.execute("UPDATE issue SET project_id = NULL WHERE id = %s", world.issues[0])
    for _ in range(3):
        later_tick(head)
    assert head.execute(SET_ASIDE) == [("claude/c4ca4", "54000"), ("claude/vast", "22003")]
    # The old bucket of each is gone; what they are now cannot be stored, and is named.
    assert {(row[1], row[4][:5]) for row in wrong_buckets(head.url)} == {
        (world.agents[0], LONG_MODEL[:5]),
        (world.agents[0], "vast"),
    }
    assert queued(head) == 0

    # Mended, they leave.
    head.execute("UPDATE task_usage SET model = 'short' WHERE model = %s", LONG_MODEL)
    head.execute(
        "UPDATE task_usage SET input_tokens = 1, output_tokens = 1, cache_read_tokens = 1,"
        " cache_write_tokens = 1 WHERE model = 'vast'"
    )
    for _ in range(2):
        later_tick(head)
    assert head.execute(SET_ASIDE) == []
    assert wrong_buckets(head.url) == []


@pytest.mark.parametrize(
    ("column", "usages"),
    [
        ("input_tokens", [(100, HALF), (100, HALF)]),
        *((column, [(HALF, 1), (HALF, 1)]) for column in counts(0)),
        # All of them fit together, those without a cost do not.
        *((column, [(HALF, None), (HALF, None), (-HALF, 1)]) for column in counts(0)),
    ],
)
def test_what_does_not_fit_for_its_costs_or_in_any_column_is_put_aside(
    head: Database, world: World, column: str, usages: list[tuple[int, int | None]]
) -> None:
    vast = [event(head.url, world, AT, model="vast") for _ in usages]
    neighbour = event(head.url, world, AT)
    roll_up(head)
    apply_later_release(head)
    for usage_id, (tokens, cost) in zip(vast, usages, strict=True):
        head.execute(
            f"UPDATE task_usage SET {column} = %s, cost_usd_ticks = %s WHERE id = %s",
            tokens,
            cost,
            usage_id,
        )
    head.execute("UPDATE task_usage SET input_tokens = 1 WHERE id = %s", neighbour)
    for _ in range(3):
        later_tick(head)
    assert head.execute(SET_ASIDE) == [("claude/vast", "22003")]
    assert {row[4] for row in wrong_buckets(head.url)} <= {"vast"}


def test_sums_of_the_next_hour_keep_no_key_of_this_one_back(head: Database, world: World) -> None:
    for _ in range(2):
        event(head.url, world, "2025-03-01 11:00+00", tokens=HALF, model="vast")
    event(head.url, world, AT, model="vast")
    roll_up(head)
    apply_later_release(head)
    head.execute("UPDATE task_usage SET cost_usd_ticks = 5 WHERE created_at = %s", AT)
    assert head.value(PRUNE) == 1
    assert head.execute(SET_ASIDE) == []
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_hour_and_task_that_are_queued_together_stand_for_no_other_hour_of_the_task(
    head: Database, world: World
) -> None:
    reported = task(head.url, world.agents[0])
    usage(head.url, reported, AT)
    usage(head.url, reported, "2025-03-01 11:00+00", model="next hour's")
    roll_up(head)
    apply_later_release(head)
    head.execute("UPDATE task_usage SET cost_usd_ticks = 5 WHERE created_at = %s", AT)
    assert head.value(PRUNE) == 1
    assert head.execute("SELECT bucket_hour::text, model FROM task_usage_hourly_dirty") == [
        ("2025-03-01 10:00:00+00", "claude-sonnet-4-5")
    ]
    later_tick(head)
    assert wrong_buckets(head.url) == wrong_costs(head.url) == []


@pytest.mark.parametrize("issue", [None, 0, 2])
def test_cost_that_changes_alone_reaches_a_later_release_s_window(
    head: Database, world: World, issue: int | None
) -> None:
    event(head.url, world, AT, issue=issue)
    roll_up(head)
    apply_later_release(head)
    for cost in (5, 7):
        head.execute("UPDATE task_usage SET cost_usd_ticks = %s", cost)
        # No comparison of tokens could know.
        assert wrong_buckets(head.url) == []
        later_tick(head)
        later_tick(head)
        assert head.execute("SELECT cost_usd_ticks, uncosted_input_tokens FROM task_usage_hourly") == [
            (cost, 0)
        ]
        assert wrong_costs(head.url) == []


def test_our_tick_leaves_a_window_that_knows_costs_its_work(head: Database, world: World) -> None:
    event(head.url, world, AT, issue=0)
    roll_up(head)
    # Of v0.4.10: the tick is still ours.
    apply_later_release(head, "213")
    event(head.url, world, AT, issue=1, model="another")
    head.execute("UPDATE task_usage SET cost_usd_ticks = 5")
    later_tick(head)
    later_tick(head)
    assert head.execute("SELECT cost_usd_ticks, uncosted_input_tokens FROM task_usage_hourly") == [(5, 0)] * 2
    assert wrong_buckets(head.url) == wrong_costs(head.url) == []


def test_task_without_a_runtime_has_no_key_to_hand_over_and_stops_nobody(
    head: Database, world: World
) -> None:
    unbound = task(head.url, world.agents[0], issue_id=world.issues[0])
    usage(head.url, unbound, AT, model="unbound")
    event(head.url, world, AT)
    roll_up(head)
    apply_later_release(head)
    head.execute("UPDATE agent_task_queue SET runtime_id = NULL, completed_at = now() WHERE id = %s", unbound)
    head.execute("UPDATE task_usage SET cost_usd_ticks = 5")
    # What it was, and its neighbour.
    assert head.value(PRUNE) == 2
    assert head.execute(SET_ASIDE) == []
    later_tick(head)
    assert queued(head) == 0
    assert head.execute("SELECT model FROM task_usage_hourly") == [("claude-sonnet-4-5",)]
    assert wrong_buckets(head.url) == wrong_costs(head.url) == []


def test_usage_dated_in_the_future_reaches_a_later_release_s_window_too(head: Database, world: World) -> None:
    roll_up(head)
    apply_later_release(head)
    event(head.url, world, "2099-01-01 10:15+00")
    for change in (
        "SELECT",
        f"UPDATE agent_task_queue SET agent_id = '{world.agents[1]}'",
        f"TRUNCATE task_usage_hourly; {EVERY_HOUR}",
    ):
        head.execute(change)
        later_tick(head)
        later_tick(head)
        assert wrong_buckets(head.url) == [], change
        assert queued(head) == 0, change


# The second that it has where the window has used up the tick's time, much longer or none at all.
@pytest.mark.parametrize(("second", "hours"), [("1 hour", 3), ("0 seconds", 1)])
def test_bridge_has_some_time_of_its_own_and_hands_an_hour_over_in_any_case(
    head: Database, world: World, second: str, hours: int
) -> None:
    for hour in (10, 11, 12):
        event(head.url, world, f"2025-03-01 {hour}:15+00")
    roll_up(head)
    apply_later_release(head)
    rewrite_function(
        head, "prune_task_usage_hourly_dirty(interval)", "interval '1 second'", f"interval '{second}'"
    )
    head.execute("UPDATE task_usage SET cost_usd_ticks = 5")
    with head.connect() as connection:
        connection.execute("SET usage_rollup.tick_budget = '0'")
        assert connection.execute(PRUNE).fetchone() == (hours,)
    # The oldest first.
    assert (
        head.value("SELECT max(bucket_hour)::text FROM task_usage_hourly_dirty")[11:13] == f"{9 + hours:02}"
    )
    assert head.value(WAITING) == 3 - hours
    head.execute(PRUNE)
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_key_that_fits_no_longer_is_taken_back(head: Database, world: World) -> None:
    vast = [event(head.url, world, AT, tokens=100, model="vast") for _ in range(2)]
    roll_up(head)
    apply_later_release(head)
    head.execute("UPDATE task_usage SET input_tokens = 1 WHERE id = %s", vast[0])
    assert head.value(PRUNE) == 1
    head.execute("UPDATE task_usage SET input_tokens = %s", HALF)
    assert head.value(PRUNE) == 0
    assert head.execute(SET_ASIDE) == [("claude/vast", "22003")]
    later_tick(head)
    assert queued(head) == 0


def test_hours_that_no_client_can_read_are_passed_over(head: Database, world: World) -> None:
    roll_up(head)
    apply_later_release(head)
    for at in ("-infinity", "infinity", "0044-03-15 10:15+00 BC", "20250-03-01 10:15+00"):
        event(head.url, world, at, AT)
    event(head.url, world, AT)
    head.execute(EVERY_HOUR)
    later_tick(head)
    assert head.execute("SELECT bucket_hour::text FROM task_usage_hourly_dirty") == [
        ("2025-03-01 10:00:00+00",)
    ]
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_workspace_torn_down_in_silence_leaves_nothing_behind(head: Database, world: World) -> None:
    # An agent of the second workspace that works for an issue of the first.
    visitor = task(head.url, world.agents[2], issue_id=world.issues[0])
    usage(head.url, visitor, AT)
    event(head.url, world, AT)
    event(head.url, world, AT, agent=2, issue=3)
    roll_up(head)
    apply_later_release(head)
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
    with head.connect() as teardown:
        teardown.execute("SET LOCAL multica.workspace_teardown = 'on'")
        teardown.execute("DELETE FROM workspace WHERE id = %s", [world.workspaces[0]])
        # The product removes the workspace's own buckets itself.
        teardown.execute("DELETE FROM task_usage_hourly WHERE workspace_id = %s", [world.workspaces[0]])
    assert len(wrong_buckets(head.url)) == 1
    later_tick(head)
    later_tick(head)
    assert wrong_buckets(head.url) == []
    assert head.value("SELECT count(*) FROM task_usage_hourly") == 1
    assert queued(head) == 0


# Together, or one by one where a key of the hour cannot be stored.
@pytest.mark.parametrize("beside", ["other", LONG_MODEL], ids=["together", "one_by_one"])
def test_handed_over_again_a_key_stays_one_row_and_gets_newer_never_older(
    head: Database, world: World, beside: str
) -> None:
    moved = task(head.url, world.agents[0])
    usage(head.url, moved, AT)
    roll_up(head)
    apply_later_release(head)
    head.execute("UPDATE agent_task_queue SET agent_id = %s", world.agents[1])
    assert head.value(PRUNE) == 2
    assert set(head.execute("SELECT agent_id FROM task_usage_hourly_dirty")) == {
        *((agent,) for agent in world.agents[:2])
    }
    usage(head.url, moved, AT, model=beside)
    head.execute(PRUNE)
    keys = head.value(HANDED_OVER)
    for known, then in (("'infinity'", "= 'infinity'"), ("'2025-01-01'", "= now()")):
        head.execute(f"UPDATE task_usage_hourly_dirty SET enqueued_at = {known}")
        head.execute(EVERY_HOUR)
        with head.connect() as connection:
            connection.execute(PRUNE)
            # Told of again, it must outlast a window that goes by time.
            row = connection.execute(
                f"SELECT count(*), bool_and(enqueued_at {then}) FROM task_usage_hourly_dirty"
            ).fetchone()
        assert row == (keys, True)
    later_tick(head)
    assert {row[4] for row in wrong_buckets(head.url)} <= {LONG_MODEL[:20]}


def test_bridge_keeps_out_while_another_session_writes_the_rollup(head: Database, world: World) -> None:
    event(head.url, world, AT)
    roll_up(head)
    apply_later_release(head)
    head.execute("UPDATE task_usage SET input_tokens = 1")
    other = head.connect()
    other.execute("SELECT pg_advisory_xact_lock(4246)")
    assert head.value(PRUNE) == 0
    assert head.value(WAITING) > 0
    other.commit()
    assert head.value(PRUNE) == 1
    later_tick(head)
    assert wrong_buckets(head.url) == []


def test_snapshot_of_the_whole_transaction_hands_over_or_fails(head: Database, world: World) -> None:
    event(head.url, world, AT)
    roll_up(head)
    apply_later_release(head)
    old = head.connect()
    old.isolation_level = IsolationLevel.REPEATABLE_READ
    old.execute("SELECT")
    head.execute("UPDATE task_usage SET input_tokens = 1")
    assert old.execute(PRUNE).fetchone() == (0,)
    old.commit()
    assert old.execute(PRUNE).fetchone() == (1,)
    old.commit()
    old.execute("SELECT")
    head.execute(TICK)
    with pytest.raises(errors.SerializationFailure):
        old.execute(PRUNE)
    old.rollback()
    later_tick(head)
    assert wrong_buckets(head.url) == []
