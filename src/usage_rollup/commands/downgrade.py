"""`usage-rollup downgrade`."""

from __future__ import annotations

from typing import Annotated

import typer

from alembic import command

from ..errors import ConfigurationError
from ..runner import summary
from . import chain, options
from .output import JsonOption, write_json
from .upgrade import Sql


def downgrade(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="Where to stop: 102 or 097, for a v0.3.4 server, or -1.")],
    x: options.X = None,
    lock_timeout: options.LockTimeout = None,
    version_table: options.VersionTable = None,
    sql: Sql = False,
    as_json: JsonOption = False,
) -> None:
    """Take steps back, as `alembic downgrade` does in a checkout; the daily rollups come back up to date.

    What cannot be finished is refused before anything is undone.
    """
    if sql and as_json:
        raise ConfigurationError("--sql writes a script", hint="usage-rollup script FROM:TO --json")
    chain.run(context, command.downgrade, revision, x, sql=sql)
    if as_json:
        write_json(summary.last())
