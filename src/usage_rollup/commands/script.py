"""`usage-rollup script`."""

from __future__ import annotations

import io
from typing import Annotated

import typer

from alembic import command

from ..errors import ConfigurationError
from . import chain, options
from .output import JsonOption, write_json


def script(
    context: typer.Context,
    ends: Annotated[
        str,
        typer.Argument(
            metavar="FROM:TO",
            help="From where the database stands, to where: 097:head for v0.3.4, 101:head for one stuck at"
            " 103, head:097 for the way back.",
        ),
    ],
    x: options.X = None,
    sleep_between_slices: options.SleepBetweenSlices = None,
    lock_timeout: options.LockTimeout = None,
    keep_legacy: options.KeepLegacy = None,
    version_table: options.VersionTable = None,
    as_json: JsonOption = False,
) -> None:
    """Write the upgrade, or the way back, as SQL for psql; needs no database.

    The script refuses a database that does not stand where it begins. Run it with:
    psql -X -v ON_ERROR_STOP=1 -f FILE
    """
    start, colon, target = ends.partition(":")
    if not (start and colon and target):
        raise ConfigurationError(
            f"a script goes from a revision to another: {ends!r}",
            hint="097:head is all of it; head:097 goes back",
        )
    if chain.relative(start):
        raise ConfigurationError(
            f"a script begins at a revision: {start!r}",
            hint="`usage-rollup status` says where a database stands",
        )
    goes_back = chain.position(target, start) < chain.position(start)
    way = command.downgrade if goes_back else command.upgrade
    text = io.StringIO()
    chain.run(context, way, ends, x, sql=True, out=text if as_json else None)
    if as_json:
        write_json({"from": start, "to": target, "sql": text.getvalue()})
