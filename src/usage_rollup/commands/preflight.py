"""`usage-rollup preflight`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import typer
from rich.console import Console

from .. import doors
from ..errors import REFUSED, TRY_AGAIN
from ..reports import preflight as flight
from ..reports.place import Step
from ..session.options import read as read_options
from ..session.outages import in_session
from ..times import for_people
from . import health
from .output import Fact, JsonOption, console, count, duration, show_facts, size, table, write_json


def preflight(as_json: JsonOption = False) -> None:
    """Tell what an upgrade would do to this database; exit 1 when it would be refused, 75 for locks alone."""
    options = read_options()
    found = in_session(lambda session: flight.preflight(session, options), options)
    status = 0 if found.goes_through else TRY_AGAIN if found.only_locks else REFUSED
    if as_json:
        write_json({"goes_through": found.goes_through, "status": status, **dataclasses.asdict(found)})
    else:
        _show(console(), found)
    raise typer.Exit(status)


def _show(out: Console, found: flight.Preflight) -> None:
    upgrade = doors.named("`alembic upgrade head`")
    if found.refusals:
        out.print(f"{upgrade} would be refused", style="bold red")
    elif not found.goes_through:
        out.print(f"not all could be seen that decides on {upgrade}", style="bold yellow")
    else:
        out.print(f"{upgrade} would go through", style="bold green")
    show_facts(out, _refusals(found))
    show_facts(out, [*_place(found), *_guard(found), *_work(found), *_losses(found)])
    months = found.backfill.months if found.backfill else {}
    if out.soft_wrap:
        show_facts(out, [Fact(month, f"{rows:,} usage rows to roll up") for month, rows in months.items()])
    elif months:
        by_month = table("month (UTC)", numbers=("usage rows to roll up",))
        for month, rows in months.items():
            by_month.add_row(month, f"{rows:,}")
        out.print(by_month)


def _refusals(found: flight.Preflight) -> Iterator[Fact]:
    for refusal in found.refusals:
        yield Fact("refused", str(refusal), "red")
    for what in found.not_seen:
        yield Fact("not seen", what, "yellow")
    for doubt in found.doubts:
        yield Fact("may refuse", str(doubt), "yellow")


def _place(found: flight.Preflight) -> Iterator[Fact]:
    if server := found.server:
        acts = server.may_act and server.owner not in (None, server.role)
        acting = f", acting for {server.owner}" if acts else ""
        yield Fact("server", f"PostgreSQL {server.version}")
        yield Fact("database", f"{server.database}, {size(server.bytes)}, as role {server.role}{acting}")
    if place := found.place:
        yield Fact("shape", place.shape)
        yield Fact("revision", place.revision or "none")
        if place.adoption:
            yield Fact("adoption", place.adoption)
        for step in place.pending:
            yield Fact("pending", _step(step))
        if not place.pending:
            yield Fact("pending", "nothing")
    for holder in found.in_the_way:
        yield Fact("in the way", f"{holder}; the upgrade waits for it", "yellow")


def _step(step: Step) -> str:
    locks = [f"locks {', '.join(tables)} in {mode} mode" for mode, tables in step.locks.items()]
    return "\n".join([step.name, *(f"  {lock}" for lock in locks or ["locks no table"])])


def _guard(found: flight.Preflight) -> Iterator[Fact]:
    if guard := found.guard:
        yield Fact("guard of 103", guard.verdict)
        yield Fact("watermark", for_people(guard.watermark) if guard.watermark else "none yet")
        yield Fact("latest event", for_people(guard.latest_event) if guard.latest_event else "none")


def _work(found: flight.Preflight) -> Iterator[Fact]:
    if work := found.backfill:
        who = "" if found.is_pending("103") else "; not by the upgrade, but by `usage-rollup backfill`"
        rows, months = count(work.rows, "usage row"), count(len(work.months), "month")
        yield Fact("to roll up", f"{rows} in {months}{who}")
        if work.unfinished:
            yield Fact("backfill", health.backfill(work.unfinished), "yellow")
        if found.guard and (before := found.guard.left_out_before):
            yield Fact("left out", f"usage before {before}, by a partial backfill: it is rolled up, too")
        yield Fact("duration", f"about {duration(work.seconds)}, measured on a sample")
        yield Fact("disk", f"about {size(work.rollup_bytes)} for the hourly rollup")
    elif found.guard and not (found.guard.walks or found.guard.refusals):
        yield Fact("to roll up", "nothing")


def _losses(found: flight.Preflight) -> Iterator[Fact]:
    if legacy := found.legacy:
        if legacy.kept_because:
            yield Fact(
                "legacy tables",
                f"{size(legacy.bytes)}; 103 moves them to schema legacy_usage:"
                f" {', and '.join(legacy.kept_because)}"
                f"\n{doors.named('`alembic -x keep-legacy=false upgrade head`')} drops them",
            )
        else:
            yield Fact("legacy tables", f"{size(legacy.bytes)}, which 103 frees")
        for example in legacy.examples:
            yield Fact("only there", example)
        if (more := legacy.totals_only_there - len(legacy.examples)) > 0:
            yield Fact("only there", f"and {more:,} more")
    for rights in found.trigger_rights:
        yield Fact("triggers", f"{rights.meaning}; {rights.mend}", "yellow")
    for unseen in found.unseen:
        yield Fact("not queued", str(unseen), "yellow")
    for odd in found.oddities:
        rows = count(odd.rows, "row")
        yield Fact("odd usage", f"{rows}: {odd.meaning}; id {odd.example}", "yellow")
