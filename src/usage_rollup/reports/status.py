"""Report where a database stands and how its hourly rollup does; `verify` is what judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..contract import HOURLY_ROLLUP
from ..errors import Refusal
from ..hourly import pipeline, schedule, slices, unseen
from ..hourly.pipeline import Pipeline, Reading
from ..hourly.slices import HeldBack
from ..hourly.unseen import Unseen
from ..queries import beside, filled
from ..runner import adoption
from ..session import advisory_lock
from ..session.connection import snapshot
from . import covered_days, trigger_rights
from .trigger_rights import TriggerRights

_SQL = beside(__file__)

OURS = "ours"
PRODUCTS = "the product's"

_RUN = ("started_at", "finished_at", "rows", "error")


@dataclass(frozen=True)
class Queue:
    """Invalidations that wait to be drained from one table, and when the oldest was queued."""

    table: str
    rows: int
    oldest: str | None


@dataclass(frozen=True)
class Run:
    """What the state row tells of the last run."""

    started_at: str | None
    finished_at: str | None
    rows: int
    error: str | None


@dataclass(frozen=True)
class Unfinished:
    """A backfill that is under way, or was interrupted."""

    slices: int
    walked: int
    rows_left: int


@dataclass(frozen=True)
class LeftOut:
    """Hours before `before_hour`, which a partial backfill left out on purpose."""

    before_hour: str
    acknowledged_at: str | None
    acknowledged_by: str | None


@dataclass(frozen=True)
class Status:
    """What one snapshot shows: times are UTC, as text; None stands for what this database has not got."""

    revision: str | None
    ledger_rows: int | None
    newest_stem: str | None
    pipeline: str | None
    ticked_by: str | None
    watermark: str | None
    watermark_in_future: bool
    lag_seconds: float | None
    held_back: HeldBack | None
    queues: list[Queue]
    last_run: Run | None
    lock_holders: str | None
    backfill: Unfinished | None
    set_aside: int | None
    undated: int | None
    left_out: LeftOut | None
    trigger_rights: list[TriggerRights]
    unseen: list[Unseen]
    # Why the lag, undated usage and the days that are covered are not known.
    not_asked: Refusal | None
    coverage: list[covered_days.Day] | None


def status(session: sa.Connection) -> Status:
    """Read everything in one REPEATABLE READ, READ ONLY snapshot, at any revision and any release.

    Entered and left outside a transaction. Takes no lock that a server could notice. Where functions
    of 102 are missing they are lent to this session first. Raises AdoptionRefused when
    schema_migrations is not the product's ledger.
    """
    tables = frozenset(session.scalars(sa.text(_SQL["tables"])))
    has_usage = "task_usage" in tables
    not_asked = pipeline.cannot_lend(session) if has_usage else None
    measures = has_usage and not_asked is None
    reading = pipeline.reading(session) if measures else Reading(lent=False)

    def row(table: str, statement: str) -> dict[str, Any]:
        found = session.execute(sa.text(statement)).mappings().first() if table in tables else None
        return dict(found or {})

    def value(present: bool, statement: str) -> Any:
        return session.scalar(reading.sql(statement)) if present else None

    with snapshot(session):
        installed = pipeline.find(session)
        standing = adoption.look(session)
        stems = standing.ledger()
        state = row("task_usage_hourly_rollup_state", _SQL["state"])
        backfill = row("task_usage_hourly_backfill", _SQL["backfill"])
        left_out = row("task_usage_hourly_left_out", _SQL["left_out"])
        has_rollup = has_usage and installed.tables
        locked = advisory_lock.is_held(session, HOURLY_ROLLUP)
        return Status(
            revision=standing.version,
            ledger_rows=None if stems is None else len(stems),
            newest_stem=max(stems or (), default=None),
            pipeline=_owner(installed),
            ticked_by=schedule.who_ticks(session),
            watermark=state.get("watermark", slices.NO_ROW if has_rollup else None),
            watermark_in_future=state.get("in_future", False),
            lag_seconds=value(
                has_rollup and measures, "SELECT public.task_usage_hourly_rollup_lag_seconds()"
            ),
            held_back=slices.held_back(session, reading) if installed.ours else None,
            queues=[
                Queue(table=table, **row(table, filled(_SQL["queue"], table=table)))
                for table in ("task_usage_hourly_invalidation", "task_usage_hourly_dirty")
                if table in tables
            ],
            last_run=Run(**{name: state[name] for name in _RUN}) if state else None,
            lock_holders=str(advisory_lock.describe_holders(session, HOURLY_ROLLUP)) if locked else None,
            backfill=Unfinished(**backfill) if backfill.get("slices") else None,
            set_aside=value(
                "task_usage_hourly_set_aside" in tables,
                "SELECT count(*) FROM public.task_usage_hourly_set_aside",
            ),
            undated=value(measures, "SELECT count(*) FROM public.task_usage_hourly_undated()"),
            left_out=LeftOut(**left_out) if left_out else None,
            trigger_rights=trigger_rights.find(session),
            unseen=unseen.find(session),
            not_asked=not_asked,
            coverage=covered_days.read(session, reading, left_out.get("before_hour"))
            if has_rollup and measures
            else None,
        )


def _owner(installed: Pipeline) -> str | None:
    if not installed.installed:
        return None
    return OURS if installed.ours else PRODUCTS
