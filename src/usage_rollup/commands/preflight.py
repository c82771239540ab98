"""`usage-rollup preflight`."""

from __future__ import annotations

import dataclasses

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..reports import preflight as flight
from ..session import connection
from ..session.options import read as read_options
from .output import REFUSED, JsonOption, console, write_json

Facts = list[tuple[str, str]]


def preflight(as_json: JsonOption = False) -> None:
    """Tell what `alembic upgrade head` would do to this database; exit 1 when it would be refused."""
    options = read_options()
    with connection.migration_session(options) as session:
        found = flight.preflight(session, options)
    if as_json:
        write_json({"goes_through": found.goes_through, **dataclasses.asdict(found)})
    else:
        _show(console(), found)
    raise typer.Exit(0 if found.goes_through else REFUSED)


def _show(out: Console, found: flight.Preflight) -> None:
    if found.refusals:
        out.print(Text("`alembic upgrade head` would be refused", style="bold red"))
    elif found.not_seen:
        out.print(Text("not all could be seen that decides on `alembic upgrade head`", style="bold yellow"))
    else:
        out.print(Text("`alembic upgrade head` would go through", style="bold green"))
    refusals = [("refused", str(refusal)) for refusal in found.refusals]
    _print(out, refusals + [("not seen", what) for what in found.not_seen])
    _print(out, [*_place(found), *_guard(found), *_work(found), *_losses(found)])
    months = found.backfill.months if found.backfill else {}
    if not out.is_terminal:
        _print(out, [(month, f"{rows:,} usage rows to roll up") for month, rows in months.items()])
    elif months:
        table = Table("month (UTC)", "usage rows to roll up")
        table.columns[1].justify = "right"
        for month, rows in months.items():
            table.add_row(month, f"{rows:,}")
        out.print(table)


def _print(out: Console, facts: Facts) -> None:
    """Print facts beside their names: in columns on a terminal, a line each in a pipe."""
    if not out.is_terminal:
        for name, fact in facts:
            out.print(Text(f"{name}: {fact}".replace("\n  ", "; ").replace("\n", "; ")))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts:
        grid.add_row(Text(name, style=_STYLES.get(name, "bold")), Text(fact))
    out.print(grid)


_STYLES = {"refused": "red", "not seen": "yellow", "in the way": "yellow", "odd usage": "yellow"}


def _place(found: flight.Preflight) -> Facts:
    facts = []
    if server := found.server:
        acting = f", acting for {server.owner}" if server.owner not in (None, server.role) else ""
        facts += [
            ("server", f"PostgreSQL {server.version}"),
            ("database", f"{server.database}, {_size(server.bytes)}, as role {server.role}{acting}"),
        ]
    if place := found.place:
        facts += [("shape", place.shape), ("revision", place.revision or "none")]
        facts += [("adoption", place.adoption)] if place.adoption else []
        facts += [("pending", _step(step)) for step in place.pending] or [("pending", "nothing")]
    return facts + [("in the way", f"{holder}; the upgrade waits for it") for holder in found.in_the_way]


def _step(step: flight.Step) -> str:
    locks = [f"locks {', '.join(tables)} in {mode} mode" for mode, tables in step.locks.items()]
    return "\n".join([step.name, *(f"  {lock}" for lock in locks or ["locks no table"])])


def _guard(found: flight.Preflight) -> Facts:
    if not (guard := found.guard):
        return []
    return [
        ("guard of 103", guard.verdict),
        ("watermark", guard.watermark or "none yet"),
        ("latest event", guard.latest_event or "none"),
    ]


def _work(found: flight.Preflight) -> Facts:
    if not (work := found.backfill):
        done = found.guard and not (found.guard.walks or found.guard.refusals)
        return [("to roll up", "nothing")] if done else []
    who = "" if found.is_pending("103") else "; not by the upgrade, but by `usage-rollup backfill`"
    how = "what an unfinished backfill left of " if found.guard and found.guard.resumes else ""
    return [
        ("to roll up", f"{how}{_count(work.rows, 'usage row')} in {_count(len(work.months), 'month')}{who}"),
        ("duration", f"about {_duration(work.seconds)}, measured on a sample"),
        ("disk", f"about {_size(work.rollup_bytes)} for the hourly rollup"),
    ]


def _losses(found: flight.Preflight) -> Facts:
    facts = []
    if legacy := found.legacy:
        if legacy.kept_because:
            facts.append(
                (
                    "legacy tables",
                    f"{_size(legacy.bytes)}; 103 moves them to schema legacy_usage:"
                    f" {', and '.join(legacy.kept_because)}"
                    "\n`alembic -x keep-legacy=false upgrade head` drops them",
                )
            )
        else:
            facts.append(("legacy tables", f"{_size(legacy.bytes)}, which 103 frees"))
        facts += [("only there", example) for example in legacy.examples]
        if (more := legacy.totals_only_there - len(legacy.examples)) > 0:
            facts.append(("only there", f"and {more:,} more"))
    facts += [
        ("odd usage", f"{_count(odd.rows, 'row')}: {odd.meaning}; id {odd.example}") for odd in found.oddities
    ]
    return facts


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _size(count: int) -> str:
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1024:,.0f} kB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
