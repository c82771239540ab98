"""`usage-rollup stamp`."""

from __future__ import annotations

from typing import Annotated

import typer

from alembic import command

from . import chain, options
from .output import JsonOption, write_json


def stamp(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="What to write: 101, say.")],
    purge: Annotated[bool, typer.Option("--purge", help="Empty the table first, whatever it holds.")] = False,
    x: options.X = None,
    version_table: options.VersionTable = None,
    as_json: JsonOption = False,
) -> None:
    """Write a revision in alembic_version, and do nothing else: only where a refusal says so."""
    chain.run(context, command.stamp, revision, x, purge=purge)
    if as_json:
        write_json({"revision": revision})
