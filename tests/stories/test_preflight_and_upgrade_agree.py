"""What preflight says is what the upgrade does, on whatever database it meets.

`make test` plays 150 draws, always the same; HYPOTHESIS_PROFILE=long plays 3,000, other ones every time. A
failing draw prints itself as the call that plays it again.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.support.hostile import CHANGES
from tests.support.promise import ROLES, Stage
from tests.support.server import Server
from tests.support.starts import START_TRAITS, fits

pytestmark = pytest.mark.long

# Several tests share them, so that two workers do.
PARTS = 4

settings.register_profile(
    "hostile", max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile(
    "hostile_long", settings.get_profile("hostile"), max_examples=3_000, print_blob=True
)
PROFILE = "hostile_long" if os.environ.get("HYPOTHESIS_PROFILE") == "long" else "hostile"

Play = tuple[str, str, list[str]]


def plays() -> st.SearchStrategy[Play]:
    """Return a strategy for a start, who migrates, and up to four changes that fit the start."""

    def at(start: str) -> st.SearchStrategy[Play]:
        fitting = [name for name, change in CHANGES.items() if fits(change, start)]
        changes = st.integers(0, 4).flatmap(
            lambda n: st.lists(st.sampled_from(fitting), min_size=n, max_size=n, unique=True)
        )
        return st.tuples(st.just(start), st.sampled_from(list(ROLES)), changes)

    return st.sampled_from(list(START_TRAITS)).flatmap(at)


@pytest.fixture(scope="module")
def stage(server: Server, templates: Callable[[str], str]) -> Iterator[Stage]:
    stage = Stage(server, templates)
    yield stage
    stage.close()


@pytest.mark.parametrize("part", range(PARTS))
def test_preflight_and_upgrade_agree_on_a_database_that_was_tampered_with(stage: Stage, part: int) -> None:
    profile = settings.get_profile(PROFILE)

    @settings(profile, max_examples=profile.max_examples // PARTS)
    @given(plays())
    def play(drawn: Play) -> None:
        start, role, changes = drawn
        stage.keep(start, role, *changes)

    (seed(part)(play) if PROFILE == "hostile" else play)()
    # Draws that are all refused, or none, would prove nothing.
    assert min(stage.counted.values()) > 5


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


# All of them take minutes; the draws above meet the others, too.
ALONE = [name for name in CHANGES if PROFILE == "hostile_long" or _number(name) % 4 == 0]


@pytest.mark.parametrize("name", ALONE)
def test_preflight_and_upgrade_agree_on_one_change_alone(stage: Stage, name: str) -> None:
    fitting = [start for start in START_TRAITS if fits(CHANGES[name], start)]
    # Every start and every role has its share of the catalogue, the same every time.
    start, role = fitting[_number(name) % len(fitting)], list(ROLES)[_number(name) // 7 % len(ROLES)]
    outcome = stage.keep(start, role, name)
    assert outcome.applied == [name], "the catalogue promises a change that cannot be made"


@pytest.mark.parametrize("start", START_TRAITS)
def test_untouched_databases_go_through(stage: Stage, start: str) -> None:
    number = list(START_TRAITS).index(start)
    for role in ROLES if PROFILE == "hostile_long" else [list(ROLES)[number % len(ROLES)]]:
        outcome = stage.keep(start, role)
        # Who may not make a schema cannot keep what only the legacy tables hold.
        few = role == "member_who_must_set_role" or (
            start == "v034_with_losses" and role in {"owner_with_few_rights", "member_who_becomes_the_owner"}
        )
        assert outcome.goes_through or few, outcome.preflight
