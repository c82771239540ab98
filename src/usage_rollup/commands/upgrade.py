"""`usage-rollup upgrade`."""

from __future__ import annotations

from typing import Annotated

import typer

from alembic import command

from ..errors import ConfigurationError
from ..runner import summary
from . import chain, options
from .output import JsonOption, write_json

Sql = Annotated[bool, typer.Option("--sql", help="Write a script for psql instead: FROM:TO, 097:head say.")]


def upgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="Where to stop: 102, say, or +1.")] = "head",
    x: options.X = None,
    jobs: options.Jobs = None,
    sleep_between_slices: options.SleepBetweenSlices = None,
    lock_timeout: options.LockTimeout = None,
    keep_legacy: options.KeepLegacy = None,
    version_table: options.VersionTable = None,
    sql: Sql = False,
    as_json: JsonOption = False,
) -> None:
    """Upgrade the database, as `alembic upgrade head` does in a checkout.

    It rolls the history up and proves it before the daily rollups go, and says at the end what it did.
    Killing it is safe at any moment: the same command goes on from there.
    """
    if sql and as_json:
        raise ConfigurationError("--sql writes a script", hint="usage-rollup script FROM:TO --json")
    chain.run(context, command.upgrade, revision, x, sql=sql)
    if as_json:
        write_json(summary.last())
