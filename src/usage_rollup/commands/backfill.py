"""`usage-rollup backfill`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import Annotated, Any

import sqlalchemy as sa
import typer

from .. import account
from ..errors import ConfigurationError
from ..hourly import catch_up
from ..hourly.backfill import SKIPPED
from ..hourly.catch_up import Planned
from ..session import suitability
from ..session.options import read as read_options
from ..session.outages import in_session
from . import options
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
        planned = in_session(lambda session: catch_up.preview(session, months_back=months_back), run)
        _show_plan(planned, as_json)
        return

    def work(session: sa.Connection) -> dict[str, Any]:
        suitability.require_suitable(session)
        if repair:
            return {"repaired_hours": catch_up.repair(session, run)}
        done = catch_up.catch_up(session, run, months_back=months_back, force_partial=force_partial)
        return {"from_hour": done.from_, "to_hour": done.to}

    try:
        done = in_session(work, run)
    except SystemExit:
        log.warning("stopped: finished slices stay; run the same command to go on")
        raise
    if as_json:
        write_json({**account.run.fields(), **done})
    elif repair:
        console().print(f"hours repaired: {done['repaired_hours']:,}")
    else:
        _show_done()


def _show_done() -> None:
    """Say what was done, and how long it took."""
    done = account.run
    facts = [Fact("rolled up", done.rolled_up())]
    if done.skipped:
        facts = [Fact("rolled up", f"nothing: {SKIPPED[done.skipped]}")]
    facts += [Fact("recomputed", count(done.repaired_hours, "hour"))] if done.repaired_hours else []
    facts += [Fact("time", done.times())] if done.seconds else []
    show_facts(console(), [*facts, Fact("next", "`usage-rollup status` shows where it stands")])


def _show_plan(slices: list[Planned], as_json: bool) -> None:
    if as_json:
        write_json({"slices": [dataclasses.asdict(one) for one in slices]})
        return
    by_month = table("month (UTC)", numbers=("slices", "usage rows"))
    for month, group in itertools.groupby(slices, lambda one: f"{one.from_hour:%Y-%m}"):
        ones = list(group)
        by_month.add_row(month, f"{len(ones):,}", f"{sum(one.usage_rows for one in ones):,}")
    out = console()
    if slices:
        out.print(by_month)
    out.print(f"to walk: {sum(one.usage_rows for one in slices):,} usage rows, in slices: {len(slices):,}")
