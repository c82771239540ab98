"""Start `usage-rollup`, or say which extra it lacks."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the operator's commands; exit 2 with one sentence where the extra `cli` is not installed."""
    try:
        from . import cli
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.stderr.write(
            f"usage-rollup: the module {error.name} is missing\n"
            "HINT: install usage-rollup[cli]; without it, run"
            ' alembic -c "$(python -m usage_rollup.revisions)" upgrade head\n'
        )
        sys.exit(2)
    cli.main()
