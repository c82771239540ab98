"""102: what the triggers and the bridge write down."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

MUTANTS: list[Mutant] = []
