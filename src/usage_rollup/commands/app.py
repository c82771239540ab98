"""What `usage-rollup` knows: a command a module, and options that all of them take."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer
from typer.main import get_command

from .. import logs
from ..errors import ConfigurationError
from . import (
    backfill,
    chain,
    check,
    downgrade,
    history,
    options,
    preflight,
    schedule,
    script,
    stamp,
    status,
    tick,
    upgrade,
    verify,
)

# Those that take -x.
_CHAIN = {"upgrade", "downgrade", "stamp", "script"}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Without DATABASE_URL, libpq's PG* variables say which database. DATABASE_STARTUP_TIMEOUT (3m)"
    " bounds the wait for a server; LOG_FORMAT=json logs an object a line; ALEMBIC_CONFIG names another"
    " alembic.ini. Exit status: 0 done, 1 refused, 2 usage, 3 differences, 75 try again later.",
)

# The command that was typed, once it is known.
invoked: list[str] = []


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"usage-rollup {metadata.version('usage-rollup')}")
        raise typer.Exit


@app.callback()
def usage_rollup(
    context: typer.Context,
    database_url: options.DatabaseUrl = None,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    x: options.X = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Upgrade a self-hosted Multica database to the hourly usage rollup, and look after it."""
    command = context.invoked_subcommand or ""
    if x and command not in _CHAIN:
        raise ConfigurationError(f"-x goes with {', '.join(sorted(_CHAIN))}, not with {command}")
    invoked.append(command)
    chain.x_before.extend(x or ())
    logs.configure()


for _command in (
    preflight.preflight,
    upgrade.upgrade,
    downgrade.downgrade,
    script.script,
    stamp.stamp,
    history.history,
    status.status,
    backfill.backfill,
    verify.verify,
    check.check,
    tick.tick,
    schedule.schedule,
    schedule.unschedule,
):
    # -1 is a revision, and no option.
    negative = {"ignore_unknown_options": True} if _command is downgrade.downgrade else None
    app.command(context_settings=negative)(_command)

# Behind a command as before it.
_SHARED = {"database_url", "verbose", "quiet"}


def _build() -> typer.core.TyperGroup:
    """Return the program: every command takes the shared options, too."""
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    shared = [parameter for parameter in group.params if parameter.name in _SHARED]
    for one in group.commands.values():
        one.params += shared
    return group


program = _build()
