"""Run one tick of the hourly rollup and write down how it went."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..contract import HOURLY_ROLLUP
from ..errors import LockBusy, StatementFailed, explain
from ..session import advisory_lock, blockers
from ..session.connection import transaction
from ..times import rfc3339
from . import lag, pipeline, slices
from .pipeline import Pipeline
from .slices import HeldBack

log = logging.getLogger(__name__)

# Workspace deletion waits ten seconds for 4246, which a tick holds meanwhile.
LOCK_PATIENCE = "5 seconds"


@dataclass(frozen=True)
class Tick:
    """What one tick did. Watermarks are text, RFC 3339: they may be infinite.

    `lag_seconds` is None where this role may not have 102's measure lent to it; `held_back` where nobody
    keeps the watermark back, or the tick is the product's, which waits for nobody.
    """

    rows_changed: int
    watermark_before: str | None
    watermark_after: str | None
    lag_seconds: float | None
    held_back: HeldBack | None = None


def tick(session: sa.Connection) -> Tick:
    """Run the installed tick, ours or the product's, in one READ COMMITTED transaction; commit.

    The transaction takes advisory lock 4246 first. When the tick fails it is rolled back, and the error
    is written to the state row in a transaction of its own, where the next successful tick clears it.
    No statement of it waits longer than LOCK_PATIENCE for somebody else's lock. Where the pipeline is the
    product's, 102's measure of the lag is lent to the session. Entered and left outside a transaction. Raises
    UnsuitableDatabase before 102, LockBusy, which names the holder and leaves the state row alone,
    StatementFailed, and SessionLost, which leaves it alone too.
    """
    installed = pipeline.require(session)
    started: datetime = session.scalar(sa.text("SELECT clock_timestamp()"))
    try:
        with transaction(session):
            done = _run(session, installed)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise blockers.lock_busy(session, error.orig) from error
        if not isinstance(error.orig, psycopg.Error):
            raise
        report = explain(
            error.orig,
            hint="mend the cause, then run `usage-rollup tick` again; `usage-rollup status` shows what waits",
        )
        _record(session, started, str(dataclasses.replace(report, hint=error.orig.diag.message_hint)))
        raise StatementFailed(
            dataclasses.replace(report, message=f"the tick was rolled back: {report.message}")
        ) from error
    held_back = slices.held_back(session, pipeline.reading(session)) if installed.ours else None
    return dataclasses.replace(done, lag_seconds=_lag(session), held_back=held_back)


def _lag(session: sa.Connection) -> float | None:
    """Return by how many seconds the data lags, where this role may measure it."""
    if pipeline.cannot_lend(session):
        return None
    return lag.seconds(session, pipeline.reading(session))


def _run(connection: sa.Connection, installed: Pipeline) -> Tick:
    # The tick tries the same lock, and would answer 0 both for nothing to do and for busy.
    if not connection.scalar(
        sa.text("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))"), {"key": HOURLY_ROLLUP}
    ):
        holders = advisory_lock.describe_holders(connection, HOURLY_ROLLUP)
        raise LockBusy(
            "the hourly rollup is being written by another session"
            f" (advisory lock {HOURLY_ROLLUP}): {holders}",
            hint=f"another tick or a backfill is over by itself; otherwise {holders.hint}",
        )
    connection.execute(sa.text(_HURRY), {"patience": LOCK_PATIENCE})
    before = _watermark(connection)
    # Not every release of the product's tick does it; first, because ours names who holds it back.
    connection.execute(sa.text(_CLEAR_ERROR))
    with nullcontext() if installed.ours else pipeline.in_reach_of_public(connection):
        rows = connection.scalar(sa.text("SELECT public.rollup_task_usage_hourly()"))
    return Tick(rows or 0, before, _watermark(connection), None)


def _watermark(connection: sa.Connection) -> str | None:
    watermark: str | None = connection.scalar(sa.text(_WATERMARK))
    return rfc3339(watermark)


def _record(connection: sa.Connection, started: datetime, error: str) -> None:
    """Write `error` to the state row and commit, or say in the log that it could not be written."""
    try:
        with transaction(connection):
            connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            connection.execute(sa.text(_RECORD), {"started": started, "error": error})
    except DBAPIError as failure:
        log.warning("last_error could not be written: %s", failure.orig)


_HURRY = """
SELECT set_config('lock_timeout', ceil(EXTRACT(EPOCH FROM LEAST(
    NULLIF(current_setting('lock_timeout')::interval, '0'), CAST(:patience AS interval))) * 1000)::text, true)
"""

_WATERMARK = "SELECT watermark_at::text FROM public.task_usage_hourly_rollup_state WHERE id = 1"

_CLEAR_ERROR = """
UPDATE public.task_usage_hourly_rollup_state SET last_error = NULL WHERE id = 1 AND last_error IS NOT NULL
"""

# Unless another session's run has ended since, which knows better; it may have been waited for.
_RECORD = """
INSERT INTO public.task_usage_hourly_rollup_state AS s
    (id, last_run_started_at, last_run_finished_at, last_error)
VALUES (1, :started, clock_timestamp(), :error)
ON CONFLICT (id) DO UPDATE SET
    last_run_started_at = EXCLUDED.last_run_started_at,
    last_run_finished_at = EXCLUDED.last_run_finished_at,
    last_error = EXCLUDED.last_error
WHERE (s.last_run_finished_at BETWEEN EXCLUDED.last_run_started_at AND clock_timestamp()) IS NOT TRUE
"""
