"""The two ways to upgrade: `alembic` connected to the database, and the script it writes, run by psql."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from typing import Protocol

from tests.support import programs
from tests.support.catalog_snapshot import snapshot
from tests.support.database import NOWHERE, ROOT, Database
from tests.support.deadline import DEADLINE_S

ALL_ALONE = ("-X", "-v", "ON_ERROR_STOP=1")


class Way(Protocol):
    """How to go from one revision to another; `options` are those of -x, with underscores."""

    def upgrade(self, database: Database, start: str, target: str = "head", **options: str) -> str:
        """Upgrade from `start`, which must succeed; return what was said."""

    def downgrade(self, database: Database, start: str, target: str) -> str:
        """Downgrade from `start`, which must succeed; return what was said."""

    def fails(self, database: Database, command: str, start: str, target: str, **options: str) -> str:
        """Run a command that must fail; return what was said."""


def refused(way: Way, database: Database, command: str, start: str, target: str) -> str:
    """Run a command that must fail before anything is changed; return what was said."""
    before = snapshot(database)
    said = way.fails(database, command, start, target)
    assert snapshot(database) == before
    return said


class Runner:
    """`alembic`, connected to the database, which knows by itself where to start."""

    def upgrade(self, database: Database, start: str, target: str = "head", **options: str) -> str:
        return self._run(database, {0}, "upgrade", target, options)

    def downgrade(self, database: Database, start: str, target: str) -> str:
        return self._run(database, {0}, "downgrade", target, {})

    def fails(self, database: Database, command: str, start: str, target: str, **options: str) -> str:
        # What may pass by itself, or not.
        return self._run(database, {75, 255}, command, target, options)

    def _run(
        self, database: Database, statuses: set[int], command: str, target: str, options: dict[str, str]
    ) -> str:
        done = database.alembic(*_typed(options), command, target)
        assert done.returncode in statuses, done.stdout
        assert "Traceback" not in done.stdout
        return done.stdout


class Script:
    """psql, on what `alembic --sql` writes where no database can be reached."""

    def upgrade(self, database: Database, start: str, target: str = "head", **options: str) -> str:
        return self._run(database, 0, "upgrade", start, target, options)

    def downgrade(self, database: Database, start: str, target: str) -> str:
        return self._run(database, 0, "downgrade", start, target, {})

    def fails(self, database: Database, command: str, start: str, target: str, **options: str) -> str:
        return self._run(database, 3, command, start, target, options)

    def _run(
        self,
        database: Database,
        status: int,
        command: str,
        start: str,
        target: str,
        options: dict[str, str],
    ) -> str:
        step = target if start == "base" else f"{start}:{target}"
        done = psql(database, script(database, *_typed(options), command, step))
        assert done.returncode == status, done.stderr
        # As the runner writes them.
        return re.sub(r"(HINT|DETAIL|INFO|WARNING):  ", r"\1: ", done.stderr)


WAYS: dict[str, Way] = {"runner": Runner(), "script": Script()}


def script(database: Database, *arguments: str, **extra: str) -> str:
    """Return what `alembic ... --sql` writes, made where no database can be reached."""
    return _made(arguments, tuple(database.environment(**{"DATABASE_URL": NOWHERE, **extra}).items()))


@cache
def _made(arguments: tuple[str, ...], environment: tuple[tuple[str, str], ...]) -> str:
    """Make a script; once only, because nothing of the database that will run it can get into it."""
    done = programs.run(
        "alembic", (*arguments, "--sql"), cwd=ROOT, env=dict(environment), timeout_s=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def psql(database: Database, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a DBA would: the first error ends it."""
    return subprocess.run(
        [database.server.program("psql"), *(options or ALL_ALONE), "-f", "-", database.url],
        input=text,
        env=database.environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def _typed(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in ("-x", f"{name.replace('_', '-')}={value}")]
