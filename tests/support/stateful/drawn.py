"""How schedules are drawn: who does what, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.stateful.commands import LOSE
from tests.support.stateful.machine import WRITERS, Operation, Schedule
from tests.support.stateful.world import DAMAGED, STARTS

SCHEDULES = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))

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
    "tear_down": 2,
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

# Who does what; by session.
Mix = dict[str, Weights]

EVERYTHING: Mix = {
    **{name: {**USAGE, **OWNERS, **TRANSACTIONS, "tick": 1, "window_of_everything": 1} for name in WRITERS},
    "ticker": {**{verb: 8 * n for verb, n in ROLLUPS.items()}, **TRANSACTIONS, **INTERRUPTIONS, "resume": 3},
    "backfill": {**{verb: 2 * n for verb, n in BACKFILL.items()}, "begin": 1, "commit": 2, **INTERRUPTIONS},
    "worker": {**WORKER, **INTERRUPTIONS},
}

# What is rare goes on beside all that, one kind at a time, or it would hardly ever meet another of its kind:
# who does it, and how schedules begin. A command costs as much as all else in a schedule.
BESIDES: dict[str, tuple[Mix, Sequence[str]]] = {
    "nothing": ({}, STARTS),
    "commands": (
        {
            "runner": {"run_backfill": 5, "run_repair": 3, LOSE: 40},
            # Who walks by hand keeps the lock for long.
            "backfill": {"plan": 1, "slice": 4, "let_go": 12},
            "worker": {"slice": 4, "let_go": 12},
        },
        (*STARTS, *STARTS, DAMAGED),
    ),
    "steps": (
        {
            "migrator": {"downgrade": 12, "upgrade": 12},
            "runner": {"run_backfill": 1},
            # A step needs its tables for itself, and cannot wait here: fewer transactions stay open.
            **{name: {**USAGE, **OWNERS, "begin": 2, "commit": 12, "tick": 1} for name in WRITERS},
            "ticker": {"tick": 24, "tick_without_time": 8, "window_of_everything": 12, "resume": 12},
        },
        STARTS,
    ),
    "later releases": (
        {"migrator": {"later_release": 12}, "runner": {"run_backfill": 1, "run_repair": 1}},
        STARTS,
    ),
}
MIXES = {name: ({**EVERYTHING, **more}, starts) for name, (more, starts) in BESIDES.items()}

# Two sessions that walk at once, and what may come in between.
WALKERS: Mix = {
    "w1": {"report": 2, "import": 1, "correct_silently": 2, "delete_usage": 1, "begin": 1, "commit": 1},
    "w2": {"move_task_to_agent": 2, "move_issue": 2, "tick": 2, "begin": 1, "commit": 2},
    "backfill": {"lead": 10, "slice": 10, "finish": 3, "repair": 1, "let_go": 1, **INTERRUPTIONS},
    "worker": {**WORKER, **INTERRUPTIONS},
}


def operations(weights: Mix) -> st.SearchStrategy[Operation]:
    choices = list(
        chain.from_iterable(
            repeat((session, verb), n) for session, verbs in weights.items() for verb, n in verbs.items()
        )
    )
    return st.tuples(st.sampled_from(choices), st.integers(0, 11), st.integers(0, 11)).map(
        lambda drawn: (*drawn[0], drawn[1], drawn[2])
    )


def scripts(weights: Mix, starts: Sequence[str] = STARTS) -> st.SearchStrategy[tuple[str, Schedule]]:
    """Return a strategy for where a schedule starts and what it does."""
    return st.tuples(st.sampled_from(starts), st.lists(operations(weights), min_size=12, max_size=25))
