"""The operator's backfill: on a live system before the upgrade, and for repair after it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ..errors import BackfillRefused, UnsuitableDatabase
from ..session import advisory_lock
from . import backfill, lent, products_pipeline, walk
from .backfill import Backfill

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A slice that a backfill would walk: hours [from_hour, to_hour), and usage rows in them."""

    from_hour: datetime
    to_hour: datetime
    usage_rows: int


def catch_up(
    connection: sa.Connection, *, months_back: int | None = None, force_partial: bool = False
) -> Backfill:
    """Bring the rollup up to date and prove it, whoever's pipeline is installed; return what was done.

    `months_back` leaves out what was created before the first of that many UTC months, the current one
    included. Where that is anything, it has to be acknowledged by `force_partial`; then the watermark
    moves all the same, the database says from then on what was left out, and the next complete
    backfill, the upgrade's included, fills it.

    Entered and left outside a transaction; left holding 4246, which the session's end frees. Raises
    UnsuitableDatabase before 101, LockBusy, and BackfillRefused; finished slices stay.
    """
    _require_hourly(connection)
    ours = products_pipeline.is_ours(connection)
    since = _month(connection, months_back)
    left_out = since is not None and any(planned.from_hour < since for planned in preview(connection))
    if left_out and not force_partial:
        raise BackfillRefused(
            f"usage older than {since:%Y-%m-%d} is not rolled up: it would stay without buckets",
            hint="leave --months-back out, or add --force-partial to acknowledge it",
        )
    if not ours:
        if left_out:
            raise BackfillRefused(
                "the product's own pipeline is installed here: it can only be caught up completely",
                hint="leave --months-back out",
            )
        return products_pipeline.catch_up(connection)
    if not left_out:
        return backfill.backfill_before_103(connection)
    return _partial(connection, since)


def preview(connection: sa.Connection) -> list[Planned]:
    """Return the slices that a backfill would walk now; writes nothing, takes no lock.

    Entered and left outside a transaction. Raises UnsuitableDatabase before 101.
    """
    _require_hourly(connection)
    schema = lent.schema(connection)
    rows = connection.execute(
        sa.text(
            f"SELECT from_hour, to_hour, usage_rows FROM {schema}.task_usage_hourly_slices("
            f"{schema}.task_usage_hourly_unwalked(), :rows) WHERE usage_rows > 0"
        ),
        {"rows": walk.SLICE_ROWS},
    ).all()
    connection.rollback()
    return [Planned(row[0], row[1], row[2]) for row in rows]


def repair(connection: sa.Connection) -> int:
    """Recompute exactly the hours that differ from raw usage; return their number.

    Entered and left outside a transaction; left holding 4246. Raises UnsuitableDatabase before 101,
    LockBusy, and BackfillRefused when hours differ afterwards.
    """
    _require_hourly(connection)
    advisory_lock.acquire(connection, advisory_lock.HOURLY_ROLLUP)
    if products_pipeline.is_ours(connection):
        return backfill.repair(connection)
    return products_pipeline.repair(connection)


def _partial(connection: sa.Connection, since: datetime | None) -> Backfill:
    advisory_lock.acquire(connection, advisory_lock.HOURLY_ROLLUP)
    walk.plan(connection, since=since)
    walked = walk.walk(connection)
    differing = connection.scalar(
        sa.text("SELECT COUNT(*) FROM public.task_usage_hourly_differences(:since)"), {"since": since}
    )
    connection.commit()
    if differing:
        raise BackfillRefused(
            f"{differing} hours of the part that was rolled up differ from raw usage",
            hint="usage-rollup backfill --repair mends everything, what was left out included",
        )
    log.warning("usage created before %s is left out on purpose", f"{since:%Y-%m-%d}")
    return backfill.summary(walked)


def _require_hourly(connection: sa.Connection) -> None:
    missing = connection.scalar(
        sa.text(
            "SELECT to_regclass('public.task_usage_hourly') IS NULL"
            " OR to_regclass('public.task_usage_hourly_rollup_state') IS NULL"
            " OR to_regprocedure('public.rollup_task_usage_hourly_window(timestamptz,timestamptz)') IS NULL"
        )
    )
    connection.commit()
    if missing:
        raise UnsuitableDatabase(
            "there is no hourly rollup in this database yet",
            hint="run `alembic upgrade 102` first; a v0.3.4 server may keep running",
        )


def _month(connection: sa.Connection, months_back: int | None) -> datetime | None:
    if months_back is None:
        return None
    since: datetime | None = connection.scalar(
        sa.text("SELECT date_trunc('month', now(), 'UTC') - make_interval(months => :months)"),
        {"months": months_back - 1},
    )
    connection.commit()
    return since
