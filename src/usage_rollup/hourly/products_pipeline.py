"""Catch up where a product release has installed its own pipeline: through its window, by its name.

Past 104 the product's runner replaces the functions of 102, and later releases add columns that only
their own window fills. So nothing here writes a bucket.
"""

from __future__ import annotations

import logging
import time

import sqlalchemy as sa

from ..errors import BackfillRefused
from ..session import advisory_lock, options
from . import lent
from .backfill import Backfill, summary
from .progress import Slice, slice_progress
from .walk import oldest_transactions

log = logging.getLogger(__name__)

# The first releases' window joins every touched bucket to all tasks of its agent: 15,000 rows took it
# 5 s, 60,000 took 158 s (issue 4). Small steps keep it and its locks short.
STEP_ROWS = 5_000


def is_ours(connection: sa.Connection) -> bool:
    """Say whether the installed window is that of our 102, which the walk needs; commits."""
    ours = connection.scalar(
        sa.text(
            "SELECT prosrc LIKE '%rollup_task_usage_hourly_drain%' FROM pg_proc"
            " WHERE oid = to_regprocedure('public.rollup_task_usage_hourly_window(timestamptz,timestamptz)')"
        )
    )
    connection.commit()
    return bool(ours) and lent.installed(connection)


def catch_up(connection: sa.Connection) -> Backfill:
    """Move the watermark to the horizon, step by step, each with the window that justifies it.

    Every step is one transaction, so a killed run goes on where it stopped. Entered and left outside
    a transaction; left holding 4246. Raises LockBusy, and BackfillRefused without a safe horizon.
    """
    schema = lent.schema(connection)
    advisory_lock.acquire(connection, advisory_lock.HOURLY_ROLLUP)
    rest_s = options.read_seconds(connection, "sleep-between-slices", 0.0)
    horizon = connection.scalar(sa.text(f"SELECT {schema}.task_usage_hourly_horizon('10 seconds')::text"))
    connection.commit()
    if horizon == "-infinity":
        raise BackfillRefused(
            f"no safe horizon: transactions are open: {oldest_transactions(connection)}",
            hint="end them, or GRANT pg_read_all_stats to this role, and run it again",
        )
    walked: list[Slice] = []
    with slice_progress(_rows_left(connection, horizon)) as progress:
        while (done := _step(connection, horizon)) is not None:
            walked.append(done)
            progress.advance(done)
            advisory_lock.release(connection, advisory_lock.HOURLY_ROLLUP)
            time.sleep(rest_s)
            advisory_lock.acquire(connection, advisory_lock.HOURLY_ROLLUP)
    return summary(walked)


def repair(connection: sa.Connection) -> int:
    """Queue every bucket of the hours that differ and let the window recompute them.

    Entered and left outside a transaction, holding 4246. Returns the number of hours. Raises
    BackfillRefused when hours differ afterwards.
    """
    schema = lent.schema(connection)
    hours = list(connection.scalars(sa.text(f"SELECT {schema}.task_usage_hourly_differences()")))
    for hour in hours:
        connection.execute(sa.text(_QUEUE.format(schema=schema)), {"hour": hour})
    connection.commit()
    if not hours:
        return 0
    # Queued before now, so a window that ends now sees it; it has no time of its own to look at.
    connection.execute(
        sa.text(
            "SELECT public.rollup_task_usage_hourly_window(now, now) FROM (SELECT clock_timestamp() AS now) t"
        )
    )
    connection.commit()
    left = connection.scalar(sa.text(f"SELECT COUNT(*) FROM {schema}.task_usage_hourly_differences()"))
    connection.commit()
    if left:
        raise BackfillRefused(
            f"{left} hours still differ from raw usage after the product's window recomputed them",
            hint="usage-rollup verify names them",
        )
    return len(hours)


def _rows_left(connection: sa.Connection, horizon: str) -> int:
    rows = connection.scalar(sa.text(f"SELECT COUNT(*) FROM ({_EVENTS}) AS events"), {"horizon": horizon})
    connection.commit()
    return int(rows or 0)


def _step(connection: sa.Connection, horizon: str) -> Slice | None:
    """Roll up the next step and move the watermark with it; None when it stands at the horizon."""
    started = time.monotonic()
    step = connection.execute(sa.text(_NEXT), {"horizon": horizon, "rows": STEP_ROWS}).one_or_none()
    if step is None:
        connection.commit()
        return None
    buckets = connection.scalar(
        sa.text("SELECT public.rollup_task_usage_hourly_window(:from_at, :to_at)"), dict(step._mapping)
    )
    # Not last_run_*: a backfill is no tick, and whoever asks what ticks looks there.
    connection.execute(
        sa.text("UPDATE public.task_usage_hourly_rollup_state SET watermark_at = :to_at WHERE id = 1"),
        {"to_at": step.to_at},
    )
    connection.commit()
    return Slice(step.from_at, step.to_at, step.events, buckets or 0, seconds=time.monotonic() - started)


_EVENTS = """
SELECT tu.updated_at AS at FROM public.task_usage tu, public.task_usage_hourly_rollup_state s
WHERE s.id = 1 AND tu.updated_at >= s.watermark_at AND tu.updated_at < CAST(:horizon AS timestamptz)
UNION ALL
SELECT tu.created_at FROM public.task_usage tu, public.task_usage_hourly_rollup_state s
WHERE s.id = 1 AND tu.updated_at IS NULL
    AND tu.created_at >= s.watermark_at AND tu.created_at < CAST(:horizon AS timestamptz)
"""

# Events of one instant are never split, so a step ends just after its last one.
_NEXT = f"""
WITH step AS (SELECT at FROM ({_EVENTS}) AS events ORDER BY at LIMIT :rows)
SELECT s.watermark_at AS from_at, (SELECT COUNT(*) FROM step) AS events,
    CASE WHEN (SELECT COUNT(*) FROM step) < :rows THEN CAST(:horizon AS timestamptz)
         ELSE (SELECT MAX(at) + interval '1 microsecond' FROM step) END AS to_at
FROM public.task_usage_hourly_rollup_state s
WHERE s.id = 1 AND s.watermark_at < CAST(:horizon AS timestamptz)
"""

# Keys that are there and keys that should be: the window works key by key.
_QUEUE = """
INSERT INTO public.task_usage_hourly_dirty AS d
    (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
FROM public.task_usage_hourly WHERE bucket_hour = :hour
UNION
SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model
FROM {schema}.task_usage_hourly_expected(:hour, :hour + interval '1 hour')
ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key
DO UPDATE SET enqueued_at = GREATEST(d.enqueued_at, EXCLUDED.enqueued_at)
"""
