"""Find out who changes usage past the triggers that queue it: subscriptions, replicas, disabled triggers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from ..queries import beside
from . import pipeline

_SQL = beside(__file__)

_REPAIR = "`usage-rollup verify` finds it, `usage-rollup backfill --repair` mends it"

# How a trigger is set that does not fire always.
_FIRES = {
    "D": "disabled, so what they should queue is not queued",
    "O": "not enabled ALWAYS, so they do not fire for subscriptions and sessions that play replica",
    "R": "enabled for replicas only, so what others change is not queued",
}


@dataclass(frozen=True)
class Unseen:
    """A way in which usage changes and nobody is told: what it means, and what to do about it."""

    meaning: str
    mend: str

    def __str__(self) -> str:
        return f"{self.meaning}; {self.mend}"


def find(session: sa.Connection) -> list[Unseen]:
    """Return what changes usage unseen, for the pipeline that is installed, or else for ours.

    Asks the catalog alone, in the caller's transaction, at any revision.
    """
    installed = pipeline.find(session)
    return list(_find(session, ours=installed.readable or not installed.installed))


def _find(session: sa.Connection, *, ours: bool) -> Iterator[Unseen]:
    for subscription in session.execute(sa.text(_SQL["subscriptions"])):
        seen = (
            "rows that it inserts or updates are queued, rows that it deletes are not"
            if ours
            else "no trigger fires for it, so rows that it moves or deletes are not queued"
        )
        writes = f"subscription {subscription.name} writes {subscription.tables}"
        yield Unseen(f"{writes}: {seen}", _REPAIR)
    for triggers in session.execute(sa.text(_SQL["triggers"]), {"ours": ours}):
        yield Unseen(
            f"triggers of the hourly rollup are {_FIRES[triggers.enabled]}: {triggers.names}",
            f"{triggers.mend}; then mend what was missed: usage-rollup backfill --repair",
        )
    if ours:
        return
    for replica in session.execute(sa.text(_SQL["replicas"])):
        yield Unseen(
            f"sessions of {replica.who or 'every role'} play replica (session_replication_role): the"
            " product's triggers do not fire there, so what they move or delete is not queued",
            f"{replica.mend}; then mend what was missed: usage-rollup backfill --repair",
        )
