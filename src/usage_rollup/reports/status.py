"""Report where a database stands and how its hourly rollup does; `verify` is what judges the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..contract import HOURLY_ROLLUP
from ..errors import Refusal
from ..hourly import lag, pipeline, slices, ticker, unseen
from ..hourly.pipeline import Pipeline, Reading
from ..hourly.slices import HeldBack
from ..hourly.ticker import Ticker
from ..hourly.unseen import Unseen
from ..queries import beside, filled
from ..runner import adoption
from ..session import advisory_lock
from ..session.connection import snapshot
from ..times import rfc3339
from . import backfilling, covered_days, trigger_rights
from . import place as places
from .backfilling import Backfilling
from .place import Place
from .trigger_rights import TriggerRights

_SQL = beside(__file__)

OURS = "ours"
PRODUCTS = "the product's"


@dataclass(frozen=True)
class Queue:
    """What waits to be drained from one table: rows, its size on disk, and how long the oldest has waited.

    Nothing drains it but ticks and backfills.
    """

    table: str
    rows: int
    bytes: int
    oldest_at: str | None
    oldest_seconds: float | None


@dataclass(frozen=True)
class Run:
    """What the state row tells of the last run."""

    started_at: str | None
    finished_at: str | None
    rows: int
    error: str | None


@dataclass(frozen=True)
class LeftOut:
    """Hours before `before_hour`, which a partial backfill left out on purpose."""

    before_hour: str
    acknowledged_at: str | None
    acknowledged_by: str | None


@dataclass(frozen=True)
class Status:
    """What one snapshot shows. Times are RFC 3339; None stands for what is not there, or was not asked.

    `lag_seconds` is as hourly/lag.py says: the age of the oldest usage where the watermark has never moved.
    """

    place: Place
    revision: str | None
    ledger_rows: int | None
    newest_in_ledger: str | None
    pipeline: str | None
    ticks: Ticker | None
    watermark: str | None
    watermark_in_future: bool
    lag_seconds: float | None
    held_back: HeldBack | None
    queues: list[Queue]
    last_run: Run | None
    lock_holders: str | None
    backfill: Backfilling | None
    set_aside_buckets: int | None
    undated_rows: int | None
    left_out: LeftOut | None
    trigger_rights: list[TriggerRights]
    unseen: list[Unseen]
    # Why the lag, undated usage and the days that are covered are not known.
    not_asked: Refusal | None
    coverage: list[covered_days.Day] | None


def status(session: sa.Connection, *, coverage: bool = True) -> Status:
    """Read everything in one REPEATABLE READ, READ ONLY snapshot, at any revision and any release.

    `coverage` counts all usage by day, which costs as much as comparing it; the rest reads little but the
    queue. Entered and left outside a transaction. Takes no lock that a server could notice. Where functions
    of 102 are missing they are lent to this session first.
    """
    tables = frozenset(session.scalars(sa.text(_SQL["tables"])))
    has_rollup = "task_usage" in tables and pipeline.find(session).tables
    not_asked = pipeline.cannot_lend(session) if has_rollup else None
    measures = has_rollup and not_asked is None
    reading = pipeline.reading(session) if measures else Reading(lent=False)

    def row(table: str, statement: str) -> dict[str, Any]:
        found = session.execute(sa.text(statement)).mappings().first() if table in tables else None
        return dict(found or {})

    def value(present: bool, statement: str) -> Any:
        return session.scalar(reading.sql(statement)) if present else None

    with snapshot(session):
        installed = pipeline.find(session)
        standing = adoption.look(session)
        stems = standing.stems
        state = row("task_usage_hourly_rollup_state", _SQL["state"])
        left_out = row("task_usage_hourly_left_out", _SQL["left_out"])
        locked = advisory_lock.is_held(session, HOURLY_ROLLUP)
        watermark = state.get("watermark", slices.NO_ROW if has_rollup else None)
        return Status(
            place=places.of(standing),
            revision=standing.version,
            ledger_rows=None if stems is None else len(stems),
            newest_in_ledger=max(stems or (), default=None, key=str.encode),
            pipeline=_owner(installed),
            ticks=ticker.find(session),
            watermark=rfc3339(watermark),
            watermark_in_future=state.get("in_future", False),
            lag_seconds=lag.seconds(session, reading) if measures else None,
            held_back=slices.held_back(session, reading) if installed.ours else None,
            queues=[_queue(session, table) for table in _QUEUES if table in tables],
            last_run=_run(state) if state else None,
            lock_holders=str(advisory_lock.describe_holders(session, HOURLY_ROLLUP)) if locked else None,
            backfill=backfilling.find(session, has_plan="task_usage_hourly_backfill" in tables),
            set_aside_buckets=value(
                "task_usage_hourly_set_aside" in tables,
                "SELECT count(*) FROM public.task_usage_hourly_set_aside",
            ),
            undated_rows=value(measures, "SELECT count(*) FROM public.task_usage_hourly_undated()"),
            left_out=_left_out(left_out) if left_out else None,
            trigger_rights=trigger_rights.find(session),
            unseen=unseen.find(session),
            not_asked=not_asked,
            coverage=covered_days.read(session, reading, left_out.get("before_hour"))
            if measures and coverage
            else None,
        )


_QUEUES = ("task_usage_hourly_invalidation", "task_usage_hourly_dirty")


def _owner(installed: Pipeline) -> str | None:
    if not installed.installed:
        return None
    return OURS if installed.ours else PRODUCTS


def _queue(session: sa.Connection, table: str) -> Queue:
    found = session.execute(sa.text(filled(_SQL["queue"], table=table))).mappings().one()
    return Queue(table, found["rows"], found["bytes"], rfc3339(found["oldest_at"]), found["oldest_seconds"])


def _run(state: dict[str, Any]) -> Run:
    started, finished = rfc3339(state["started_at"]), rfc3339(state["finished_at"])
    return Run(started, finished, state["rows"], state["error"])


def _left_out(row: dict[str, Any]) -> LeftOut:
    before, acknowledged = rfc3339(row["before_hour"]), rfc3339(row["acknowledged_at"])
    return LeftOut(before, acknowledged, row["acknowledged_by"])
