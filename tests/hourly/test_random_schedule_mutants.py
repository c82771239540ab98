"""Schedules find mistakes that are made on purpose, and find none where they are not made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import sqlalchemy as sa
from hypothesis import Phase, given, seed, settings

from tests.support.stateful.commands import LOSE
from tests.support.stateful.drawn import OWNERS, SCHEDULES, Mix, scripts
from tests.support.stateful.machine import Machine, Schedule, Violation
from tests.support.stateful.pipeline import (
    GONE,
    HORIZON,
    MOVE,
    PAIRS,
    PRUNE,
    SETTLE,
    SLICE,
    TICK,
    WINDOW,
    WRITE,
    YOUNG,
    Substitution,
)
from tests.support.stateful.world import DAMAGED, PLANNED, STARTS
from usage_rollup.errors import SessionLost
from usage_rollup.hourly import proof, slices
from usage_rollup.hourly.slices import Slice
from usage_rollup.session import advisory_lock

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Mutant:
    """What is wrong, where, and the operations that lead there often enough to be quick."""

    substitutions: tuple[Substitution, ...]
    weights: Mix
    starts: Sequence[str] = STARTS
    # Of a step up: its number, text that occurs in it once, what to put there.
    step: tuple[str, str, str] | None = None
    # In Python.
    mistake: Callable[[pytest.MonkeyPatch], None] = lambda patch: None


REPORTS: Mix = {
    "w1": {"report": 6, "begin": 2, "commit": 2, "tick": 2},
    "w2": {"import": 3, "correct_silently": 2, "delete_usage": 1, "move_task_to_agent": 2},
    "ticker": {"tick": 9, "window_of_the_queue": 2, "prune": 2, "begin_with_a_snapshot": 3, "commit": 3},
    "backfill": {"plan": 2, "slice": 3, "finish": 1, "let_go": 2},
}
MOVES: Mix = {
    "w1": {"report": 3, "import": 2, "begin": 1, "commit": 2},
    "w2": {
        **{verb: n for verb, n in OWNERS.items() if verb.startswith(("move", "put"))},
        "begin": 3,
        "commit": 5,
    },
    "ticker": {"tick": 6, "window_of_everything": 6, "window_of_the_queue": 2, "begin": 3, "commit": 3},
}

ENQUEUE = "INSERT INTO public.task_usage_hourly_invalidation ({}) VALUES (NEW.id);"
READ_STATE = "SELECT watermark_at INTO STRICT v_from FROM public.task_usage_hourly_rollup_state WHERE id = 1;"
NOT_READ_COMMITTED = "IF current_setting('transaction_isolation') <> 'read committed' THEN"
CALL_SETTLE = (
    "v_rows := public.rollup_task_usage_hourly_settle(v_from, v_to,"
    " public.task_usage_hourly_tick_deadline());"
)
TOUCH = (
    "INSERT INTO public.task_usage_hourly_rollup_state AS s (id) VALUES (1)\n"
    "    ON CONFLICT (id) DO UPDATE SET last_run_rows = s.last_run_rows"
)
SKIP = "THEN\n        RETURN 0;"
MAY_ENQUEUE = "IF NOT has_schema_privilege('public', 'USAGE') THEN"
TASKS_OF_ISSUES = "JOIN public.agent_task_queue q ON q.issue_id = v.issue_id"
# What 102 queues of hours whose usage is gone.
HOURS_WITHOUT_USAGE = (
    "INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)\nSELECT hours.hour FROM hours\nWHERE "
)


def take_it_shared(patch: pytest.MonkeyPatch) -> None:
    """Let a leader hold 4246 as its crew does, so that others walk beside it from beginning to end."""

    def acquire(session: sa.Connection, key: int, patience_s: float = 0) -> None:
        advisory_lock.acquire_shared([session], key, patience_s)

    patch.setattr(advisory_lock, "acquire", acquire)


def compare_from_the_first_bound_on(patch: pytest.MonkeyPatch) -> None:
    """Leave the hours before the first bound to nobody."""
    patch.setattr(proof, "ALWAYS", ("2025-03-03 00:00+00", "infinity"))


def walk_on_in_whatever_session_opens(patch: pytest.MonkeyPatch) -> None:
    """Try a slice again that a loss has undone: SQLAlchemy opens another session for it, without locks."""
    real = slices.walk_next

    def walk_next(session: sa.Connection) -> Slice | None:
        try:
            return real(session)
        except SessionLost:
            return real(session)

    patch.setattr(slices, "walk_next", walk_next)


MUTANTS = {
    "horizon_ignores_open_transactions": Mutant(
        ((HORIZON, "LEAST(v_start - interval '0', v_oldest)", "v_start"),),
        {"w1": {"begin": 3, "report": 4, "commit": 2}, "ticker": {"tick": 4}},
    ),
    # A writer that was young when it wrote is waited for; an old one has to say what it wrote, since a tick
    # that has not committed shows no watermark.
    "old_writer_queues_nothing": Mutant(
        ((WRITE, YOUNG, "true"),),
        {
            "w1": {"begin": 4, "report": 3, "commit": 2},
            "w2": {"begin": 4, "report": 3, "commit": 2},
            "ticker": {"tick@recomputed": 4, "resume": 1},
        },
    ),
    "horizon_is_read_after_a_snapshot_of_the_whole_transaction": Mutant(
        ((TICK, NOT_READ_COMMITTED, "IF false THEN"),),
        {"w1": {"report": 4}, "ticker": {"begin_with_a_snapshot": 3, "tick": 4, "commit": 2}},
    ),
    "horizon_is_read_after_the_snapshot_of_the_window": Mutant(
        ((TICK, "ELSE v_to END,", "ELSE GREATEST(v_to, public.task_usage_hourly_horizon()) END,"),),
        REPORTS,
    ),
    "queue_is_emptied_after_the_recompute": Mutant(
        (
            (
                SETTLE,
                "v_queued := public.rollup_task_usage_hourly_drain(v_portion);",
                "v_queued := (SELECT array_agg(v) FROM public.task_usage_hourly_invalidation v);",
            ),
            (
                SETTLE,
                "PERFORM public.test_gate('recomputed');",
                "PERFORM public.test_gate('recomputed'); DELETE FROM public.task_usage_hourly_invalidation;",
            ),
        ),
        {"w1": {"report": 2, "correct_silently": 4}, "ticker": {"tick@recomputed": 4, "resume": 1}},
    ),
    "watermark_is_stamped_when_the_lock_is_taken": Mutant(
        (
            (
                TICK,
                SKIP,
                "THEN UPDATE public.task_usage_hourly_rollup_state"
                " SET watermark_at = public.task_usage_hourly_horizon(); RETURN 0;",
            ),
        ),
        REPORTS,
    ),
    "watermark_is_stamped_without_a_window": Mutant(((TICK, CALL_SETTLE, "v_rows := 0;"),), REPORTS),
    "prune_deletes_by_age": Mutant(
        (
            (
                PRUNE,
                SKIP,
                "THEN DELETE FROM public.task_usage_hourly_invalidation"
                " WHERE enqueued_at <= now() - p_retention; RETURN 0;",
            ),
        ),
        {"w1": {"report": 3, "correct_silently": 4}, "ticker": {"tick": 1, "prune": 4}},
    ),
    "tick_reads_its_state_before_it_has_the_lock": Mutant(
        (
            (TICK, READ_STATE, ""),
            (
                TICK,
                "PERFORM public.test_gate('begun');",
                f"{READ_STATE} PERFORM public.test_gate('begun');",
            ),
        ),
        # Days of history, or the watermark has nowhere to go back to.
        {"w1": {"tick@begun": 1}, "ticker": {"tick": 3}},
        starts=("history",),
    ),
    "window_takes_no_lock": Mutant(
        ((WINDOW, "WHILE NOT pg_try_advisory_xact_lock(4246) LOOP", "WHILE false LOOP"),), MOVES
    ),
    "window_writes_from_an_old_snapshot": Mutant(
        (("rollup_task_usage_hourly_touch()", TOUCH, "SELECT"),),
        {
            "w1": {"tick@begun": 2, "tick": 2},
            "w2": {"move_task_to_agent": 3},
            "ticker": {"window_of_everything@locked": 2, "begin_with_a_snapshot": 3, "commit": 2},
        },
    ),
    # A cursor in the place of marks: right with one session, and with several until one is cancelled.
    # (Slices handed out without a lock are found by no schedule: walked twice, they end the same.)
    "walked_slice_marks_those_before_it_too": Mutant(
        ((SLICE, "WHERE b.from_hour = slice_from", "WHERE b.from_hour <= slice_from"),),
        {
            "backfill": {"slice@slicing": 2, "cancel": 2, "finish": 2},
            "worker": {"slice@slicing": 3, "let_go": 2},
        },
        starts=(PLANNED,),
    ),
    "task_moves_unnoticed": Mutant(((MOVE, ENQUEUE.format("task_id"), "NULL;"),), MOVES),
    "issue_moves_unnoticed": Mutant(((MOVE, ENQUEUE.format("issue_id"), "NULL;"),), MOVES),
    "agent_moves_unnoticed": Mutant(
        ((MOVE, ENQUEUE.format("agent_id"), "NULL;"),),
        {"w1": {"move_agent": 4, "report": 1}, "ticker": {"tick": 3}},
    ),
    "issue_that_moves_queues_the_hours_it_can_see": Mutant(
        (
            (
                MOVE,
                ENQUEUE.format("issue_id"),
                "INSERT INTO public.task_usage_hourly_invalidation (bucket_hour)"
                " SELECT DISTINCT public.task_usage_hour_bucket(tu.created_at) FROM public.task_usage tu"
                " JOIN public.agent_task_queue q ON q.id = tu.task_id WHERE q.issue_id = OLD.id;",
            ),
        ),
        {
            "w1": {"report": 3, "import": 4},
            "w2": {"begin": 4, "move_issue": 8, "commit": 4},
            "ticker": {"tick": 3, "window_of_everything": 4},
        },
    ),
    # What is newer: sessions of one walk, a proof in parts, the way back, later releases, lost sessions.
    "leader_of_a_crew_never_holds_the_lock_alone": Mutant(
        (),
        {
            "runner": {"run_backfill": 3},
            "worker": {"slice@slicing": 4, "let_go": 1},
            "w1": {"report": 1, "import": 2},
        },
        starts=("history", PLANNED),
        mistake=take_it_shared,
    ),
    "proof_in_parts_begins_at_the_first_bound": Mutant(
        (),
        {"runner": {"run_repair": 2}, "w1": {"report": 2, "move_issue": 1}},
        starts=(DAMAGED,),
        mistake=compare_from_the_first_bound_on,
    ),
    "session_that_was_lost_is_replaced_without_its_locks": Mutant(
        (),
        # What does nothing, so that a loss comes when the walk has begun.
        {"runner": {"run_backfill": 2, LOSE: 2}, "w1": {"savepoint": 12}},
        starts=("history", PLANNED),
        mistake=walk_on_in_whatever_session_opens,
    ),
    "upgrade_again_queues_no_hour_without_usage": Mutant(
        (),
        {
            "migrator": {"downgrade": 3, "upgrade": 3},
            "w1": {"delete_usage": 2, "truncate_usage": 1, "move_usage_in_time": 1},
        },
        starts=("rolled_up",),
        step=("102", HOURS_WITHOUT_USAGE, f"{HOURS_WITHOUT_USAGE}false AND "),
    ),
    "teardown_queues_nothing": Mutant(
        (
            (
                GONE,
                MAY_ENQUEUE,
                f"{MAY_ENQUEUE[:-5]} OR current_setting('multica.workspace_teardown', true) = 'on' THEN",
            ),
        ),
        {
            "w1": {"report": 1, "move_task_to_issue": 4},
            "w2": {"tear_down": 1},
            "ticker": {"tick": 4},
        },
        starts=("rolled_up",),
    ),
    "later_window_is_handed_no_tasks_of_a_moved_issue": Mutant(
        ((PAIRS, TASKS_OF_ISSUES, f"{TASKS_OF_ISSUES} AND false"),),
        {
            "migrator": {"later_release": 3},
            "w1": {"report": 3, "move_issue": 4},
            "ticker": {"tick": 4, "prune": 1},
        },
    ),
}

# Every mutant falls within these, most within a few dozen.
MUTANT_SCHEDULES = 150


def drawn(mutant: Mutant, number: int) -> list[tuple[str, Schedule]]:
    """Return the same scripts on every run."""
    collected: list[tuple[str, Schedule]] = []

    @seed(1)
    @settings(SCHEDULES, max_examples=number, phases=[Phase.generate])
    @given(scripts(mutant.weights, mutant.starts))
    def collect(script: tuple[str, Schedule]) -> None:
        collected.append(script)

    collect()
    return collected


def schedules_until_violation(machine: Machine, replayed: list[tuple[str, Schedule]]) -> int:
    for number, script in enumerate(replayed, 1):
        try:
            machine.replay(*script)
        except Violation:
            return number
    pytest.fail("no schedule finds anything wrong")


@pytest.mark.parametrize("mutant", MUTANTS)
def test_schedules_find_what_is_wrong_with_a_mutant(machine: Machine, mutant: str) -> None:
    wrong = MUTANTS[mutant]
    replayed = drawn(wrong, MUTANT_SCHEDULES)
    with machine.mutated(wrong.substitutions, wrong.step), pytest.MonkeyPatch.context() as patch:
        wrong.mistake(patch)
        number = schedules_until_violation(machine, replayed)
    print(f"found by schedule {number}")  # noqa: T201
    for script in replayed[:number]:
        machine.replay(*script)
