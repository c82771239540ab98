"""No schedule of several sessions loses, invents or misattributes usage.

`make test` replays 500 schedules, always the same; HYPOTHESIS_PROFILE=long replays 10,000, other ones
every time. A failing schedule prints itself as the call that replays it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.database import MakeDatabase
from tests.support.stateful import (
    HORIZON,
    PLANNED,
    PRUNE,
    SETTLE,
    SLICE,
    STARTS,
    TICK,
    WINDOW,
    WRITE,
    WRITERS,
    YOUNG,
    Machine,
    Operation,
    Schedule,
    Substitution,
    Violation,
)

pytestmark = pytest.mark.long

# Four tests share them, so that two workers do.
PARTS = 4

settings.register_profile(
    "schedules", max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", settings.get_profile("schedules"), max_examples=10_000, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "schedules")

Weights = dict[str, int]

USAGE: Weights = {
    "report": 12,
    "import": 6,
    "correct": 3,
    "correct_silently": 2,
    "correct_with_a_date": 3,
    "move_usage_in_time": 1,
    "move_usage_to_task": 1,
    "rename_model": 1,
    "delete_usage": 2,
    "truncate_usage": 1,
}
OWNERS: Weights = {
    "delete_task": 1,
    "delete_issue": 1,
    "delete_project": 1,
    "delete_agent": 1,
    "delete_runtime": 1,
    "delete_runtime_only": 1,
    "delete_workspace": 1,
    "truncate_tasks": 1,
    "put_back": 3,
    "touch": 2,
    "move_issue": 3,
    "move_task_to_issue": 2,
    "move_task_to_agent": 2,
    "move_task_to_runtime": 2,
    "merge_runtimes": 1,
    "move_agent": 2,
}
TRANSACTIONS: Weights = {
    "begin": 6,
    "begin_with_a_snapshot": 3,
    "commit": 9,
    "rollback": 1,
    "savepoint": 1,
    "rollback_to_savepoint": 1,
}
ROLLUPS: Weights = {
    "tick": 4,
    "tick_without_time": 2,
    "window_of_the_queue": 2,
    "window_of_everything": 3,
    "prune": 1,
}
INTERRUPTIONS: Weights = {"cancel": 1, "terminate": 1}
BACKFILL: Weights = {"plan": 2, "lead": 2, "slice": 5, "finish": 2, "repair": 1, "let_go": 2}
WORKER: Weights = {"slice": 12, "let_go": 4, "resume": 2, "begin": 1, "commit": 2}

EVERYTHING: dict[str, Weights] = {
    **{name: {**USAGE, **OWNERS, **TRANSACTIONS, "tick": 1, "window_of_everything": 1} for name in WRITERS},
    "ticker": {**{verb: 8 * n for verb, n in ROLLUPS.items()}, **TRANSACTIONS, **INTERRUPTIONS, "resume": 3},
    "backfill": {**{verb: 2 * n for verb, n in BACKFILL.items()}, "begin": 1, "commit": 2, **INTERRUPTIONS},
    "worker": {**WORKER, **INTERRUPTIONS},
}

# Two sessions that walk at once, and what may come in between.
WALKERS: dict[str, Weights] = {
    "w1": {"report": 2, "import": 1, "correct_silently": 2, "delete_usage": 1, "begin": 1, "commit": 1},
    "w2": {"move_task_to_agent": 2, "move_issue": 2, "tick": 2, "begin": 1, "commit": 2},
    "backfill": {"lead": 10, "slice": 10, "finish": 3, "repair": 1, "let_go": 1, **INTERRUPTIONS},
    "worker": {**WORKER, **INTERRUPTIONS},
}


def operations(weights: dict[str, Weights]) -> st.SearchStrategy[Operation]:
    choices = list(
        chain.from_iterable(
            repeat((session, verb), n) for session, verbs in weights.items() for verb, n in verbs.items()
        )
    )
    return st.tuples(st.sampled_from(choices), st.integers(0, 11), st.integers(0, 11)).map(
        lambda drawn: (*drawn[0], drawn[1], drawn[2])
    )


def scripts(
    weights: dict[str, Weights], starts: Sequence[str] = STARTS
) -> st.SearchStrategy[tuple[str, Schedule]]:
    """Return a strategy for where a schedule starts and what it does."""
    return st.tuples(st.sampled_from(starts), st.lists(operations(weights), min_size=12, max_size=25))


@pytest.fixture
def machine(make_database: MakeDatabase) -> Iterator[Machine]:
    machine = Machine(make_database("head").url)
    yield machine
    machine.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_of_several_sessions_breaks_an_invariant(machine: Machine, part: int) -> None:
    profile = settings.get_profile(PROFILE)

    @settings(profile, max_examples=profile.max_examples // PARTS)
    @given(scripts(EVERYTHING))
    def replay(script: tuple[str, Schedule]) -> None:
        machine.replay(*script)

    (seed(part)(replay) if PROFILE == "schedules" else replay)()
    count = machine.count
    # Schedules that only get in their own way would prove nothing.
    assert count.schedules >= profile.max_examples // PARTS * 0.9
    assert count.gated > count.schedules / 2
    assert count.refused < count.operations / 4


def test_no_schedule_of_sessions_that_walk_at_once_breaks_an_invariant(machine: Machine) -> None:
    profile = settings.get_profile(PROFILE)

    @settings(profile, max_examples=profile.max_examples // PARTS)
    @given(scripts(WALKERS, starts=("history", PLANNED)))
    def replay(script: tuple[str, Schedule]) -> None:
        machine.replay(*script)

    (seed(0)(replay) if PROFILE == "schedules" else replay)()
    # Schedules in which one walks after the other would prove nothing.
    assert machine.count.together > machine.count.schedules / 4


# Mutants


@dataclass(frozen=True)
class Mutant:
    """What is wrong, where, and the operations that lead there often enough to be quick."""

    substitutions: tuple[Substitution, ...]
    weights: dict[str, Weights]
    starts: Sequence[str] = STARTS


REPORTS: dict[str, Weights] = {
    "w1": {"report": 6, "begin": 2, "commit": 2, "tick": 2},
    "w2": {"import": 3, "correct_silently": 2, "delete_usage": 1, "move_task_to_agent": 2},
    "ticker": {"tick": 9, "window_of_the_queue": 2, "prune": 2, "begin_with_a_snapshot": 3, "commit": 3},
    "backfill": {"plan": 2, "slice": 3, "finish": 1, "let_go": 2},
}
MOVES: dict[str, Weights] = {
    "w1": {"report": 3, "import": 2, "begin": 1, "commit": 2},
    "w2": {
        **{verb: n for verb, n in OWNERS.items() if verb.startswith(("move", "put"))},
        "begin": 3,
        "commit": 5,
    },
    "ticker": {"tick": 6, "window_of_everything": 6, "window_of_the_queue": 2, "begin": 3, "commit": 3},
}

ENQUEUE = "INSERT INTO public.task_usage_hourly_invalidation ({}) VALUES (NEW.id);"
MOVE = "enqueue_task_usage_hourly_dirty_for_move()"
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

MUTANTS = {
    "horizon_ignores_open_transactions": Mutant(
        ((HORIZON, "LEAST(v_start - interval '0', v_oldest)", "v_start"),), REPORTS
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
        ((TICK, NOT_READ_COMMITTED, "IF false THEN"),), REPORTS
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
        REPORTS,
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
        REPORTS,
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
            "backfill": {"slice@slicing": 1, "cancel": 1, "finish": 2},
            "worker": {"slice@slicing": 1, "slice": 1, "let_go": 1},
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
}

# Every mutant falls within these, most within a few dozen.
MUTANT_SCHEDULES = 150


def drawn(mutant: Mutant, number: int) -> list[tuple[str, Schedule]]:
    """Return the same scripts on every run."""
    collected: list[tuple[str, Schedule]] = []

    @seed(1)
    @settings(settings.get_profile("schedules"), max_examples=number, phases=[Phase.generate])
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
    replayed = drawn(MUTANTS[mutant], MUTANT_SCHEDULES)
    with machine.mutated(MUTANTS[mutant].substitutions):
        number = schedules_until_violation(machine, replayed)
    print(f"found by schedule {number}")  # noqa: T201
    for script in replayed[:number]:
        machine.replay(*script)
