"""`usage-rollup verify`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..hourly import verify as verification
from ..session import connection
from .output import DIFFERENCES, JsonOption, console, write_json

_HOUR = "%Y-%m-%d %H:%M"

# Where the ids of usage rows fit beside the counts.
_WIDE = 130


def verify(
    since: Annotated[
        datetime | None,
        typer.Option(help="Compare from this UTC time on.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the hourly rollup with raw usage in one snapshot; exit 3 when an hour differs."""
    with connection.migration_session() as session:
        verdict = verification.verify(session, since)
    if as_json:
        write_json(verdict)
    else:
        _show(verdict)
    raise typer.Exit(0 if verdict.equal else DIFFERENCES)


def _show(verdict: verification.Verdict) -> None:
    out = console()
    if verdict.differences:
        _show_differences(out, verdict.differences)
        say = f"hours that differ: {len(verdict.differences)}; mend them: usage-rollup backfill --repair"
    else:
        say = "the hourly rollup equals raw usage"
    out.print(say)
    out.print(f"watermark: {verdict.watermark}; hours pending, not judged: {verdict.pending_hours}")
    if verdict.not_compared:
        out.print(f"not compared, later releases added them: {', '.join(verdict.not_compared)}")
    for bucket in verdict.set_aside:
        out.print(f"set aside: {bucket.hour:{_HOUR}} agent {bucket.agent_id}: {bucket.error}")
    if verdict.legacy_excess:
        table = _table("only in", "day", "workspace", "model", "tokens there", "in raw usage")
        for x in verdict.legacy_excess:
            table.add_row(
                x.rollup,
                str(x.day),
                str(x.workspace_id),
                x.model,
                f"{x.legacy_tokens:,}",
                f"{x.raw_tokens:,}",
            )
        out.print(table)


def _show_differences(out: Console, differences: list[verification.Difference]) -> None:
    table = _table("hour (UTC)", "events expected", "found", "tokens expected", "found")
    wide = out.width >= _WIDE
    if wide:
        table.add_column("first usage rows")
    for d in differences:
        table.add_row(
            f"{d.hour:{_HOUR}}",
            f"{d.expected_events:,}",
            f"{d.found_events:,}",
            f"{d.expected_tokens:,}",
            f"{d.found_tokens:,}",
            *(["\n".join(map(str, d.usage_ids))] if wide else []),
        )
    out.print(table)
    for d in differences if not wide else ():
        if d.usage_ids:
            ids = "\n".join(f"  {usage_id}" for usage_id in d.usage_ids)
            out.print(f"first usage rows of {d.hour:{_HOUR}}:\n{ids}")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
