"""The mistakes that were thought of by hand, by what they are about."""

from __future__ import annotations

from itertools import chain

from tests.support.mutants.mutant import Mutant
from tests.support.mutants.tables import guard, oracle, python, rollup, scripts, triggers, walk

TABLES: dict[str, list[Mutant]] = {
    table.__name__.rpartition(".")[2]: table.MUTANTS
    for table in (guard, oracle, rollup, walk, triggers, scripts, python)
}
MUTANTS = [*chain.from_iterable(TABLES.values())]
