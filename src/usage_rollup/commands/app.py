"""What `usage-rollup` knows: a command a module."""

from __future__ import annotations

import typer

from .. import logs
from . import backfill, check, preflight, schedule, status, tick, upgrade, verify

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def usage_rollup() -> None:
    """Tools around the upgrade of a self-hosted Multica database to the hourly usage rollup."""
    logs.configure()


app.command()(preflight.preflight)
app.command()(upgrade.upgrade)
app.command()(backfill.backfill)
app.command()(tick.tick)
app.command()(schedule.schedule)
app.command()(schedule.unschedule)
app.command()(verify.verify)
app.command()(check.check)
app.command()(status.status)
