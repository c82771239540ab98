"""`usage-rollup upgrade`."""

from __future__ import annotations

from argparse import Namespace
from typing import Annotated

import typer
from alembic.command import upgrade as alembic_upgrade
from alembic.util import CommandError

from .. import revisions
from ..contract import STEMS
from ..errors import ConfigurationError, UsageRollupError
from ..runner import adoption
from ..session.options import read as read_options
from ..session.outages import in_session
from .output import JsonOption, write_json


def upgrade(
    revision: Annotated[str, typer.Argument(help="Where to stop: 102, say.")] = "head",
    x: Annotated[
        list[str] | None,
        typer.Option(
            "-x", help="An option of the run, as `alembic -x` takes it: jobs=4.", metavar="NAME=VALUE"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Upgrade the database with the installed revisions, as `alembic upgrade head` does, log lines included.

    Killing it is safe at any moment; the same command goes on from there.
    """
    config = revisions.config()
    config.cmd_opts = Namespace(x=x or [])
    try:
        revisions.scripts().get_revision(revision)
    except CommandError as error:
        raise ConfigurationError(str(error), hint=f"there is: {', '.join(STEMS)}, head") from error
    before = _current() if as_json else None
    try:
        alembic_upgrade(config, revision)
    except UsageRollupError:
        raise
    except CommandError as error:
        raise UsageRollupError(str(error)) from error
    if as_json:
        write_json({"from": before, "to": _current()})


def _current() -> str | None:
    """Return what alembic_version says, in a session of its own."""
    return in_session(lambda session: adoption.look(session).version, read_options())
