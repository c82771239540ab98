"""Bring the hourly rollup up to date and prove it: the hook before 103.

The SQL functions of 102 do the work and keep the truth (plan, slices walked, watermark) in the database.
Every statement here runs on the migrating session, which also holds advisory lock 4246 from the first
look at the state until 103 has committed; backfill.sql does the same in a script.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from .. import account
from ..contract import HOURLY_ROLLUP, LAG_THRESHOLD
from ..errors import BackfillRefused, Refusal
from ..queries import array, literal
from ..session import advisory_lock, blockers
from ..session.options import Options
from ..words import duration
from . import losses, pipeline, slices
from .proof import REPAIRS, repair
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
    "left_out": slices.LEFT_OUT,
    "plan_left_out": slices.PLAN_LEFT_OUT,
    "repairs": str(REPAIRS),
    "name_the_holder": blockers.in_script("c_again"),
}


@dataclass(frozen=True)
class Backfill:
    """What the hook did: why it did not walk, or what it walked; and what its proof repaired.

    `sessions` is how many that was worth; None without a walk. `lag` is by how much the watermark trailed
    usage where that is too little to walk.
    """

    skipped: str | None = None
    slices: int = 0
    rows: int = 0
    from_: datetime | None = None
    to: datetime | None = None
    repaired_hours: int = 0
    sessions: int | None = None
    lag: timedelta | None = field(default=None, compare=False)


def backfill_before_103(session: sa.Connection, options: Options) -> Backfill:
    """Make the guard of 103 pass by making it true; return what was done.

    1. No hourly tables: nothing to do here, the guard decides (`rollup_state_missing`).
    2. Take advisory lock 4246, by polling; only then read the state. It stays held for 103.
    3. No usage: move the watermark to the horizon (`task_usage_empty`).
    4. Lag at most an hour, no unfinished walk and nothing left out: write nothing
       (`watermark_within_threshold`).
    5. Otherwise walk, slice by slice, each one transaction; a killed walk goes on with what is left. What a
       partial backfill has left out is walked, too.
    6. Walk or no walk: drain the queues, compare rollup and raw usage in one snapshot, recompute
       what differs, compare again. Only a clean comparison lets 103 pass without its own.
    7. Compare the legacy rollups with raw usage: 103 keeps what exists only there.

    Entered and left outside a transaction; left holding 4246, which the session's end frees. Raises
    LockBusy and BackfillRefused; whatever was committed until then is kept and true.
    """
    if not pipeline.find(session).tables:
        return _skip(ROLLUP_STATE_MISSING)
    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))
    session.execute(sa.text(_PUT_STATE_BACK))
    state = read_state(session)
    if state.empty:
        slices.plan(session, empty=True)
        result = _skip(TASK_USAGE_EMPTY)
    elif not state.walks:
        result = dataclasses.replace(_skip(WATERMARK_WITHIN_THRESHOLD), lag=state.lag)
    else:
        result = _walk_history(session, options, state)
    repaired = repair(session, options, result.sessions)
    losses.look(session)
    return dataclasses.replace(result, repaired_hours=repaired)


@dataclass(frozen=True)
class State:
    """What decides whether, and what, a backfill walks.

    By how much the watermark trails usage; whether there is an `unfinished` walk; and, where a partial
    backfill left something out that no unfinished walk has come to, before which UTC time that was created.
    """

    empty: bool
    lag: timedelta
    unfinished: bool
    left_out_before: datetime | None

    @property
    def is_behind(self) -> bool:
        """Say whether the watermark trails by more than 103 allows."""
        return self.lag > LAG_THRESHOLD

    @property
    def walks(self) -> bool:
        """Say whether there is anything to walk."""
        return not self.empty and (self.unfinished or self.is_behind or self.left_out_before is not None)


def read_state(session: sa.Connection) -> State:
    """Read what decides, in one snapshot. Raises BackfillRefused for a watermark in the future."""
    row = session.execute(sa.text(_STATE)).mappings().one()
    if row["future"]:
        raise BackfillRefused(future_watermark(row["watermark"]))
    return State(row["empty"], timedelta(seconds=row["lag_s"]), row["unfinished"], row["left_out_before"])


def future_watermark(watermark: str) -> Refusal:
    """Say that a watermark beyond the database's clock is a lie, and how it is mended."""
    return Refusal(
        f"the watermark of the hourly rollup lies in the future: {watermark}",
        hint="UPDATE public.task_usage_hourly_rollup_state SET watermark_at = 'epoch' WHERE id = 1;"
        " the next upgrade or backfill then walks the whole history",
    )


def left_to_a_tick(lag: timedelta) -> str:
    """Say that the watermark trails usage by too little to walk, and what brings it up to date."""
    behind = duration(lag.total_seconds())
    return (
        f"the watermark trails the newest usage by {behind}, which a backfill leaves to `usage-rollup tick`"
    )


def _walk_history(session: sa.Connection, options: Options, state: State) -> Backfill:
    """Walk until the watermark trails by an hour at most; refuse when open transactions prevent it."""
    _analyze(session)
    walked: list[Walked] = []
    # Before the plan is gone that tells whether it reaches there.
    left_out_before = state.left_out_before
    if state.unfinished:
        log.info("resuming the backfill where it stopped")
        walked.append(walk(session, options))
    if left_out_before:
        log.info(
            "rolling up what a partial backfill left out: usage before %s", f"{left_out_before:%Y-%m-%d}"
        )
        slices.plan_left_out(session)
        walked.append(walk(session, options))
    if walked:
        state = read_state(session)
    if state.is_behind:
        slices.plan(session)
        walked.append(walk(session, options))
        state = read_state(session)
    if state.is_behind:
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


def _skip(reason: str) -> Backfill:
    account.run.skipped = reason
    log.info("nothing to roll up: %s", SKIPPED[reason], extra={"fields": {"skipped": reason}})
    return Backfill(skipped=reason)


_PUT_STATE_BACK = "INSERT INTO public.task_usage_hourly_rollup_state (id) VALUES (1) ON CONFLICT DO NOTHING"

_STATE = f"""
SELECT NOT EXISTS (SELECT FROM public.task_usage) AS empty,
    EXISTS (SELECT FROM public.task_usage_hourly_backfill) AS unfinished,
    upper(({slices.LEFT_OUT})) AS left_out_before,
    public.task_usage_hourly_rollup_lag_seconds() AS lag_s,
    COALESCE(s.watermark_at > clock_timestamp(), false) AS future, s.watermark_at::text AS watermark
FROM (SELECT) AS always LEFT JOIN public.task_usage_hourly_rollup_state AS s ON s.id = 1
"""

_WITHOUT_STATISTICS = """
SELECT t FROM unnest(CAST(:tables AS text[])) AS t
WHERE NOT EXISTS (SELECT FROM pg_stats s WHERE s.schemaname = 'public' AND s.tablename = t)
"""
