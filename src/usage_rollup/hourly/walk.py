"""Walk the history: plan, slice by slice, finish. Each is one transaction; the truth is in the database.

The caller's session holds advisory lock 4246 and is outside a transaction, before and after.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import closing
from datetime import datetime

import sqlalchemy as sa

from ..errors import BackfillRefused, ConfigurationError
from ..session import advisory_lock, blockers, options
from . import workers
from .progress import Slice, slice_progress

log = logging.getLogger(__name__)

# Bounds what a kill can undo and how long a slice holds its snapshot: a second or two of work.
SLICE_ROWS = 200_000


def plan(connection: sa.Connection, *, empty: bool = False, since: datetime | None = None) -> None:
    """Fix the horizon, in a statement of its own before any snapshot that relies on it, and plan.

    Without a horizon a walk would end where it began, so it is not begun; an empty table can wait for
    its first tick. What was created before `since` is left out of the plan, and the database says so
    from then on.
    """
    horizon = connection.scalar(sa.text("SELECT public.task_usage_hourly_horizon('10 seconds')::text"))
    connection.commit()
    if horizon == "-infinity" and not empty:
        raise BackfillRefused(
            "no safe horizon: transactions are open whose start this role cannot see, or that were"
            f" prepared and left: {oldest_transactions(connection)}",
            hint="end them (COMMIT PREPARED, ROLLBACK PREPARED), or GRANT pg_read_all_stats to the"
            " migrating role, and run `alembic upgrade head` again",
        )
    connection.execute(
        sa.text(
            "SELECT public.rollup_task_usage_hourly_plan("
            "CAST(:horizon AS timestamptz), :rows, COALESCE(CAST(:since AS timestamptz), '-infinity'))"
        ),
        {"horizon": horizon, "rows": SLICE_ROWS, "since": since},
    )
    connection.commit()


def walk(connection: sa.Connection, jobs: int = 1) -> list[Slice]:
    """Walk what is planned to its end, with `jobs` sessions at once; each slice commits.

    Between slices, 4246 is given up for the run's option sleep-between-slices, and for a moment when a
    session is blocked on it (workspace deletion waits 10 s). Raises ConfigurationError for both a rest
    and several jobs.
    """
    rest_s = options.read_seconds(connection, "sleep-between-slices", 0.0)
    if rest_s and jobs > 1:
        raise ConfigurationError(
            "several jobs hurry and sleep-between-slices spares the server: only one of them can be had"
        )
    total_rows = connection.scalar(
        sa.text(
            "SELECT COALESCE(SUM(usage_rows), 0)::bigint FROM public.task_usage_hourly_backfill"
            " WHERE walked_at IS NULL"
        )
    )
    connection.commit()
    log.info("backfill: %d usage rows to walk", total_rows)
    walked = []
    # Closed however it is left: that is what cancels the workers' statements.
    with slice_progress(total_rows or 0) as progress, closing(_slices(connection, jobs, rest_s)) as slices:
        for done in slices:
            walked.append(done)
            progress.advance(done)
    connection.execute(sa.text("SELECT public.rollup_task_usage_hourly_finish()"))
    connection.commit()
    return walked


def _slices(connection: sa.Connection, jobs: int, rest_s: float) -> Generator[Slice, None, None]:
    if jobs > 1:
        yield from workers.slices(connection, jobs, _next_slice)
    # Whatever the workers have left, this session walks.
    while (done := _next_slice(connection)) is not None:
        yield done
        waiting = advisory_lock.is_waited_for(connection, advisory_lock.HOURLY_ROLLUP)
        connection.commit()
        if waiting or rest_s:
            advisory_lock.release(connection, advisory_lock.HOURLY_ROLLUP)
            time.sleep(rest_s)
            advisory_lock.acquire(connection, advisory_lock.HOURLY_ROLLUP)


def _next_slice(connection: sa.Connection) -> Slice | None:
    """Walk the first slice that nobody else is walking and commit; None when there is none."""
    started = time.monotonic()
    row = connection.execute(sa.text("SELECT * FROM public.rollup_task_usage_hourly_slice()")).one_or_none()
    connection.commit()
    if row is None:
        return None
    return Slice(row[0], row[1], row[2], row[3], seconds=time.monotonic() - started)


def oldest_transactions(connection: sa.Connection) -> str:
    """Name what holds the horizon back: the oldest open transactions, and prepared ones."""
    holders = connection.execute(
        sa.text(
            "(SELECT s.pid, l.virtualtransaction FROM pg_stat_activity s JOIN pg_locks l ON l.pid = s.pid"
            " AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock'"
            " WHERE s.datname = current_database() AND s.pid <> pg_backend_pid()"
            " AND s.usesysid IS NOT NULL ORDER BY s.xact_start NULLS FIRST LIMIT 3)"
            " UNION ALL"
            " SELECT NULL, l.virtualtransaction FROM pg_prepared_xacts p JOIN pg_locks l"
            " ON l.locktype = 'transactionid' AND l.pid IS NULL AND l.transactionid = p.transaction"
            " WHERE p.database = current_database()"
        )
    ).all()
    described = blockers.describe(connection, holders)
    connection.commit()
    return described
