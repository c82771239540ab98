"""Bring the hourly rollup up to date and prove it: the hook before 103.

The SQL functions of 102 do the work and keep the truth (plan, slices walked, watermark) in the database.
Every statement here runs on the migration connection, whose session also holds advisory lock 4246
from the first look at the state until 103 has committed.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from ..errors import BackfillRefused
from ..session import advisory_lock, options
from . import walk
from .progress import Slice

log = logging.getLogger(__name__)

# The guard of 103 refuses a watermark that trails the newest event by more (CONTRACT: one hour).
LAG_THRESHOLD = timedelta(hours=1)

# The watermark that says nothing has been rolled up, and the command that restores it.
RESET_WATERMARK = "UPDATE public.task_usage_hourly_rollup_state SET watermark_at = 'epoch' WHERE id = 1"

# Reasons for not walking.
ROLLUP_STATE_MISSING = "rollup_state_missing"
TASK_USAGE_EMPTY = "task_usage_empty"
WATERMARK_WITHIN_THRESHOLD = "watermark_within_threshold"


@dataclass(frozen=True)
class Backfill:
    """What the hook did: why it did not walk, or what it walked; and what its proof repaired."""

    skipped: str | None = None
    slices: int = 0
    rows: int = 0
    from_: datetime | None = None
    to: datetime | None = None
    repaired_hours: int = 0


def backfill_before_103(connection: sa.Connection) -> Backfill:
    """Make the guard of 103 pass by making it true; return what was done.

    1. No hourly tables: nothing to do here, the guard decides (`rollup_state_missing`).
    2. Take advisory lock 4246, by polling; only then read the state. It stays held for 103.
    3. No usage: move the watermark to the horizon (`task_usage_empty`).
    4. Lag at most an hour and no unfinished walk: write nothing (`watermark_within_threshold`).
    5. Otherwise walk, slice by slice, each one transaction; a killed walk goes on with what is left.
    6. Walk or no walk: drain the queues, compare rollup and raw usage in one snapshot, recompute
       what differs, compare again. Only a clean comparison lets 103 pass without its own.
    7. Compare the legacy rollups with raw usage: 103 keeps what exists only there.

    Entered and left outside a transaction; left holding 4246, which the session's end frees. Raises
    LockBusy and BackfillRefused; whatever was committed until then is kept and true.
    """
    if connection.scalar(
        sa.text(
            "SELECT to_regclass('public.task_usage_hourly_rollup_state') IS NULL"
            " OR to_regclass('public.task_usage_hourly') IS NULL"
        )
    ):
        connection.commit()
        return _skip(ROLLUP_STATE_MISSING)
    advisory_lock.acquire(connection, advisory_lock.HOURLY_ROLLUP)
    state = _read_state(connection)
    if state.empty:
        walk.plan(connection, empty=True)
        result = _skip(TASK_USAGE_EMPTY)
    elif state.lag <= LAG_THRESHOLD and not state.unfinished:
        result = _skip(WATERMARK_WITHIN_THRESHOLD)
    else:
        result = _walk_history(connection, state)
    result = dataclasses.replace(result, repaired_hours=repair(connection))
    _look_for_losses(connection)
    return result


@dataclass(frozen=True)
class _State:
    empty: bool
    lag: timedelta
    unfinished: bool


def _read_state(connection: sa.Connection) -> _State:
    """Read what decides, in one snapshot, after putting back a state row deleted by hand."""
    connection.execute(
        sa.text(
            "INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT (id) DO NOTHING"
        )
    )
    row = (
        connection.execute(
            sa.text(
                "SELECT NOT EXISTS (SELECT FROM public.task_usage) AS empty,"
                " EXISTS (SELECT FROM public.task_usage_hourly_backfill) AS unfinished,"
                " public.task_usage_hourly_rollup_lag_seconds() AS lag_s,"
                " watermark_at > clock_timestamp() AS future, watermark_at::text AS watermark"
                " FROM public.task_usage_hourly_rollup_state WHERE id = 1"
            )
        )
        .mappings()
        .one()
    )
    connection.commit()
    if row["future"]:
        raise BackfillRefused(
            f"the watermark of the hourly rollup lies in the future: {row['watermark']}",
            hint=f"{RESET_WATERMARK}; then run `alembic upgrade head` again: it walks the whole history",
        )
    return _State(row["empty"], timedelta(seconds=row["lag_s"]), row["unfinished"])


def _walk_history(connection: sa.Connection, state: _State) -> Backfill:
    """Walk until the watermark trails by an hour at most; refuse when open transactions prevent it."""
    jobs = int(options.read(connection, "jobs") or 1)
    _analyze(connection, "task_usage", "agent_task_queue", "agent", "issue")
    walked: list[Slice] = []
    if state.unfinished:
        log.info("resuming the backfill where it stopped")
        walked += walk.walk(connection, jobs)
        state = _read_state(connection)
    if state.lag > LAG_THRESHOLD:
        walk.plan(connection)
        walked += walk.walk(connection, jobs)
        state = _read_state(connection)
    if state.lag > LAG_THRESHOLD:
        raise BackfillRefused(
            f"the history is rolled up, but the watermark cannot follow: it trails by {state.lag},"
            f" held back by {walk.oldest_transactions(connection)}",
            hint="end that transaction and run `alembic upgrade head` again; finished slices stay",
        )
    # The proof and the dashboards plan their queries minutes before autovacuum would come by; the
    # columns they filter by are a third of the cost of all.
    connection.execute(
        sa.text(
            "ANALYZE (SKIP_LOCKED) public.task_usage_hourly"
            " (bucket_hour, workspace_id, runtime_id, agent_id, project_id)"
        )
    )
    connection.commit()
    return summary(walked)


def summary(walked: list[Slice]) -> Backfill:
    """Return what a walk of these slices did."""
    return Backfill(
        slices=len(walked),
        rows=sum(done.rows for done in walked),
        from_=min((done.from_ for done in walked), default=None),
        to=max((done.to for done in walked), default=None),
    )


def _analyze(connection: sa.Connection, *tables: str) -> None:
    """Give the planner statistics of those tables that have none, as after a restore."""
    missing = connection.scalars(
        sa.text(
            "SELECT t FROM unnest(CAST(:tables AS text[])) AS t WHERE NOT EXISTS ("
            " SELECT FROM pg_stats s WHERE s.schemaname = 'public' AND s.tablename = t)"
        ),
        {"tables": list(tables)},
    ).all()
    for table in missing:
        # A table that something else is vacuuming or analysing is left to it, not waited for.
        connection.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) public.{table}")
    connection.commit()


def repair(connection: sa.Connection) -> int:
    """Drain, compare, recompute what differs, compare again; return the hours that were recomputed.

    Entered and left outside a transaction, holding 4246. Leaves the proof for 103 in the session's
    settings. Raises BackfillRefused when hours still differ.
    """
    connection.execute(sa.text("SELECT public.rollup_task_usage_hourly_window('-infinity', '-infinity')"))
    connection.commit()
    repaired = 0
    for _ in range(3):
        differing = connection.scalar(
            sa.text("SELECT public.rollup_task_usage_hourly_plan_repair(:rows)"), {"rows": walk.SLICE_ROWS}
        )
        connection.commit()
        if not differing:
            break
        log.warning("%d hours of the rollup differ from raw usage; recomputing them", differing)
        repaired += differing
        walk.walk(connection)
    else:
        raise BackfillRefused(
            f"{differing} hours of the hourly rollup still differ from raw usage after they were recomputed",
            hint="SELECT public.task_usage_hourly_differences() names them",
        )
    connection.execute(
        sa.text(
            "SELECT set_config('usage_rollup.proof', watermark_at::text, false)"
            " FROM public.task_usage_hourly_rollup_state WHERE id = 1"
        )
    )
    # Whatever was left out once is in now.
    connection.execute(sa.text("DELETE FROM public.task_usage_hourly_left_out"))
    connection.commit()
    log.info("the hourly rollup matches raw usage")
    return repaired


def _look_for_losses(connection: sa.Connection) -> None:
    """Report usage the rollup cannot show and totals only the legacy rollups hold; tell 103 of these."""
    set_aside, undated, excess = connection.execute(
        sa.text(
            "SELECT (SELECT COUNT(*) FROM public.task_usage_hourly_set_aside),"
            " (SELECT COUNT(*) FROM public.task_usage_hourly_undated()),"
            " set_config('usage_rollup.legacy_excess',"
            " (SELECT COUNT(*)::text FROM public.task_usage_hourly_legacy_excess()), false)::bigint"
        )
    ).one()
    connection.commit()
    if set_aside:
        log.warning("%d buckets are set aside, see task_usage_hourly_set_aside", set_aside)
    if undated:
        log.warning("%d usage rows are dated outside years 1-9998: task_usage_hourly_undated()", undated)
    if excess:
        log.warning("%d daily totals exist only in the legacy rollups", excess)


def _skip(reason: str) -> Backfill:
    log.info("no backfill: %s", reason)
    return Backfill(skipped=reason)
