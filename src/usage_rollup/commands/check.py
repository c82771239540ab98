"""`usage-rollup check`."""

from __future__ import annotations

import typer

from ..schema import check as checking
from ..session.options import read as read_options
from ..session.outages import in_session
from .output import DIFFERENCES, Fact, JsonOption, console, show_facts, write_json

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def check(as_json: JsonOption = False) -> None:
    """Compare the schema, functions and triggers included, with the revisions; exit 3 when it differs.

    Reads only. Only a database at head can be compared.
    """
    found = in_session(checking.check, read_options())
    if as_json:
        write_json(found)
    else:
        _show(found)
    raise typer.Exit(0 if found.equal else DIFFERENCES)


def _show(found: checking.Check) -> None:
    out = console()
    for difference in found.differences:
        out.print(f"{difference.kind}: {difference.object}", style="bold")
        # The sign in a column of its own: what is folded must not look like another line of the diff.
        lines = [Fact(f"  {line[:1]}", line[1:], _STYLES.get(line[:1], "")) for line in difference.diff]
        show_facts(out, lines, width=3)
        out.print()
    for variant in found.variants:
        out.print(f"known variant: {variant}")
    for what in found.not_compared:
        out.print(f"not compared: {what}")
    for unseen in found.unseen:
        out.print(f"not queued: {unseen}", style="yellow")
    if found.equal:
        out.print(f"the schema equals revision {found.revision}: {found.objects} objects compared")
    else:
        count = len(found.differences)
        out.print(f"objects that differ: {count}; - is what the revisions make, + is what is here")
