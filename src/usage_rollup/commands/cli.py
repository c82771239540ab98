"""The operator's commands: thin doors to what the runner already has."""

from __future__ import annotations

import gc
import logging
import os
import sys

from ..session import signals

log = logging.getLogger(__name__)


# Commands whose exit status tells what they did, whether or not anybody reads of it.
_WORK = {"upgrade", "downgrade", "stamp", "backfill", "tick", "schedule", "unschedule"}


def main() -> None:
    """Run a command; turn a refusal into one message and its exit status."""
    signals.exit_at_once()
    # Two fifths of the start: garbage is looked for in what stays, and Mako, which renders nothing here,
    # imports lexers to colour the tracebacks of its templates.
    gc.disable()
    sys.modules.setdefault("mako.ext.pygmentplugin", None)  # type: ignore[arg-type]
    # Not above: together they take most of a second, in which a signal may come.
    from alembic.util import CommandError

    from .. import logs
    from ..errors import UsageRollupError
    from .app import invoked, program
    from .output import write_json

    gc.freeze()
    gc.enable()
    logs.escape_output()
    try:
        program()
    except SystemExit as done:
        if not done.code and ({"--dry-run", "--sql"} & {*sys.argv} or not _WORK & {*invoked}):
            logs.require_answer()
        raise
    except CommandError as refused:
        # Alembic refuses, too: revisions that are not this project's, where ALEMBIC_CONFIG names others.
        error = refused if isinstance(refused, UsageRollupError) else UsageRollupError(str(refused))
        if "--json" in sys.argv[1:]:
            write_json({**error.refusal.fields(), "status": error.exit_status})
        if os.environ.get("LOG_FORMAT") == "json":
            log.error("usage-rollup: %s", error)
        else:
            sys.stderr.write(f"usage-rollup: {error}\n")
        sys.exit(error.exit_status)
