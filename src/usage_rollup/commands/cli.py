"""The operator's commands: thin doors to what the runner already has."""

from __future__ import annotations

import logging
import sys

import typer

from .. import logs
from ..errors import UsageRollupError
from . import backfill, check, preflight, schedule, status, tick, upgrade, verify
from .output import write_json

log = logging.getLogger(__name__)

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


# Commands whose exit status tells what they did, whether or not anybody reads of it.
_WORK = {"upgrade", "backfill", "tick", "schedule", "unschedule"}


def main() -> None:
    """Run a command; turn a refusal into one message and its exit status."""
    logs.escape_output()
    try:
        app()
    except SystemExit as done:
        if not done.code and ("--dry-run" in sys.argv or not _WORK & set(sys.argv[1:2])):
            logs.require_answer()
        raise
    except UsageRollupError as error:
        if "--json" in sys.argv[1:]:
            write_json({**error.refusal.fields(), "status": error.exit_status})
        log.error("usage-rollup: %s", error)
        sys.exit(error.exit_status)
