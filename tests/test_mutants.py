"""The mistakes of the tables still are ones: each finds its place in the code, and tests that know it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.database import ROOT
from tests.support.mutants.modules import EQUIVALENT, TESTS
from tests.support.mutants.mutant import Mutant
from tests.support.mutants.tables import MUTANTS

pytestmark = pytest.mark.offline


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mistake_finds_its_place_once_and_changes_something(mutant: Mutant) -> None:
    assert (ROOT / mutant.path).read_text("utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mistake_names_tests_that_are_there(mutant: Mutant) -> None:
    files = [word for word in mutant.tests.split() if word.startswith("tests/")]
    assert files
    assert [name for name in files if not (ROOT / name.split("::")[0]).exists()] == []


def test_each_has_a_name_of_its_own_and_eighty_are_of_sql() -> None:
    assert [name for name, times in Counter(mutant.name for mutant in MUTANTS).items() if times > 1] == []
    assert len([mutant for mutant in MUTANTS if mutant.path.endswith(".sql")]) >= 80


def test_every_module_names_tests_that_are_there() -> None:
    package = ROOT / "src" / "usage_rollup"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert TESTS.keys() == {module for module in modules if not Path(module).stem.startswith("__")}
    files = {word for tests in TESTS.values() for word in tests.split() if word.startswith("tests/")}
    assert [name for name in files if not (ROOT / name.split("::")[0]).exists()] == []


@pytest.mark.parametrize("line", EQUIVALENT)
def test_line_that_is_argued_is_still_there(line: str) -> None:
    module, _, code = line.partition(": ")
    lines = (ROOT / "src" / "usage_rollup" / module).read_text("utf-8").splitlines()
    assert code in map(str.strip, lines)
