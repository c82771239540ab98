"""`usage-rollup backfill`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from rich.table import Table

from ..errors import ConfigurationError
from ..hourly import catch_up
from ..hourly.catch_up import Planned
from ..session import suitability
from ..session.options import read as read_options
from ..session.outages import in_session
from .output import JsonOption, console, write_json


def backfill(
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
    jobs: Annotated[
        int | None,
        typer.Option(help="Sessions that walk at once.", min=1, max=99, show_default="as many as help"),
    ] = None,
    sleep_between_slices: Annotated[
        str | None,
        typer.Option(
            help="Rest after each slice, 4246 given up meanwhile: 2s.", metavar="DURATION", show_default="0"
        ),
    ] = None,
    lock_timeout: Annotated[
        str | None,
        typer.Option(help="How long to wait for advisory lock 4246.", metavar="DURATION", show_default="10m"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the hourly rollup up to date under advisory lock 4246, and prove it.

    A server may keep running. Ctrl-C or SIGTERM stops it at any moment; finished slices stay, and the
    same command goes on from there.
    """
    if repair and (months_back or dry_run):
        raise ConfigurationError(
            "--repair looks at every hour: it goes with neither --months-back nor --dry-run"
        )
    if force_partial and not months_back:
        raise ConfigurationError("--force-partial means nothing without --months-back")
    options = read_options(
        flags={"jobs": jobs, "sleep-between-slices": sleep_between_slices, "lock-timeout": lock_timeout}
    )
    if dry_run:
        planned = in_session(lambda session: catch_up.preview(session, months_back=months_back), options)
        _show_plan(planned, as_json)
        return

    def work(session: sa.Connection) -> tuple[dict[str, Any], str]:
        suitability.require_suitable(session)
        if repair:
            hours = catch_up.repair(session, options)
            return {"repaired_hours": hours}, f"hours repaired: {hours}"
        done = catch_up.catch_up(session, options, months_back=months_back, force_partial=force_partial)
        said = f"usage rows rolled up: {done.rows:,}, in slices: {done.slices:,}"
        return dataclasses.asdict(done), said

    try:
        done, said = in_session(work, options)
    except SystemExit:
        sys.stderr.write("stopped: finished slices stay; run the same command to go on\n")
        raise
    if as_json:
        write_json(done)
    else:
        console().print(said)


def _show_plan(slices: list[Planned], as_json: bool) -> None:
    if as_json:
        write_json({"slices": [dataclasses.asdict(one) for one in slices]})
        return
    table = Table("month (UTC)", box=None, padding=(0, 2, 0, 0))
    for name in ("slices", "usage rows"):
        table.add_column(name, justify="right")
    for month, group in itertools.groupby(slices, lambda one: f"{one.from_hour:%Y-%m}"):
        ones = list(group)
        table.add_row(month, f"{len(ones):,}", f"{sum(one.usage_rows for one in ones):,}")
    out = console()
    if slices:
        out.print(table)
    out.print(f"to walk: {sum(one.usage_rows for one in slices):,} usage rows, in slices: {len(slices):,}")
