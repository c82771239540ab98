"""The plan of a backfill: made, walked slice by slice, finished, by the functions of 102.

It lives in the database. The caller's session holds advisory lock 4246 and is outside a transaction; each
function is one transaction. A kill between two of them loses nothing: what is planned is walked by whoever
comes next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ..errors import BackfillRefused
from ..queries import beside, filled
from ..session import advisory_lock
from ..session.connection import transaction
from .pipeline import Reading

# Bounds what a kill can undo and how long a slice holds its snapshot: a few seconds of work.
SLICE_ROWS = 500_000

# How long to wait for transactions whose start this role cannot see.
HORIZON_WAIT = "10 seconds"

# In place of a watermark whose row was deleted by hand.
NO_ROW = "missing"

# How a watermark begins that nothing was ever rolled up to, as PostgreSQL writes it and as JSON has it.
NEVER_MOVED = ("1970-01-01 00:00:00", "1970-01-01T00:00:00", "-infinity", NO_ROW)

_SQL = beside(__file__)

# For a refusal, online and in a script: one row always, because who it was may have ended meanwhile.
HELD_BACK_BY = _SQL["held_back_by"]

# Online and in a script: what a partial backfill left out, a multirange or NULL, and how it is planned.
LEFT_OUT = _SQL["left_out"]
PLAN_LEFT_OUT = filled(_SQL["plan_left_out"], left_out=LEFT_OUT, rows=f"bigint '{SLICE_ROWS}'")


@dataclass(frozen=True)
class Slice:
    """One committed slice: hours [from_, to), usage rows read, buckets written, seconds taken."""

    from_: datetime
    to: datetime
    rows: int
    buckets: int
    seconds: float


def horizon(session: sa.Connection, reading: Reading) -> str:
    """Return a time before which no open transaction began that may write usage, or `-infinity`.

    Read it in a statement of its own, before any snapshot that relies on it.
    """
    statement = reading.sql("SELECT public.task_usage_hourly_horizon(CAST(:wait AS interval))::text")
    return str(session.scalar(statement, {"wait": HORIZON_WAIT}))


def require_horizon(session: sa.Connection, reading: Reading) -> str:
    """Return horizon(); without one a walk would end where it began, so raise BackfillRefused."""
    found = horizon(session, reading)
    if found == "-infinity":
        who, hint = session.execute(reading.sql(HELD_BACK_BY)).one()
        raise BackfillRefused(
            "no safe horizon: transactions are open whose start this role cannot see, or that were"
            f" prepared and left: {who}",
            hint=f"{hint}; then run the same command again",
        )
    return found


@dataclass(frozen=True)
class HeldBack:
    """Who holds the watermark back, in words, and the statements that end it.

    `stuck` when it stands at the horizon already, so that no tick and no backfill can move it before.
    """

    who: str
    hint: str
    stuck: bool


def held_back(session: sa.Connection, reading: Reading) -> HeldBack | None:
    """Say who keeps the watermark of our pipeline from coming close to now; None when nobody does.

    In the caller's transaction; takes no lock and waits for nobody.
    """
    row = session.execute(reading.sql(_SQL["held_back"])).mappings().one_or_none()
    return None if row is None else HeldBack(**row)


def plan(session: sa.Connection, *, empty: bool = False, since: datetime | None = None) -> None:
    """Fix the horizon and plan what lies below it.

    An empty table can wait for a horizon until its first tick. What was created before `since` is left out
    of the plan, and the database says so from then on. Raises BackfillRefused without a horizon.
    """
    installed = Reading(lent=False)
    upto = horizon(session, installed) if empty else require_horizon(session, installed)
    session.execute(
        sa.text(
            "SELECT public.rollup_task_usage_hourly_plan("
            "CAST(:upto AS timestamptz), CAST(:rows AS bigint),"
            " COALESCE(CAST(:since AS timestamptz), '-infinity'))"
        ),
        {"upto": upto, "rows": SLICE_ROWS, "since": since},
    )


def plan_left_out(session: sa.Connection) -> None:
    """Plan what a partial backfill left out, as one range; there must be something, and no other plan."""
    session.execute(sa.text(PLAN_LEFT_OUT))


def plan_repair(session: sa.Connection, hours: Sequence[datetime]) -> None:
    """Plan the recompute of `hours`."""
    session.execute(
        sa.text("SELECT public.rollup_task_usage_hourly_plan_repair(CAST(:rows AS bigint), :hours)"),
        {"rows": SLICE_ROWS, "hours": [*hours]},
    )


def is_planned(session: sa.Connection) -> bool:
    """Say whether there is a plan, walked or not: a backfill that is under way, or was interrupted."""
    return bool(session.scalar(sa.text("SELECT EXISTS (SELECT FROM public.task_usage_hourly_backfill)")))


def give_up(session: sa.Connection) -> bool:
    """Empty the plan, build the indexes it dropped, and say whether there was one.

    For a plan that was overtaken: another window is installed, which keeps the rollup without it.
    """
    with transaction(session):
        session.execute(sa.text("SELECT public.rollup_task_usage_hourly_build_indexes()"))
        return session.execute(sa.text("DELETE FROM public.task_usage_hourly_backfill")).rowcount > 0


def rows_left(session: sa.Connection) -> int:
    """Return how many usage rows the slices hold that are planned and not walked."""
    return int(session.scalar(sa.text(_ROWS_LEFT)) or 0)


def walk_next(session: sa.Connection) -> Slice | None:
    """Walk the first slice that nobody else is walking, if this session still holds 4246; None without one.

    Raises UnsuitableDatabase where a pooler has given the session's place to another.
    """
    started = time.monotonic()
    with transaction(session):
        advisory_lock.require_held(session)
        row = session.execute(sa.text("SELECT * FROM public.rollup_task_usage_hourly_slice()")).one_or_none()
    return None if row is None else Slice(row[0], row[1], row[2], row[3], time.monotonic() - started)


def finish(session: sa.Connection) -> None:
    """Move the watermark to the horizon of the plan, which is empty then; every slice must be walked."""
    with transaction(session):
        advisory_lock.require_held(session)
        session.execute(sa.text("SELECT public.rollup_task_usage_hourly_finish()"))


_ROWS_LEFT = """
SELECT SUM(usage_rows)::bigint FROM public.task_usage_hourly_backfill WHERE walked_at IS NULL
"""
