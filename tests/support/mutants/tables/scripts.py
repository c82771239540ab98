"""SQL that the runner and the scripts use, outside the revisions."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

MUTANTS: list[Mutant] = []
