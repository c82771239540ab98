"""Compare the rollup with raw usage in one snapshot, with one session or several; recompute what differs."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import partial
from itertools import pairwise

import sqlalchemy as sa

from .. import account
from ..errors import BackfillRefused
from ..queries import beside, literal
from ..session.connection import snapshot, transaction
from ..session.options import Options
from . import slices
from .crew import crew
from .walk import walk

log = logging.getLogger(__name__)

_SQL = beside(__file__)

ALWAYS = ("-infinity", "infinity")

# How often hours that differ are recomputed before somebody has to look.
REPAIRS = 2


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


def repair(session: sa.Connection, options: Options, sessions: int | None = None) -> int:
    """Drain, compare, recompute what differs, compare again; return the hours that were recomputed.

    As many `sessions` compare as have walked, else as many as `options` ask for. Entered and left outside a
    transaction, holding 4246. Leaves the proof for 103 in the session's settings. Raises BackfillRefused when
    hours still differ.
    """
    session.execute(sa.text(_DRAIN))
    repaired = 0
    for _ in range(REPAIRS):
        differing = differing_hours(session, sessions or options.jobs or 1)
        if not differing:
            break
        log.warning(
            "hours of the rollup that differ from raw usage: %s; recomputing them", f"{len(differing):,}"
        )
        slices.plan_repair(session, differing)
        repaired += len(differing)
        account.run.repaired_hours += len(differing)
        walk(session, options)
    else:
        require_equal(session)
    with transaction(session):
        session.execute(sa.text(_LEAVE_PROOF))
        # Whatever was left out once is in now.
        session.execute(sa.text("DELETE FROM public.task_usage_hourly_left_out"))
    log.info("the hourly rollup matches raw usage")
    return repaired


def require_equal(session: sa.Connection, since: datetime | None = None) -> None:
    """Compare the hours from `since` on, or all; raise BackfillRefused when one differs from raw usage."""
    differing = session.scalar(sa.text(_DIFFERING), {"since": since})
    if differing:
        raise BackfillRefused(
            f"hours of the hourly rollup that still differ from raw usage after recomputing: {differing:,}",
            hint="SELECT public.task_usage_hourly_differences() names them",
        )


def _compare(session: sa.Connection, snapshot_id: str, since: str, until: str) -> list[datetime]:
    with snapshot(session):
        session.exec_driver_sql(f"SET TRANSACTION SNAPSHOT {literal(snapshot_id)}")
        return _differing(session, since, until)


def _differing(session: sa.Connection, since: str, until: str) -> list[datetime]:
    return [*session.scalars(sa.text(_SQL["differences"]), {"since": since, "until": until})]


_DRAIN = "SELECT public.rollup_task_usage_hourly_window(timestamptz '-infinity', timestamptz '-infinity')"

_DIFFERING = """
SELECT COUNT(*) FROM public.task_usage_hourly_differences(
    COALESCE(CAST(:since AS timestamptz), '-infinity'), timestamptz 'infinity', false)
"""

_LEAVE_PROOF = """
SELECT set_config('usage_rollup.proof', watermark_at::text, false)
FROM public.task_usage_hourly_rollup_state WHERE id = 1
"""
