"""The mistakes of the tables still are ones: each finds its place in the code, and tests that know it."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.support.database import ROOT
from tests.support.mutants.modules import EQUIVALENT, TESTS
from tests.support.mutants.tables import MUTANTS

pytestmark = pytest.mark.offline


def test_every_mistake_finds_its_place_once_and_changes_something() -> None:
    text = cache(lambda path: (ROOT / path).read_text("utf-8"))
    assert [m.name for m in MUTANTS if text(m.path).count(m.old) != 1 or m.old == m.new] == []


def test_every_mistake_names_tests_that_are_there() -> None:
    assert [m.name for m in MUTANTS if not files_of(m.tests) or missing(m.tests)] == []


def files_of(tests: str) -> set[str]:
    return {word.split("::")[0] for word in tests.split() if word.startswith("tests/")}


def missing(tests: str) -> list[str]:
    return [name for name in files_of(tests) if not (ROOT / name).exists()]


def test_each_has_a_name_of_its_own_and_eighty_are_of_sql() -> None:
    assert [name for name, times in Counter(mutant.name for mutant in MUTANTS).items() if times > 1] == []
    assert len([mutant for mutant in MUTANTS if mutant.path.endswith(".sql")]) >= 80


def test_every_module_names_tests_that_are_there() -> None:
    package = ROOT / "src" / "usage_rollup"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert TESTS.keys() == {module for module in modules if not Path(module).stem.startswith("__")}
    assert [module for module, tests in TESTS.items() if missing(tests)] == []


@pytest.mark.parametrize("line", EQUIVALENT)
def test_line_that_is_argued_is_still_there(line: str) -> None:
    module, _, code = line.partition(": ")
    lines = (ROOT / "src" / "usage_rollup" / module).read_text("utf-8").splitlines()
    assert code in map(str.strip, lines)
