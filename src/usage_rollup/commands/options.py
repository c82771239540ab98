"""Options that several commands share: what they are called, which variable gives them, what they are for."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from .. import logs
from ..session import database_url
from ..session.options import KNOWN


def typed(context: typer.Context, name: str) -> Any:
    """Return what was typed for an option; None where the environment gives it, which is read elsewhere."""
    source = context.get_parameter_source(name)
    return context.params[name] if source is not None and source.name == "COMMANDLINE" else None


def _database_url(context: typer.Context, parameter: typer.CallbackParam, value: str | None) -> None:
    source = context.get_parameter_source(parameter.name or "")
    if value is not None and source is not None and source.name == "COMMANDLINE":
        database_url.typed = value


def _verbose(value: bool) -> None:
    if value:
        logs.choose(logging.DEBUG)


def _quiet(value: bool) -> None:
    if value:
        logs.choose(logging.WARNING)


# The option of every command; they do their work by themselves, and no command is told.
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar=[*database_url.URL_VARIABLES],
        metavar="URL",
        help="The database. Others on this machine see what is typed: a password belongs in the variable.",
        callback=_database_url,
        expose_value=False,
        show_default=False,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Log every statement, too.", callback=_verbose, expose_value=False),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Log warnings and refusals only.", callback=_quiet, expose_value=False
    ),
]

X = Annotated[
    list[str] | None,
    typer.Option(
        "-x",
        help=f"An option of the run, as `alembic -x` takes it: {', '.join(KNOWN)}.",
        metavar="NAME=VALUE",
        show_default=False,
    ),
]

Jobs = Annotated[
    str | None,
    typer.Option(
        help="Sessions that roll up at once.",
        envvar="JOBS",
        metavar="auto|1..99",
        show_default="auto: as many as help",
    ),
]
SleepBetweenSlices = Annotated[
    str | None,
    typer.Option(
        help="A rest for the server after each slice, for one: 2s.",
        envvar="SLEEP_BETWEEN_SLICES",
        metavar="DURATION",
        show_default="none",
    ),
]
LockTimeout = Annotated[
    str | None,
    typer.Option(
        help="How long to wait for locks of other sessions.",
        envvar="LOCK_TIMEOUT",
        metavar="DURATION",
        show_default="10m for a run or a backfill to end, 2m for a table",
    ),
]
KeepLegacy = Annotated[
    str | None,
    typer.Option(
        help="What 103 does with the daily rollups: keep them in schema legacy_usage, or drop them.",
        envvar="KEEP_LEGACY",
        metavar="true|false",
        show_default="keep them if they show what raw usage does not",
    ),
]
VersionTable = Annotated[
    str | None,
    typer.Option(
        help="The table in schema public that holds the revision.",
        envvar="VERSION_TABLE",
        metavar="NAME",
        show_default="alembic_version",
    ),
]
