"""Bring the hourly rollup up to date and prove it: the hook before 103.

The SQL functions of 102 do the work and keep the truth (plan, slices walked, watermark) in the database.
Every statement here runs on the migrating session, which also holds advisory lock 4246 from the first
look at the state until 103 has committed; backfill.sql does the same in a script.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from .. import account
from ..contract import HOURLY_ROLLUP, LAG_THRESHOLD
from ..errors import BackfillRefused, Refusal
from ..queries import array, literal
from ..session import advisory_lock, blockers
from ..session.connection import transaction
from ..session.options import Options
from ..words import duration
from . import losses, pipeline, slices
from .proof import differing_hours
from .walk import Walked, walk

log = logging.getLogger(__name__)

# Reasons for not walking.
ROLLUP_STATE_MISSING = "rollup_state_missing"
TASK_USAGE_EMPTY = "task_usage_empty"
WATERMARK_WITHIN_THRESHOLD = "watermark_within_threshold"

SKIPPED = {
    ROLLUP_STATE_MISSING: "there is no hourly rollup yet, and the guard of 103 decides",
    TASK_USAGE_EMPTY: "there is no usage yet",
    WATERMARK_WITHIN_THRESHOLD: "the hourly rollup is up to date",
}

# How often hours that differ are recomputed before somebody has to look.
_REPAIRS = 2

_ANALYZED = ("task_usage", "agent_task_queue", "agent", "issue")  # what the walk reads

# What backfill.sql, which does the same in a script, takes from here.
IN_SCRIPT = {
    "hourly_rollup": str(HOURLY_ROLLUP),
    "take_lock": advisory_lock.in_script(HOURLY_ROLLUP),
    "lag_threshold": f"interval '{LAG_THRESHOLD}'",
    "analyzed": array(_ANALYZED),
    "horizon_wait": literal(slices.HORIZON_WAIT),
    "held_back_by": slices.HELD_BACK_BY,
    "slice_rows": str(slices.SLICE_ROWS),
    "repairs": str(_REPAIRS),
    "name_the_holder": blockers.in_script("c_again"),
}


@dataclass(frozen=True)
class Backfill:
    """What the hook did: why it did not walk, or what it walked; and what its proof repaired.

    `sessions` is how many that was worth; None without a walk.
    """

    skipped: str | None = None
    slices: int = 0
    rows: int = 0
    from_: datetime | None = None
    to: datetime | None = None
    repaired_hours: int = 0
    sessions: int | None = None


def backfill_before_103(session: sa.Connection, options: Options) -> Backfill:
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
    if not pipeline.find(session).tables:
        return _skip(ROLLUP_STATE_MISSING)
    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))
    state = _read_state(session)
    if state.empty:
        slices.plan(session, empty=True)
        result = _skip(TASK_USAGE_EMPTY)
    elif state.lag <= LAG_THRESHOLD and not state.unfinished:
        result = _skip(WATERMARK_WITHIN_THRESHOLD)
    else:
        result = _walk_history(session, options, state)
    repaired = repair(session, options, result.sessions)
    losses.look(session)
    return dataclasses.replace(result, repaired_hours=repaired)


@dataclass(frozen=True)
class _State:
    empty: bool
    lag: timedelta
    unfinished: bool


def _read_state(session: sa.Connection) -> _State:
    """Read what decides, in one snapshot, after putting back a state row deleted by hand."""
    session.execute(sa.text(_PUT_STATE_BACK))
    row = session.execute(sa.text(_STATE)).mappings().one()
    if row["future"]:
        raise BackfillRefused(future_watermark(row["watermark"]))
    return _State(row["empty"], timedelta(seconds=row["lag_s"]), row["unfinished"])


def future_watermark(watermark: str) -> Refusal:
    """Say that a watermark beyond the database's clock is a lie, and how it is mended."""
    return Refusal(
        f"the watermark of the hourly rollup lies in the future: {watermark}",
        hint="UPDATE public.task_usage_hourly_rollup_state SET watermark_at = 'epoch' WHERE id = 1;"
        " the next upgrade or backfill then walks the whole history",
    )


