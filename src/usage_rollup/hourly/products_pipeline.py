"""Catch up where a product release has installed its own pipeline: through its window, by its name.

Past 104 the product's runner replaces the functions of 102, and later releases add columns that only
their own window fills. So nothing here writes a bucket.
"""

from __future__ import annotations

import time

import sqlalchemy as sa

from ..contract import HOURLY_ROLLUP
from ..errors import BackfillRefused
from ..queries import beside, filled
from ..session import advisory_lock
from ..session.connection import transaction
from ..session.options import Options
from . import pipeline, slices
from .backfill import Backfill, summary
from .progress import slice_progress
from .slices import Slice
from .walk import rest

_SQL = beside(__file__)

# The first releases' window joins every touched bucket to all tasks of its agent: 15,000 rows took it
# 5 s, 60,000 took 158 s (issue 4). Small steps keep it and its locks short.
STEP_ROWS = 5_000


def catch_up(session: sa.Connection, options: Options) -> Backfill:
    """Move the watermark to the horizon, step by step, each with the window that justifies it.

    Every step is one transaction, so a killed run goes on where it stopped. Entered and left outside
    a transaction; left holding 4246. Raises LockBusy, and BackfillRefused without a safe horizon.
    """
    reading = pipeline.reading(session)
    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))
    horizon = slices.require_horizon(session, reading)
    walked: list[Slice] = []
    with slice_progress(_rows_left(session, horizon)) as progress:
        while (done := _step(session, horizon)) is not None:
            walked.append(done)
            progress.advance(done)
            rest(session, options)
    return summary(walked)


def repair(session: sa.Connection) -> int:
    """Queue every bucket of the hours that differ and let the window recompute them.

    Entered and left outside a transaction, holding 4246. Returns the number of hours. Raises
    BackfillRefused when hours differ afterwards.
    """
    reading = pipeline.reading(session)
    with transaction(session):
        hours = session.scalars(reading.sql("SELECT public.task_usage_hourly_differences()")).all()
        for hour in hours:
            session.execute(reading.sql(_SQL["queue"]), {"hour": hour})
    if not hours:
        return 0
    # Queued before now, so a window that ends now sees it; it has no time of its own to look at.
    session.execute(sa.text(_SQL["empty_window"]))
    left = session.scalar(reading.sql("SELECT COUNT(*) FROM public.task_usage_hourly_differences()"))
    if left:
        raise BackfillRefused(
            f"{left} hours still differ from raw usage after the product's window recomputed them",
            hint="usage-rollup verify names them",
        )
    return len(hours)


def _rows_left(session: sa.Connection, horizon: str) -> int:
    counted = filled(_SQL["rows_left"], events=_SQL["events"])
    return int(session.scalar(sa.text(counted), {"horizon": horizon}) or 0)


def _step(session: sa.Connection, horizon: str) -> Slice | None:
    """Roll up the next step and move the watermark with it; None when it stands at the horizon."""
    started = time.monotonic()
    with transaction(session):
        found = filled(_SQL["step"], events=_SQL["events"])
        step = session.execute(sa.text(found), {"horizon": horizon, "rows": STEP_ROWS}).one_or_none()
        if step is None:
            return None
        buckets = session.scalar(
            sa.text("SELECT public.rollup_task_usage_hourly_window(:from_at, :to_at)"), dict(step._mapping)
        )
        # Not last_run_*: a backfill is no tick, and whoever asks what ticks looks there.
        session.execute(
            sa.text("UPDATE public.task_usage_hourly_rollup_state SET watermark_at = :to_at WHERE id = 1"),
            {"to_at": step.to_at},
        )
    return Slice(step.from_at, step.to_at, step.events, buckets or 0, seconds=time.monotonic() - started)
