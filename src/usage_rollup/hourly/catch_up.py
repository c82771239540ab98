"""The operator's backfill: on a live system before the upgrade, and for repair after it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ..contract import HOURLY_ROLLUP
from ..errors import BackfillRefused, ConfigurationError, Refusal
from ..session import advisory_lock
from ..session.options import Options
from . import backfill, pipeline, products_pipeline, proof, slices
from .backfill import Backfill, State
from .pipeline import Pipeline
from .walk import walk

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A slice that a backfill would walk: hours [from_hour, to_hour), and usage rows in them."""

    from_hour: datetime
    to_hour: datetime
    usage_rows: int


@dataclass(frozen=True)
class Preview:
    """What a backfill would do: the slices it would walk, or why it would be `refused`.

    `state` is what decides, where our own pipeline is installed and nothing would be left out.
    """

    slices: list[Planned]
    refused: Refusal | None
    state: State | None


def catch_up(
    session: sa.Connection,
    options: Options,
    *,
    months_back: int | None = None,
    force_partial: bool = False,
) -> Backfill:
    """Bring the rollup up to date and prove it, whoever's pipeline is installed; return what was done.

    `months_back` leaves out what was created before the first of that many UTC months, the current one
    included. Where that is anything, it has to be acknowledged by `force_partial`; then the watermark
    moves all the same, the database says from then on what was left out, and the next complete
    backfill, the upgrade's included, fills it.

    Entered and left outside a transaction; left holding 4246, which the session's end frees. Raises
    UnsuitableDatabase before 102, ConfigurationError, LockBusy, and BackfillRefused; finished slices stay.
    """
    installed = pipeline.require(session)
    since = _leaves_out_before(session, months_back)
    if since and (refused := _refused(installed, since, force_partial)):
        raise BackfillRefused(refused)
    if not installed.ours:
        _require_one_job(options)
        result = products_pipeline.catch_up(session, options)
        _give_up(session, installed)
        products_pipeline.require_equal(session)
        return result
    if since is None:
        return backfill.backfill_before_103(session, options)
    return _partial(session, options, since)


def preview(
    session: sa.Connection, *, months_back: int | None = None, force_partial: bool = False
) -> Preview:
    """Return what catch_up() would do now; writes nothing, takes no lock.

    Entered and left outside a transaction. Raises UnsuitableDatabase before 102, and BackfillRefused for a
    watermark in the future.
    """
    installed = pipeline.require(session)
    since = _leaves_out_before(session, months_back)
    refused = _refused(installed, since, force_partial) if since else None
    if since or not installed.ours:
        return Preview(_unwalked(session, since=since), refused, None)
    state = backfill.read_state(session)
    behind = state.is_behind and not state.unfinished
    rows = session.execute(sa.text(_TO_WALK), {"rows": slices.SLICE_ROWS, "behind": behind})
    return Preview([Planned(*row) for row in rows], None, state)


def _leaves_out_before(session: sa.Connection, months_back: int | None) -> datetime | None:
    """Return before when a backfill of so many months would leave usage out, None when it leaves none."""
    since = _month(session, months_back)
    return since if since and _unwalked(session, before=since) else None


def _refused(installed: Pipeline, since: datetime, force_partial: bool) -> Refusal | None:
    """Say why usage created before `since` may not be left out; None where it may."""
    if not force_partial:
        return Refusal(
            f"usage older than {since:%Y-%m-%d} is not rolled up: it would stay without buckets",
            hint="leave --months-back out, or add --force-partial to acknowledge it",
        )
    if not installed.ours:
        return Refusal(
            "the product's own pipeline is installed here: it can only be caught up completely",
            hint="leave --months-back out",
        )
    return None


def _unwalked(
    session: sa.Connection, *, since: datetime | None = None, before: datetime | None = None
) -> list[Planned]:
    rows = session.execute(
        pipeline.reading(session).sql(_UNWALKED),
        {"rows": slices.SLICE_ROWS, "since": since, "before": before},
    )
    return [Planned(*row) for row in rows]


def repair(session: sa.Connection, options: Options) -> int:
    """Recompute exactly the hours that differ from raw usage; return their number.

    Entered and left outside a transaction; left holding 4246. Raises UnsuitableDatabase before 102,
    ConfigurationError, LockBusy, and BackfillRefused when hours differ afterwards.
    """
    installed = pipeline.require(session)
    if not installed.ours:
        _require_one_job(options)
    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))
    if installed.ours:
        return proof.repair(session, options)
    _give_up(session, installed)
    return products_pipeline.repair(session)


def _give_up(session: sa.Connection, installed: Pipeline) -> None:
    """Forget a walk of ours that the product's pipeline has overtaken."""
    if installed.readable and slices.give_up(session):
        log.info("the unfinished backfill of before the product's pipeline is given up")


def _partial(session: sa.Connection, options: Options, since: datetime) -> Backfill:
    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))
    slices.plan(session, since=since)
    walked = walk(session, options)
    proof.require_equal(session, since)
    log.warning("usage created before %s is left out on purpose", f"{since:%Y-%m-%d}")
    return backfill.summary(walked)


def _require_one_job(options: Options) -> None:
    if (options.jobs or 1) > 1:
        raise ConfigurationError(
            "the product's own pipeline is installed here: its window serves one session, not"
            f" {options.jobs} jobs",
            hint="leave --jobs, or JOBS in the environment, out",
        )


def _month(session: sa.Connection, months_back: int | None) -> datetime | None:
    if months_back is None:
        return None
    since: datetime | None = session.scalar(
        sa.text("SELECT date_trunc('month', now(), 'UTC') - make_interval(months => :months)"),
        {"months": months_back - 1},
    )
    return since


_UNWALKED = """
SELECT from_hour, to_hour, usage_rows
FROM public.task_usage_hourly_slices(
    public.task_usage_hourly_unwalked()
        * tstzmultirange(tstzrange(CAST(:since AS timestamptz), CAST(:before AS timestamptz))),
    CAST(:rows AS bigint))
WHERE usage_rows > 0
"""

# What an unfinished walk has left as it is planned, else what the watermark trails; and what was left out.
_TO_WALK = f"""
SELECT p.from_hour, p.to_hour, p.usage_rows FROM (
    SELECT b.from_hour, b.to_hour, b.usage_rows FROM public.task_usage_hourly_backfill AS b
    WHERE b.walked_at IS NULL
    UNION ALL
    SELECT s.from_hour, s.to_hour, s.usage_rows FROM public.task_usage_hourly_slices(
        COALESCE(CASE WHEN CAST(:behind AS boolean) THEN public.task_usage_hourly_unwalked() END, '{{}}')
            + COALESCE(({slices.LEFT_OUT}), '{{}}'),
        CAST(:rows AS bigint)) AS s
) AS p WHERE p.usage_rows > 0 ORDER BY 1
"""
