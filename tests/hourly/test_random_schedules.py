"""No schedule of several sessions loses, invents or misattributes usage.

`make test` replays 500 schedules, always the same; HYPOTHESIS_PROFILE=long replays 10,000, other ones
every time. A failing schedule prints itself as the call that replays it.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import given, seed, settings

from tests.support.stateful.drawn import MIXES, SCHEDULES, WALKERS, scripts
from tests.support.stateful.machine import Machine, Schedule
from tests.support.stateful.world import PLANNED

pytestmark = pytest.mark.long

settings.register_profile("schedules", SCHEDULES)
settings.register_profile("long", SCHEDULES, max_examples=10_000, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "schedules")

# What happens beside what the sessions say, and how often at least.
HAPPENS = {
    "nothing": {"teardowns": 5},
    "commands": {
        "run_backfill": 2,
        "run_repair": 5,
        "slices of a crew": 3,
        "parts of a proof": 5,
        "losses survived": 1,
    },
    "steps": {"down 104": 3, "down 102": 2, "up 102": 2, "up 104": 2},
    "later releases": {"later releases": 3, "later ticks": 3, "run_backfill": 3},
}
PARTS = len(MIXES)

# Where few happen to be drawn otherwise: Hypothesis repeats itself within a schedule.
SEEDS = {"commands": 4}


@pytest.mark.parametrize("besides", MIXES)
def test_no_schedule_of_several_sessions_breaks_an_invariant(machine: Machine, besides: str) -> None:
    profile = settings.get_profile(PROFILE)

    @settings(profile, max_examples=profile.max_examples // PARTS)
    @given(scripts(*MIXES[besides]))
    def replay(script: tuple[str, Schedule]) -> None:
        machine.replay(*script)

    (seed(SEEDS.get(besides, 0))(replay) if PROFILE == "schedules" else replay)()
    count = machine.count
    # Schedules that only get in their own way would prove nothing.
    assert count.schedules >= profile.max_examples // PARTS * 0.9
    assert count.gated > count.schedules / 2
    assert count.refused < count.operations / 4
    assert Counter(HAPPENS[besides]) <= count.steps


def test_no_schedule_of_sessions_that_walk_at_once_breaks_an_invariant(machine: Machine) -> None:
    profile = settings.get_profile(PROFILE)

    @settings(profile, max_examples=profile.max_examples // PARTS)
    @given(scripts(WALKERS, ("history", PLANNED)))
    def replay(script: tuple[str, Schedule]) -> None:
        machine.replay(*script)

    (seed(0)(replay) if PROFILE == "schedules" else replay)()
    # Schedules in which one walks after the other would prove nothing.
    assert machine.count.together > machine.count.schedules / 4