def _walk_history(session: sa.Connection, options: Options, state: _State) -> Backfill:
    """Walk until the watermark trails by an hour at most; refuse when open transactions prevent it."""
    _analyze(session)
    walked: list[Walked] = []
    if state.unfinished:
        log.info("resuming the backfill where it stopped")
        walked.append(walk(session, options))
        state = _read_state(session)
    if state.lag > LAG_THRESHOLD:
        slices.plan(session)
        walked.append(walk(session, options))
        state = _read_state(session)
    if state.lag > LAG_THRESHOLD:
        who, hint = session.execute(sa.text(slices.HELD_BACK_BY)).one()
        raise BackfillRefused(
            "the history is rolled up, but the watermark cannot follow: it trails by"
            f" {duration(state.lag.total_seconds())},"
            f" held back by {who}",
            hint=f"{hint}; then run the same command again; finished slices stay",
        )
    # The proof and the dashboards plan their queries minutes before autovacuum would come by; the
    # columns they filter by are a third of the cost of all.
    session.exec_driver_sql(
        "ANALYZE (SKIP_LOCKED) public.task_usage_hourly"
        " (bucket_hour, workspace_id, runtime_id, agent_id, project_id)"
    )
    return summary(*walked)


def summary(*walks: Walked) -> Backfill:
    """Return what these walks did."""
    slices = [done for walked in walks for done in walked.slices]
    return Backfill(
        slices=len(slices),
        rows=sum(done.rows for done in slices),
        from_=min((done.from_ for done in slices), default=None),
        to=max((done.to for done in slices), default=None),
        sessions=walks[-1].sessions,
    )


def _analyze(session: sa.Connection) -> None:
    """Give the planner statistics of those tables that have none, as after a restore."""
    for table in session.scalars(sa.text(_WITHOUT_STATISTICS), {"tables": list(_ANALYZED)}).all():
        # A table that something else is vacuuming or analysing is left to it, not waited for.
        session.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) public.{table}")


def repair(session: sa.Connection, options: Options, sessions: int | None = None) -> int:
    """Drain, compare, recompute what differs, compare again; return the hours that were recomputed.

    As many `sessions` compare as have walked, else as many as `options` ask for. Entered and left outside a
    transaction, holding 4246. Leaves the proof for 103 in the session's settings. Raises BackfillRefused when
    hours still differ.
    """
    session.execute(sa.text(_DRAIN))
    repaired = 0
    for _ in range(_REPAIRS):
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


def _skip(reason: str) -> Backfill:
    account.run.skipped = reason
    log.info("nothing to roll up: %s", SKIPPED[reason], extra={"fields": {"skipped": reason}})
    return Backfill(skipped=reason)


_DRAIN = "SELECT public.rollup_task_usage_hourly_window(timestamptz '-infinity', timestamptz '-infinity')"

_PUT_STATE_BACK = "INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT DO NOTHING"

_STATE = """
SELECT NOT EXISTS (SELECT FROM public.task_usage) AS empty,
    EXISTS (SELECT FROM public.task_usage_hourly_backfill) AS unfinished,
    public.task_usage_hourly_rollup_lag_seconds() AS lag_s,
    watermark_at > clock_timestamp() AS future, watermark_at::text AS watermark
FROM public.task_usage_hourly_rollup_state WHERE id = 1
"""

_DIFFERING = """
SELECT COUNT(*) FROM public.task_usage_hourly_differences(
    COALESCE(CAST(:since AS timestamptz), '-infinity'), timestamptz 'infinity', false)
"""

_WITHOUT_STATISTICS = """
SELECT t FROM unnest(CAST(:tables AS text[])) AS t
WHERE NOT EXISTS (SELECT FROM pg_stats s WHERE s.schemaname = 'public' AND s.tablename = t)
"""

_LEAVE_PROOF = """
SELECT set_config('usage_rollup.proof', watermark_at::text, false)
FROM public.task_usage_hourly_rollup_state WHERE id = 1
"""
