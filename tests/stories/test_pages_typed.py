"""The pages' shell blocks, typed as they stand, in order, on a real database."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.database import ROOT, MakeDatabase
from tests.support.pages import (
    CHANGES,
    CONTRIBUTING,
    ELSEWHERE,
    GUIDE,
    MONITORING,
    MUTANTS,
    README,
    Change,
    checkout,
    pages,
    typed,
)
from tests.support.rollup import TICK
from tests.support.starts import STARTS

pytestmark = pytest.mark.process

# At head, and ticked a moment ago.
TICKED = "ticked"

# Of a page: where the database begins, which blocks are typed, and the revision that it ends at.
STORIES = [
    (README, "v034", ["Run it 2", "The operator's commands", "In CI"], "104"),
    (README, "v034_with_losses", ["As SQL scripts"], "104"),
    (README, "stuck_at_103", ["From inside a restart loop"], "104"),
    (README, "v034_without_usage", ["Run it", "Development"], None),
    (GUIDE, "v034", ["Before", "Small install"], "104"),
    (GUIDE, "v034_with_losses", ["Before", "Small install", "Rolled back", "Small install"], "104"),
    (GUIDE, "v034", ["Operator's guide", "Large install, without downtime"], "104"),
    (GUIDE, "half_way", ["Large install, without downtime"], "104"),
    (GUIDE, "stuck_at_103", ["Before", "Stuck at 103"], "104"),
    (GUIDE, "go_104", ["Dashboards at zero"], None),
    (GUIDE, "head", ["Dashboards at zero", "Rolled back"], "102"),
    (MONITORING, TICKED, ["Probes", "Prometheus"], "104"),
    (MUTANTS, "v034_without_usage", ["Mutants: do the tests notice a mistake?"], None),
    (CONTRIBUTING, "v034_without_usage", ["Contributing", "Adding a revision", "A release"], None),
]


@pytest.mark.parametrize(
    ("page", "start", "headings", "revision"),
    STORIES,
    ids=lambda value: "+".join(value).replace(" ", "_") if isinstance(value, list) else str(value),
)
def test_page_can_be_typed_from_top_to_bottom(
    make_database: MakeDatabase,
    tmp_path: Path,
    page: str,
    start: str,
    headings: list[str],
    revision: str | None,
) -> None:
    database = STARTS["head" if start == TICKED else start](make_database)
    if start == TICKED:
        database.execute(TICK)
    done = typed(database, page, headings, checkout(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert database.revision == revision


def test_every_block_of_every_page_is_typed_or_tried_elsewhere() -> None:
    there = {(page, heading) for page, blocks in pages().items() for heading in blocks}
    told = {(page, heading) for page, _, headings, _ in STORIES for heading in headings}
    others = {(page, heading) for page in ELSEWHERE for heading in pages()[page]}
    assert told | others == there
    assert told & others == set()
    assert [file for file, _ in ELSEWHERE.values() if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.pattern)
def test_what_a_test_changes_in_a_page_is_there_to_be_changed(change: Change) -> None:
    for page in change.pages:
        assert any(re.search(change.pattern, block, re.MULTILINE) for block in pages()[page].values()), page


def test_a_block_that_fails_in_the_middle_fails(make_database: MakeDatabase, tmp_path: Path) -> None:
    # Before 102 nothing ticks.
    done = typed(make_database("v034"), MONITORING, ["Probes"], checkout(tmp_path))
    assert done.returncode == 3
