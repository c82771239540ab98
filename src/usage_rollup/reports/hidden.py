"""What a look could not see, and why: a line for each reason, a lock with its holder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
import sqlalchemy as sa

from ..errors import Refusal, explain
from ..session import blockers

LOCKED = "55P03"

# Forbidden, read-only, a standby, locked by somebody, or not as the product makes it: noted, never fatal.
NOTED = {"42501", "25006", "0A000", LOCKED, "42P01", "42703", "42883"}


@dataclass
class Hidden:
    """Reasons, each with what it hid, and their SQLSTATEs."""

    reasons: dict[str, list[str]] = field(default_factory=dict)
    states: set[str | None] = field(default_factory=set)

    def note(self, session: sa.Connection, what: str, error: psycopg.Error) -> None:
        """Note why `what` was not seen, in the caller's transaction, which has outlived the error."""
        reason = explain(error).message
        if isinstance(error, psycopg.errors.LockNotAvailable):
            why = blockers.lock_wait(session, error)
            reason = "; ".join(part for part in (why.message, why.detail, why.hint) if part)
        self.reasons.setdefault(reason, []).append(what)
        self.states.add(error.sqlstate)

    def lines(self) -> list[str]:
        """Return a line for each reason."""
        return [f"{', '.join(what)}: {reason}" for reason, what in self.reasons.items()]

    def only_locks(self, refusals: Sequence[Refusal]) -> bool:
        """Say whether locks of other sessions are all that hid something, and all that was refused for."""
        return self.states.union(refusal.facts.get("sqlstate") for refusal in refusals) == {LOCKED}
