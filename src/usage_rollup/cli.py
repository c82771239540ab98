"""The operator's commands: thin doors to what the runner already has."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import advisory_lock, backfill, connection, suitability
from . import verify as verification
from .errors import ConfigurationError, DatabaseUnavailable, LockBusy, UsageRollupError

# Exit statuses a script can rely on.
REFUSED = 1
USAGE = 2
DIFFERENCES = 3
TRY_AGAIN = 75  # sysexits.h EX_TEMPFAIL

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def usage_rollup() -> None:
    """Tools around the upgrade of a self-hosted Multica database to the hourly usage rollup."""


@app.command()
def verify(
    since: Annotated[
        datetime | None,
        typer.Option(help="Compare from this UTC time on.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the hourly rollup with raw usage in one snapshot; exit 3 when an hour differs."""
    with connection.migration_session() as session:
        verdict = verification.verify(session, since)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(verdict), default=str, indent=2) + "\n")
    else:
        _show(verdict)
    raise typer.Exit(0 if verdict.equal else DIFFERENCES)


def _show(verdict: verification.Verdict) -> None:
    console = Console(soft_wrap=True)
    if verdict.differences:
        table = Table("hour (UTC)", "events expected", "found", "tokens expected", "found")
        table.add_column("first usage rows", overflow="fold")
        for d in verdict.differences:
            table.add_row(
                f"{d.hour:%Y-%m-%d %H:%M}",
                f"{d.expected_events:,}",
                f"{d.found_events:,}",
                f"{d.expected_tokens:,}",
                f"{d.found_tokens:,}",
                "\n".join(map(str, d.usage_ids)),
            )
        console.print(table)
        console.print(
            f"hours that differ: {len(verdict.differences)}; mend them: usage-rollup backfill --repair"
        )
    else:
        console.print("the hourly rollup equals raw usage")
    console.print(f"watermark: {verdict.watermark}; hours pending, not judged: {verdict.pending_hours}")
    for bucket in verdict.set_aside:
        console.print(f"set aside: {bucket.hour:%Y-%m-%d %H:%M} agent {bucket.agent_id}: {bucket.error}")
    if verdict.legacy_excess:
        table = Table("only in", "day", "workspace", "model", "tokens there", "in raw usage")
        for x in verdict.legacy_excess:
            table.add_row(
                x.rollup,
                str(x.day),
                str(x.workspace_id),
                x.model[:40],
                f"{x.legacy_tokens:,}",
                f"{x.raw_tokens:,}",
            )
        console.print(table)


@app.command(name="backfill")
def backfill_command(
    repair: Annotated[
        bool, typer.Option("--repair", help="Recompute exactly the hours that differ from raw usage.")
    ] = False,
) -> None:
    """Bring the hourly rollup up to date under advisory lock 4246, and prove it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with connection.migration_session() as session:
        suitability.require_suitable(session)
        if repair:
            advisory_lock.acquire(session, advisory_lock.HOURLY_ROLLUP)
            sys.stdout.write(f"hours repaired: {backfill.repair(session)}\n")
        else:
            done = backfill.backfill_before_103(session)
            sys.stdout.write(f"usage rows rolled up: {done.rows}, in slices: {done.slices}\n")


def main() -> None:
    """Run a command; turn a refusal into one message and its exit status."""
    try:
        app()
    except (DatabaseUnavailable, LockBusy) as error:
        _fail(error, TRY_AGAIN)
    except ConfigurationError as error:
        _fail(error, USAGE)
    except UsageRollupError as error:
        _fail(error, REFUSED)


def _fail(error: UsageRollupError, status: int) -> None:
    sys.stderr.write(f"usage-rollup: {error}\n")
    sys.exit(status)
