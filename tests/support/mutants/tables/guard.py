"""103: its guard, what it drops and keeps, and the way back."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

MUTANTS: list[Mutant] = []
