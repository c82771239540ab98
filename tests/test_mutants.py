"""The mistakes of the tables still are ones: each finds its place in the code, and tests that know it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.database import ROOT
from tests.support.mutants.modules import EQUIVALENT, TESTS
from tests.support.mutants.tables import MUTANTS, TABLES
from tests.support.rollup import MEASURES

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


def test_every_choice_of_tests_by_a_word_finds_some() -> None:
    assert [m.name for m in MUTANTS if "-k" in m.tests.split() and not any(chosen(m.tests))] == []


def chosen(tests: str) -> Iterator[str]:
    """Yield the lines that the word behind -k stands in; many tests take each measure in turn."""
    word = tests.split("-k ")[1].split()[0]
    yield from (measure for measure in MEASURES if measure == word)
    for name in files_of(tests):
        path = ROOT / name
        for file in path.rglob("test_*.py") if path.is_dir() else [path]:
            yield from re.findall(rf".*{re.escape(word)}.*", file.name + "\n" + file.read_text("utf-8"))


def test_the_page_counts_the_mistakes_of_each_table() -> None:
    page = (ROOT / "docs" / "mutants.md").read_text("utf-8")
    said = re.findall(r"^\| `(\w+)\.py` \|[^|]*\| (\d+) of (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert said == [
        (name, *[str(sum(not m.equivalent for m in table))] * 2, str(sum(bool(m.equivalent) for m in table)))
        for name, table in TABLES.items()
    ]


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
    place, _, code = line.partition(": ")
    lines = (ROOT / "src" / "usage_rollup" / place.split()[0]).read_text("utf-8").splitlines()
    assert code in map(str.strip, lines)
