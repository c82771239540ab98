"""102: aggregate, range, window and tick."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

MUTANTS: list[Mutant] = []
