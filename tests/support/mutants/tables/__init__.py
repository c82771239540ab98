"""The mistakes that were thought of by hand, by what they are about."""

from __future__ import annotations

from itertools import chain

from tests.support.mutants.tables import guard, oracle, python, rollup, scripts, triggers, walk

MUTANTS = [
    *chain.from_iterable(table.MUTANTS for table in (guard, oracle, rollup, walk, triggers, scripts, python))
]
