"""102: plan, slices, finish, repair."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

MUTANTS: list[Mutant] = []
