"""Catch up where a product release has installed its own pipeline: through its window, by its name.

Past 104 the product's runner replaces the functions of 102, and later releases add columns that only
their own window fills. So nothing here writes a bucket.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

import psycopg
import sqlalchemy as sa
from psycopg import errors
from sqlalchemy.exc import DBAPIError
from tenacity import retry, retry_if_exception, stop_after_attempt

from .. import account
from ..contract import HOURLY_ROLLUP
from ..errors import BackfillRefused, explain
from ..queries import beside, filled
from ..session import advisory_lock, outages
from ..session.connection import transaction, writing_snapshot
from ..session.options import Options
from . import pipeline, slices
from .backfill import Backfill, summary
from .pipeline import Reading
from .progress import slice_progress
from .slices import Slice
from .walk import Walked, rest

_SQL = beside(__file__)

# The first releases' window joins every touched bucket to all tasks of its agent: 15,000 rows took it
# 5 s, 60,000 took 158 s (issue 4). Small steps keep it and its locks short.
STEP_ROWS = 5_000

# What another session's write leads to, and goes away when tried again.
_CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)

# What a key, a sum or a row that PostgreSQL cannot store leads to, and will again.
_REFUSALS = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded)

_QUEUED = "somebody else has queued it meanwhile, and the next tick recomputes it"
_LEFT = "the window left it as it was"


@account.phase("rolling up")
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
            outages.reached(session, done.to)
            rest(session, options)
    return summary(Walked(walked, 1))


@account.phase("comparing with raw usage")
def require_equal(session: sa.Connection) -> None:
    """Raise BackfillRefused when an hour differs from raw usage although nothing about it is pending.

    Entered and left outside a transaction, holding 4246.
    """
    hours = session.scalars(pipeline.reading(session).sql(_SQL["wrong_hours"]), {"pending": False}).all()
    if hours:
        raise BackfillRefused(
            f"hours of the hourly rollup that differ from raw usage: {len(hours):,}",
            detail=f"the product's window has rolled up: {account.run.rolled_up()}",
            hint="`usage-rollup verify` shows them; `usage-rollup backfill --repair` recomputes them",
        )


@account.phase("comparing with raw usage")
def repair(session: sa.Connection, *, pending: bool = False) -> int:
    """Let the window recompute the keys that are wrong, hour by hour; return how many hours are right now.

    Only hours that differ although nothing about them is pending, unless `pending`: the window comes to an
    hour's pending keys by itself, and never to others that were lost in it. Each is one transaction and one
    snapshot, in which it is compared again, queued or not; what the window refuses holds up no other key and
    no other hour. Entered and left outside a transaction, holding 4246. Raises BackfillRefused when an hour
    is wrong afterwards, once all have been tried.
    """
    reading = pipeline.reading(session)
    hours = session.scalars(reading.sql(_SQL["wrong_hours"]), {"pending": pending}).all()
    refused = [reason for hour in hours if (reason := _repair(session, reading, hour, pending))]
    repaired = len(hours) - len(refused)
    if refused:
        raise BackfillRefused(
            f"{len(refused)} of {len(hours)} hours could not be repaired through the product's window:"
            f" {refused[0]}",
            detail=f"hours repaired: {repaired}",
            hint="correct the usage of that bucket, then run `usage-rollup backfill --repair` again;"
            " `usage-rollup verify` names the hours",
        )
    return repaired


def _conflicts(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and isinstance(error.orig, _CONFLICTS)


@retry(retry=retry_if_exception(_conflicts), stop=stop_after_attempt(5), reraise=True)
def _repair(session: sa.Connection, reading: Reading, hour: datetime, pending: bool) -> str | None:
    """Recompute the wrong keys of one hour; return the first that is still wrong, and why.

    Those that somebody else has queued are his; in an hour that may be `pending` they are not wrong.
    """

    def wrong_keys() -> Sequence[sa.RowMapping]:
        return session.execute(reading.sql(_SQL["wrong_keys"]), {"hour": hour}).mappings().all()

    with writing_snapshot(session):
        advisory_lock.require_held(session)
        refusals = _recompute(session, wrong_keys())
        left = [key for key in wrong_keys() if not (pending and key["queued"])]
    if not left:
        outages.reached(session, hour)
        return None
    key, reason = next(iter(refusals), (left[0], _QUEUED if left[0]["queued"] else _LEFT))
    label = f"{key['provider']}/{key['model']}"
    return f"{hour:%Y-%m-%d %H:%M} UTC, agent {key['agent_id']}, {label[:60]!r}: {reason}"


def _recompute(session: sa.Connection, keys: Sequence[sa.RowMapping]) -> list[tuple[sa.RowMapping, str]]:
    """Send keys through the window, by halves where PostgreSQL refuses; return those it refused alone."""
    if not keys:
        return []
    try:
        with session.begin_nested():
            session.execute(sa.text(_SQL["queue"]), [dict(key) for key in keys])
            with pipeline.in_reach_of_public(session):
                session.execute(sa.text(_SQL["window_of_the_far_past"]))
            session.execute(sa.text(_SQL["take_back"]))
        return []
    except DBAPIError as error:
        # Only what the data cause, not a cancel or a lost session.
        if not isinstance(error.orig, _REFUSALS):
            raise
        if len(keys) == 1:
            return [(keys[0], explain(error.orig).message)]
    half = len(keys) // 2
    return _recompute(session, keys[:half]) + _recompute(session, keys[half:])


def _rows_left(session: sa.Connection, horizon: str) -> int:
    counted = filled(_SQL["rows_left"], events=_SQL["events"])
    return int(session.scalar(sa.text(counted), {"horizon": horizon}) or 0)


def _step(session: sa.Connection, horizon: str) -> Slice | None:
    """Roll up the next step and move the watermark with it; None when it stands at the horizon."""
    started = time.monotonic()
    with transaction(session):
        advisory_lock.require_held(session)
        found = filled(_SQL["step"], events=_SQL["events"])
        step = session.execute(sa.text(found), {"horizon": horizon, "rows": STEP_ROWS}).one_or_none()
        if step is None:
            return None
        with pipeline.in_reach_of_public(session):
            buckets = session.scalar(sa.text(_SQL["window"]), dict(step._mapping))
        # Not last_run_*: a backfill is no tick, and whoever asks what ticks looks there.
        session.execute(
            sa.text("UPDATE public.task_usage_hourly_rollup_state SET watermark_at = :to_at WHERE id = 1"),
            {"to_at": step.to_at},
        )
    return Slice(step.from_at, step.to_at, step.events, buckets or 0, seconds=time.monotonic() - started)
