"""`usage-rollup verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from typing import Annotated

import sqlalchemy as sa
import typer
from rich.console import Console

from ..hourly import slices
from ..hourly import verify as verification
from ..reports import place as places
from ..reports import without_rollup
from ..session.options import read as read_options
from ..session.outages import in_session
from ..times import for_people
from .output import DIFFERENCES, JsonOption, console, count, table, write_json

_HOUR = "%Y-%m-%d %H:%M"

# Where the ids of usage rows fit beside the counts.
_WIDE = 130

# More hours than that are told by day: nobody reads them one by one.
_MOST_HOURS = 100

_SUMS = ("events expected", "found", "tokens expected", "found")

_CATCH_UP = "usage-rollup backfill"
_MEND = f"{_CATCH_UP} --repair"


def verify(
    since: Annotated[
        datetime | None,
        typer.Option(help="Compare from this UTC time on.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help=f"Show every hour; more than {_MOST_HOURS} are summed by day."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the hourly rollup with raw usage in one snapshot; exit 3 when it differs or none is judged."""
    verdict, upgrade = in_session(lambda session: _look(session, since), read_options())
    if as_json:
        write_json({"equal": verdict.equal, **dataclasses.asdict(verdict)})
    else:
        _show(verdict, since, everything, upgrade)
    raise typer.Exit(0 if verdict.equal else DIFFERENCES)


def _look(session: sa.Connection, since: datetime | None) -> tuple[verification.Verdict, str | None]:
    """Return the verdict, and what the next step is where an upgrade replaces the functions before a walk."""
    with without_rollup.placed(session):
        verdict = verification.verify(session, since)
    place = places.look(session)
    return verdict, place.next_step if place.pending and place.revision != "102" else None


def _show(
    verdict: verification.Verdict, since: datetime | None, everything: bool, upgrade: str | None
) -> None:
    out = console()
    mend = upgrade or _MEND
    if verdict.left_out_before and not upgrade:
        mend = (
            f"{_CATCH_UP}, which rolls up what a partial backfill left out before {verdict.left_out_before}"
        )
    by_day = len(verdict.differences) > _MOST_HOURS and not everything
    if by_day:
        out.print(f"hours that differ: {len(verdict.differences):,}; mend them: {mend}")
        _show_days(out, verdict.differences)
        out.print("every hour: usage-rollup verify --all, or --json")
    elif verdict.differences:
        _show_differences(out, verdict.differences)
        out.print(f"hours that differ: {len(verdict.differences):,}; mend them: {mend}")
    elif verdict.judged_hours:
        out.print(f"the hourly rollup equals raw usage: {count(verdict.judged_hours, 'hour')} compared")
    else:
        out.print(_nothing_judged(verdict, since, upgrade))
    out.print(
        f"watermark: {for_people(verdict.watermark)}; hours pending, not judged: {verdict.pending_hours:,}"
    )
    if verdict.not_compared:
        out.print(f"not compared, later releases added them: {', '.join(verdict.not_compared)}")
    if verdict.set_aside:
        out.print("set aside is what PostgreSQL refuses to store; reports do without it:")
    for bucket in verdict.set_aside:
        out.print(f"set aside: {bucket.hour:{_HOUR}} agent {bucket.agent_id}: {bucket.error}")
    if verdict.legacy_excess:
        found = table("only in", "day", "workspace", "model", numbers=("tokens there", "in raw usage"))
        for x in verdict.legacy_excess:
            found.add_row(
                x.rollup,
                str(x.day),
                str(x.workspace_id),
                x.model,
                f"{x.legacy_tokens:,}",
                f"{x.raw_tokens:,}",
            )
        out.print(found)


def _nothing_judged(verdict: verification.Verdict, since: datetime | None, upgrade: str | None) -> str:
    """Say why no hour was judged, and what to do."""
    if verdict.empty:
        return "there is no usage, and nothing is rolled up"
    if not verdict.pending_hours:
        if since is None:
            return "nothing was judged: what usage there is has no runtime, or is set aside"
        return (
            f"nothing was judged: there is no usage from {since:{_HOUR}} UTC on, the newest is of"
            f" {verdict.newest_hour:{_HOUR}} UTC; ask for an earlier time with --since"
        )
    hours = f"nothing was judged: {count(verdict.pending_hours, 'hour')} with usage, all pending"
    if verdict.watermark.startswith(slices.NEVER_MOVED):
        return f"{hours}, the watermark has never moved; roll them up: {upgrade or _CATCH_UP}"
    return (
        f"{hours}; the next ticks roll them up, five minutes after they were written:"
        " run `usage-rollup tick`, then verify again"
    )


def _show_days(out: Console, differences: Iterable[verification.Difference]) -> None:
    found = table("day (UTC)", numbers=("hours", *_SUMS))
    for day, in_it in groupby(differences, lambda d: d.hour.date()):
        hours = list(in_it)
        found.add_row(str(day), f"{len(hours):,}", *_sums(hours))
    out.print(found)


def _sums(differences: Sequence[verification.Difference]) -> Iterator[str]:
    """Yield events and tokens, expected and found, over some hours."""
    for column in ("expected_events", "found_events", "expected_tokens", "found_tokens"):
        yield f"{sum(getattr(d, column) for d in differences):,}"


def _show_differences(out: Console, differences: list[verification.Difference]) -> None:
    found = table("hour (UTC)", numbers=_SUMS)
    wide = out.width >= _WIDE
    if wide:
        found.add_column("first usage rows")
    # In a pipe an hour is a line.
    between = ", " if out.soft_wrap else "\n"
    for d in differences:
        ids = [between.join(map(str, d.usage_ids))] if wide else []
        found.add_row(f"{d.hour:{_HOUR}}", *_sums([d]), *ids)
    out.print(found)
    for d in differences if not wide else ():
        if d.usage_ids:
            below = "\n".join(f"  {usage_id}" for usage_id in d.usage_ids)
            out.print(f"first usage rows of {d.hour:{_HOUR}}:\n{below}")
