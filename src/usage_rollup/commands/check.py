"""`usage-rollup check`."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.text import Text

from ..schema import check as checking
from ..session import connection
from .output import DIFFERENCES, JsonOption, console, write_json

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def check(as_json: JsonOption = False) -> None:
    """Compare the schema, functions and triggers included, with the revisions; exit 3 when it differs.

    Reads only. Only a database at head can be compared.
    """
    with connection.migration_session() as session:
        found = checking.check(session)
    if as_json:
        write_json(found)
    else:
        _show(found)
    raise typer.Exit(0 if found.equal else DIFFERENCES)


def _show(found: checking.Check) -> None:
    out = console()
    for difference in found.differences:
        out.print(Text(f"{difference.kind}: {difference.object}", "bold"))
        for line in difference.diff:
            _line(out, line)
        out.print()
    for variant in found.variants:
        out.print(Text(f"known variant: {variant}"))
    for what in found.not_compared:
        out.print(Text(f"not compared: {what}"))
    if found.equal:
        out.print(Text(f"the schema equals revision {found.revision}: {found.objects} objects compared"))
    else:
        count = len(found.differences)
        out.print(Text(f"objects that differ: {count}; - is what the revisions make, + is what is here"))


def _line(out: Console, line: str) -> None:
    """Print a line of a diff: folded under its own beginning on a terminal, whole in a pipe."""
    # Not as markup: a body may look like it.
    text = Text(line, _STYLES.get(line[:1], ""))
    lines = [text] if out.soft_wrap else text.wrap(out, out.width - 4)
    for n, part in enumerate(lines):
        out.print(Text("  " if n == 0 else "    ") + part)
