"""Compare the rollup with raw usage in one snapshot, with one session or several."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from itertools import pairwise

import sqlalchemy as sa

from .. import account
from ..queries import beside, literal
from ..session.connection import snapshot
from .crew import crew

_SQL = beside(__file__)

ALWAYS = ("-infinity", "infinity")


@account.phase("comparing with raw usage")
def differing_hours(leader: sa.Connection, sessions: int = 1) -> list[datetime]:
    """Return the hours that differ from raw usage although nothing about them is pending.

    Each of `sessions`, or of those that can be had, compares a range of hours of its own, all in the one
    snapshot that the leader holds and exports. Computed anew from raw rows: nothing of a walk is believed.
    Entered and left outside a transaction. Raises SessionLost where any of them is lost.
    """
    with snapshot(leader), crew(leader) as workers:
        if sessions == 1:
            return _differing(leader, *ALWAYS)
        exported = leader.scalar(sa.text("SELECT pg_export_snapshot()"))
        ranges = workers.grow(sessions)
        bounds = leader.scalars(sa.text(_SQL["bounds"]), {"ranges": ranges}).all()
        if not bounds:
            return _differing(leader, *ALWAYS)
        edges = [ALWAYS[0], *bounds, ALWAYS[1]]
        for worker, (since, until) in zip(workers.sessions, pairwise(edges), strict=False):
            workers.begin(worker, partial(_compare, snapshot_id=exported, since=since, until=until))
        hours: list[datetime] = []
        while workers.at_work:
            for found in workers.done():
                hours += found
        return sorted(hours)


def _compare(session: sa.Connection, snapshot_id: str, since: str, until: str) -> list[datetime]:
    with snapshot(session):
        session.exec_driver_sql(f"SET TRANSACTION SNAPSHOT {literal(snapshot_id)}")
        return _differing(session, since, until)


def _differing(session: sa.Connection, since: str, until: str) -> list[datetime]:
    return [*session.scalars(sa.text(_SQL["differences"]), {"since": since, "until": until})]
