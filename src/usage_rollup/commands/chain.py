"""Run Alembic's commands on the installed revisions, on the terms of `usage-rollup`."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from typing import Any, TextIO

import typer
from alembic.util import CommandError

from .. import revisions
from ..contract import STEMS
from ..errors import ConfigurationError, UsageRollupError
from ..session.options import KNOWN
from ..session.options import read as read_options
from . import options

# Options of a run that a command may have as its own, by the names of its parameters.
_OWN = {name.replace("-", "_"): name for name in KNOWN}

# +1, -2, 103-1: so many steps from where the database stands, or from a revision.
_RELATIVE = re.compile(r"(\w+)?([+-]\d+)")

_NOTHING = "base"

_THERE_IS = f"there is: base, {', '.join(STEMS)}, head"

# What is typed before the command, where `alembic` wants it.
x_before: list[str] = []


def run(
    context: typer.Context,
    command: Callable[..., Any],
    revision: str,
    x: list[str] | None,
    *,
    out: TextIO | None = None,
    **more: Any,
) -> None:
    """Run `command` to `revision`, with options typed as -x, before or behind the command, or as its own.

    A script is written to `out`, or to standard output.

    Raises ConfigurationError for a revision or an option that there is not, and what env.py raises.
    """
    config = revisions.config()
    config.output_buffer = out
    own = {name: options.typed(context, parameter) for parameter, name in _OWN.items()}
    own = {name: value for name, value in own.items() if value is not None}
    read_options(flags=own)
    config.cmd_opts = Namespace(
        x=[*x_before, *(x or []), *(f"{name}={value}" for name, value in own.items())]
    )
    for end in revision.split(":", 1) if more.get("sql") else [revision]:
        require_known(end)
    try:
        command(config, revision, **more)
    except UsageRollupError:
        raise
    except CommandError as error:
        raise UsageRollupError(str(error)) from error


def relative(revision: str) -> tuple[str, int] | None:
    """Return what 103-1 or +1 counts from, empty where nothing is named, and how many steps; else None."""
    found = _RELATIVE.fullmatch(revision)
    return (found[1] or "", int(found[2])) if found else None


def position(revision: str, start: str = _NOTHING) -> int:
    """Return where a revision is in the chain, from 0 for nothing at all; steps may count from `start`.

    Raises ConfigurationError for one that there is not.
    """
    if steps := relative(revision):
        found = position(steps[0] or start) + steps[1]
        if 0 <= found <= len(STEMS):
            return found
        raise ConfigurationError(f"Can't locate revision identified by '{revision}'", hint=_THERE_IS)
    if revision == _NOTHING:
        return 0
    try:
        named = revisions.scripts().get_revision(revision)
    except CommandError as error:
        raise ConfigurationError(str(error), hint=_THERE_IS) from error
    return sum(1 for _ in revisions.scripts().iterate_revisions(named.revision, _NOTHING))


def require_known(revision: str) -> None:
    """Raise ConfigurationError unless there is such a revision; +1 alone depends on the database."""
    if (relative(revision) or ("known", 0))[0]:
        position(revision)
