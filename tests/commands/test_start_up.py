"""What a command imports before it does anything: `alembic` starts in every container, every time."""

from __future__ import annotations

import pytest

from tests.support.database import BIN, Database
from tests.support.walks import write_history

pytestmark = pytest.mark.process

# What operators' commands print with, and what only `alembic check` compares with.
HEAVY = {"typer", "rich", "usage_rollup.commands", "usage_rollup.reports", "usage_rollup.schema"}


def imported(database: Database, program: str, *arguments: str) -> set[str]:
    """Run a real command with nobody watching; return the modules it imported."""
    done = database.run(str(BIN / program), *arguments, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def test_upgrade_imports_what_it_needs_and_no_more(v034: Database) -> None:
    write_history(v034, rows=60, months=2)
    for _ in ("a history is walked", "nothing to do"):
        modules = imported(v034, "alembic", "upgrade", "head")
        assert "usage_rollup.hourly.schedule" in modules
        assert HEAVY & modules == set()
    # The trap: where they are wanted, this way of looking sees them.
    ticked, checked = imported(v034, "usage-rollup", "tick"), imported(v034, "alembic", "check")
    assert {"typer", "rich", "usage_rollup.commands"} <= ticked
    assert "usage_rollup.schema" in checked
    # Which Alembic's own command cannot help.
    lexers = {module for module in checked if module.startswith("pygments.lexers.")}
    assert len(lexers) > 1
    assert lexers & ticked == set()
