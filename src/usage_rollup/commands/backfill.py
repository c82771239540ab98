"""`usage-rollup backfill`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from .. import account
from ..errors import ConfigurationError
from ..hourly import catch_up
from ..hourly.backfill import SKIPPED, left_to_a_tick
from ..hourly.catch_up import Preview
from ..reports import backfilling, without_rollup
from ..reports.backfilling import Backfilling
from ..session import suitability
from ..session.options import read as read_options
from ..session.outages import in_session
from . import health, options
from .output import Fact, JsonOption, console, count, show_facts, table, write_json

log = logging.getLogger(__name__)


def backfill(
    context: typer.Context,
    repair: Annotated[
        bool, typer.Option("--repair", help="Recompute exactly the hours that differ from raw usage.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the slices it would walk; write nothing.")
    ] = False,
    months_back: Annotated[
        int | None,
        typer.Option(help="Only usage created in the last N UTC months, this one included.", min=1),
    ] = None,
    force_partial: Annotated[
        bool, typer.Option("--force-partial", help="Leave what is older without buckets, knowingly.")
    ] = False,
    jobs: options.Jobs = None,
    sleep_between_slices: options.SleepBetweenSlices = None,
    lock_timeout: options.LockTimeout = None,
    as_json: JsonOption = False,
) -> None:
    """Roll up at once what the hourly rollup lacks, and prove it; a tick does a day at most.

    Below a lag of an hour it only compares: `usage-rollup tick` moves the watermark then.
    A server may keep running; nothing else writes the rollup meanwhile (advisory lock 4246). Ctrl-C or
    SIGTERM stops it at any moment: finished slices stay, and the same command goes on from there.
    """
    if repair and (months_back or dry_run):
        raise ConfigurationError(
            "--repair looks at every hour: it goes with neither --months-back nor --dry-run"
        )
    if force_partial and not months_back:
        raise ConfigurationError("--force-partial means nothing without --months-back")
    run = read_options(
        flags={
            "jobs": options.typed(context, "jobs"),
            "sleep-between-slices": options.typed(context, "sleep_between_slices"),
            "lock-timeout": options.typed(context, "lock_timeout"),
        }
    )
    if dry_run:
        _show_plan(*in_session(partial(_preview, months_back, force_partial), run), as_json)
        return
    lag: timedelta | None = None

    def work(session: sa.Connection) -> dict[str, Any]:
        nonlocal lag
        with without_rollup.placed(session):
            suitability.require_suitable(session)
            if repair:
                return {"repaired_hours": catch_up.repair(session, run)}
            done = catch_up.catch_up(session, run, months_back=months_back, force_partial=force_partial)
        lag = done.lag
        return {"from_hour": done.from_, "to_hour": done.to}

    try:
        done = in_session(work, run)
    except SystemExit:
        log.warning("stopped: finished slices stay; run the same command to go on")
        raise
    if as_json:
        write_json({**account.run.fields(), **done})
    elif repair:
        _show_done([Fact("hours repaired", f"{done['repaired_hours']:,}"), *_recomputed()])
    else:
        _show_done(_rolled_up(lag))


def _recomputed() -> Iterator[Fact]:
    """Yield what was read and written to mend hours; the product's window counts neither."""
    if account.run.slices:
        yield Fact("recomputed", account.run.rolled_up().partition(";")[0])


def _rolled_up(lag: timedelta | None) -> Iterator[Fact]:
    done = account.run
    skipped = left_to_a_tick(lag) if lag else SKIPPED[done.skipped] if done.skipped else None
    yield Fact("rolled up", f"nothing: {skipped}" if skipped else done.rolled_up())
    if done.repaired_hours:
        yield Fact("recomputed", count(done.repaired_hours, "hour"))


def _show_done(facts: Iterable[Fact]) -> None:
    """Say what was done, how long it took, and what to look at."""
    time = [Fact("time", account.run.times())] if account.run.seconds else []
    show_facts(console(), [*facts, *time, Fact("next", "`usage-rollup status` shows where it stands")])


def _preview(
    months_back: int | None, force_partial: bool, session: sa.Connection
) -> tuple[Preview, Backfilling | None]:
    with without_rollup.placed(session):
        found = catch_up.preview(session, months_back=months_back, force_partial=force_partial)
    unfinished = found.state is not None and found.state.unfinished
    return found, backfilling.find(session, has_plan=True) if unfinished else None


def _notes(found: Preview, at_work: Backfilling | None) -> Iterator[str]:
    """Yield what there is to say about a plan besides its slices."""
    if found.refused:
        yield f"refused: {found.refused.message}; {found.refused.hint}"
    if at_work:
        yield f"backfill: {health.backfill(at_work)}"
    if found.state and (before := found.state.left_out_before):
        yield f"among it what a partial backfill left out: usage before {before:%Y-%m-%d}"
    if found.state and found.state.lag and not found.state.walks:
        yield f"nothing: {left_to_a_tick(found.state.lag)}"


def _show_plan(found: Preview, at_work: Backfilling | None, as_json: bool) -> None:
    slices, notes = found.slices, list(_notes(found, at_work))
    if as_json:
        write_json({"slices": [dataclasses.asdict(one) for one in slices], "notes": notes})
        return
    by_month = table("month (UTC)", numbers=("slices", "usage rows"))
    for month, group in itertools.groupby(slices, lambda one: f"{one.from_hour:%Y-%m}"):
        ones = list(group)
        by_month.add_row(month, f"{len(ones):,}", f"{sum(one.usage_rows for one in ones):,}")
    out = console()
    if slices:
        out.print(by_month)
    out.print(f"to walk: {sum(one.usage_rows for one in slices):,} usage rows, in slices: {len(slices):,}")
    for note in notes:
        out.print(note)
