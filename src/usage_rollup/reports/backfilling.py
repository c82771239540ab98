"""Say how far a backfill has come, and whether it is at work or was interrupted."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from ..contract import HOURLY_ROLLUP
from ..queries import beside
from ..session.pinned import APPLICATION_NAME

_SQL = beside(__file__)

RUNNING = "running"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Backfilling:
    """A backfill: `pids` of the sessions at it, its leader first, none where it was interrupted.

    Slices and usage rows are those of its plan. There are none while it plans, and while it compares.
    """

    state: str
    pids: list[int]
    slices: int
    walked_slices: int
    usage_rows: int
    walked_rows: int
    percent: int | None


def find(session: sa.Connection, *, has_plan: bool) -> Backfilling | None:
    """Return the backfill there is, None without one, in the caller's transaction; takes no lock.

    `has_plan`: 102's table of slices is there.
    """
    plan = session.execute(sa.text(_SQL["plan"])).mappings().one() if has_plan else dict.fromkeys(_PLAN, 0)
    known = {"key": HOURLY_ROLLUP, "application": APPLICATION_NAME, "planned": plan["slices"] > 0}
    pids = [*session.scalars(sa.text(_SQL["at_work"]), known)]
    if not pids and not plan["slices"]:
        return None
    return Backfilling(state=RUNNING if pids else INTERRUPTED, pids=pids, percent=_percent(**plan), **plan)


def _percent(slices: int, walked_slices: int, usage_rows: int, walked_rows: int) -> int | None:
    """Return how much of the rows is walked, 100 only when all slices are; None without a plan."""
    if walked_slices == slices:
        return 100 if slices else None
    return min(99, 100 * walked_rows // max(1, usage_rows))


_PLAN = ("slices", "walked_slices", "usage_rows", "walked_rows")
