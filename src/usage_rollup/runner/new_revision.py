"""Name a new revision as the chain names them: the next number, and the SQL files that go with it.

Ids are compared as strings and the file's name is the ledger stem, so neither is left to Alembic's random
ids and to whatever somebody types. Alembic asks number() for every revision it is about to write.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.write_hooks import register
from alembic.util import CommandError

from ..errors import ConfigurationError


def needs_no_database(context: MigrationContext) -> bool:
    """Say whether the command needs no more than the chain: to write a revision, or to show them all.

    alembic.ini's revision_environment, which brings number() to bear, has env.py run for these too. Raises
    ConfigurationError for a merge, which this chain has no use for.
    """
    work = context.opts["fn"].__name__
    if work == "nothing":
        raise ConfigurationError("the chain is one line: there is nothing to merge")
    if work == "_display_current_history":
        assert context.environment_context is not None
        typed = context.environment_context.config.cmd_opts
        return typed is not None and not typed.indicate_current and "current" not in (typed.rev_range or "")
    asked = context.opts.get("revision_context")
    return asked is not None and not asked.command_args["autogenerate"]


def number(context: MigrationContext, revision: object, directives: list[MigrationScript]) -> None:
    """Give the revision that is about to be written the next number as its id, and a plain file name.

    Alembic's process_revision_directives. Reads no database. Raises ConfigurationError for a --rev-id other
    than the next number, and for a message from which no name can be made.
    """
    assert context.script is not None
    given = context.opts["revision_context"].command_args
    following = _following(context.script)
    if given["rev_id"] not in {None, following}:
        raise ConfigurationError(
            f"revisions are numbered in one line: after {int(following) - 1} comes {following},"
            f" not {given['rev_id']}",
            hint='leave --rev-id out: alembic revision -m "add x"',
        )
    if given["splice"] or given["head"] not in {None, "head", "heads", context.script.get_current_head()}:
        raise ConfigurationError(
            f"the chain is one line: a new revision comes after {context.script.get_current_head()}",
            hint='leave --head and --splice out: alembic revision -m "add x"',
        )
    for directive in directives:
        directive.rev_id = following
        # `alembic check` asks too, and writes nothing.
        if directive.message is not None or not given["autogenerate"]:
            directive.message = _slug(directive.message)


@register("sql_beside")
def write_sql(path: str, options: Any) -> None:
    """Write .up.sql and .down.sql, to be filled, beside the revision at `path`: a post-write hook."""
    revision = Path(path)
    for direction, text in (("up", _UP), ("down", _DOWN)):
        sql = revision.with_suffix(f".{direction}.sql")
        if not sql.exists():
            sql.write_text(text.format(stem=revision.stem), "utf-8")


def _following(scripts: ScriptDirectory) -> str:
    head = scripts.get_current_head()
    try:
        return f"{int(head or 0) + 1:03}"
    except ValueError as error:
        raise CommandError(f"the newest revision has no number for an id: {head}") from error


def _slug(message: str | None) -> str:
    slug = "_".join(re.findall("[a-z0-9]+", (message or "").lower()))
    if not slug:
        raise ConfigurationError(
            "a revision needs a name, for its file and for the ledger",
            hint='alembic revision -m "add x" makes the next number, its .py and its SQL files',
        )
    return slug


_UP = """\
-- {stem}: <what>
--
-- Why now: <reason>
-- Assumes: <what must be there>
-- Locks: <tables, named in the .py in `lock=`>
-- Undone by {stem}.down.sql
"""

_DOWN = """\
-- Undoes {stem}.
--
-- Locks: <tables, named in the .py in `lock=`>
"""
