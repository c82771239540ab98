"""Mistakes in src/ that tests once did not notice."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

MUTANTS: list[Mutant] = []
