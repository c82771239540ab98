"""What every command shares: --json, a console, facts, tables, units, exit statuses."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..words import count as count
from ..words import duration as duration
from ..words import size as size
from ..words import took as took

# Exit status of a comparison that found differences; those of refusals are told by errors.py.
DIFFERENCES = 3

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# The width of a pipe. Nobody reads that far, and a table is no wider than what it holds.
_UNBOUNDED = 10_000


class Fact(NamedTuple):
    """A value beside its name; a newline in it begins another line on a terminal, and is a `; ` in a pipe."""

    label: str
    value: str
    style: str = ""


def console() -> Console:
    """Return where a person reads: folded to a terminal's width; whole, tables too, in a pipe.

    Text is printed as it is: what a daemon or a database sends may look like markup.
    """
    folds = sys.stdout.isatty()
    width = None if folds else _UNBOUNDED
    return Console(soft_wrap=not folds, width=width, markup=False, highlight=False, emoji=False)


def show_facts(out: Console, facts: Iterable[Fact], *, width: int | None = None) -> None:
    """Print facts: in two columns on a terminal, folded under their own beginnings; in a pipe a line each.

    `width` is what the labels' column takes, in a pipe too; without it a pipe gets `label: value`.
    """
    rows = list(facts)
    if out.soft_wrap:
        for label, value, style in rows:
            before = f"{label}: " if width is None else label.ljust(width)
            out.print(Text(before) + Text(value.replace("\n  ", "; ").replace("\n", "; "), style))
        return
    grid = Table.grid()
    grid.add_column(no_wrap=True, width=width or max((len(row.label) for row in rows), default=0) + 2)
    grid.add_column(overflow="fold")
    for label, value, style in rows:
        grid.add_row(Text(label, f"bold {style}"), Text(value, style))
    out.print(grid)


def table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """Return a table whose cells are folded and never cut; `numbers` are further columns, aligned right."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for column in numbers:
        made.add_column(column, overflow="fold", justify="right")
    return made


def write_json(result: Any) -> None:
    """Print a dataclass or a mapping as one JSON object, as docs/output.schema.json describes it."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = dataclasses.asdict(result)
    sys.stdout.write(json.dumps(result, default=_plain, indent=2) + "\n")


def _plain(value: object) -> object:
    """Return what JSON has a word for: times as RFC 3339 in UTC, whole numbers however long, else text."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return int(value) if isinstance(value, Decimal) else str(value)
