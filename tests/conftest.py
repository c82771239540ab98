"""A real PostgreSQL for every test: one server, a template per revision point, a clone per test."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from tests.support import programs
from tests.support.oracle import differing_hours
from tests.support.server import Server, open_server
from tests.support.v034 import build_v034

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

Connection = psycopg.Connection[Any]


@dataclass
class Database:
    """One test's database: how to reach it, and the real commands run on it."""

    server: Server
    name: str
    opened: list[Connection] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def connect(self, *, autocommit: bool = False, **conninfo: Any) -> Connection:
        """Open a session that is closed when the test ends."""
        connection = psycopg.connect(self.url, autocommit=autocommit, **conninfo)
        self.opened.append(connection)
        return connection

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement in a session and transaction of its own; committed when it returns."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            # Without parameters a literal % is just that.
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *parameters: Any) -> Any:
        """Return the first column of the first row of what is committed."""
        return self.execute(statement, *parameters)[0][0]

    def environment(self, **extra: str) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PG") and name not in {"DATABASE_URL", "MIGRATION_DATABASE_URL"}
        }
        return {
            **inherited,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "DATABASE_URL": self.url,
            **extra,
        }

    def alembic(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run `alembic` to its end; standard output and error are merged in `stdout`."""
        return programs.run(
            "alembic", arguments, cwd=ROOT, env=self.environment(**extra), timeout_s=120, merge=True
        )

    def upgrade(self, target: str = "head", **extra: str) -> str:
        """Upgrade, which must succeed; return what was printed."""
        result = self.alembic("upgrade", target, **extra)
        assert result.returncode == 0, result.stdout
        return result.stdout

    def refused(self, *arguments: str, **extra: str) -> str:
        """Run a command that must fail without a traceback; return what was printed."""
        result = self.alembic(*(arguments or ("upgrade", "head")), **extra)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stdout, result.stdout
        return result.stdout

    def usage_rollup(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run `usage-rollup` to its end, 200 columns wide."""
        return programs.run(
            "usage-rollup",
            arguments,
            cwd=ROOT,
            env=self.environment(**{"COLUMNS": "200", **extra}),
            timeout_s=60,
        )

    def run(self, *command: str, cwd: Path | str = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a real command to its end, standard output and error apart."""
        return subprocess.run(
            command,
            cwd=cwd,
            env=self.environment(**extra),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
        )

    def spawn(self, *command: str, **extra: str) -> subprocess.Popen[str]:
        """Start a real process, `alembic` or `./entrypoint.sh`; output merged in its stdout."""
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    @property
    def revision(self) -> str | None:
        """Return what alembic_version says, None without the table or a row in it."""
        if self.value("SELECT to_regclass('public.alembic_version') IS NULL"):
            return None
        rows = self.execute("SELECT version_num FROM public.alembic_version")
        return rows[0][0] if rows else None

    @property
    def ledger(self) -> set[str]:
        return {row[0] for row in self.execute("SELECT version FROM public.schema_migrations")}

    def catalog(self) -> str:
        """Return the whole schema and the contents of both ledgers, to compare before and after."""
        result = subprocess.run(
            [self.server.program("pg_dump"), "--schema-only", self.url],
            capture_output=True,
            text=True,
            check=True,
        )
        # pg_dump 17.6 and later wrap their output in \restrict with a random key.
        lines = [
            line
            for line in result.stdout.splitlines()
            if not line.startswith(("\\restrict", "\\unrestrict", "--")) and line
        ]
        for table in ("alembic_version", "schema_migrations"):
            if self.value("SELECT to_regclass(%s) IS NOT NULL", f"public.{table}"):
                lines += [str(row) for row in self.execute(f"SELECT * FROM {table} ORDER BY 1")]
        return "\n".join(lines)

    @contextmanager
    def migration_connection(self) -> Iterator[sa.Connection]:
        """Open a SQLAlchemy connection, pinned as the runner pins its own."""
        from usage_rollup.session.connection import engine

        with engine(self.url, 0).connect() as connection:
            yield connection


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with open_server() as server:
        yield server


@pytest.fixture(scope="session")
def templates(server: Server) -> Callable[[str], str]:
    """Return a function from a point to a template database that stands there.

    Points: `empty`; `v034`, as the Go runner leaves it; a revision, reached by our own upgrade from
    v034 without usage.
    """
    built: dict[str, str] = {}
    prefix = f"template_{uuid.uuid4().hex[:8]}"

    def template(point: str) -> str:
        if point not in built:
            name = f"{prefix}_{point}"
            source = None if point in {"empty", "v034"} else template("v034")
            server.create_database(name, template=source)
            database = Database(server, name)
            if point == "v034":
                with psycopg.connect(database.url) as connection:
                    build_v034(connection)
            elif point != "empty":
                database.upgrade(point)
            built[point] = name
        return built[point]

    return template


@pytest.fixture
def make_database(
    server: Server, templates: Callable[[str], str], request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Database]]:
    """Return a function that clones the template of a point; every clone ends with the oracle."""
    made: list[Database] = []

    def make(point: str) -> Database:
        name = f"test_{uuid.uuid4().hex[:12]}"
        server.create_database(name, template=templates(point))
        made.append(Database(server, name))
        return made[-1]

    yield make

    failed = getattr(request.node, "failed", False)
    for database in made:
        for connection in database.opened:
            connection.close()
        if failed:
            request.node.add_report_section(
                "teardown", "database kept", f"psql '{database.url}' (while its server runs)"
            )
            continue
        differing = differing_hours(database.url)
        server.drop_database(database.name)
        assert differing == [], f"rollup and raw usage differ in {differing}"


@pytest.fixture
def empty(make_database: Callable[[str], Database]) -> Database:
    """Return an empty database."""
    return make_database("empty")


@pytest.fixture
def v034(make_database: Callable[[str], Database]) -> Database:
    """Return a v0.3.4 database without usage, ledger included."""
    return make_database("v034")


@pytest.fixture
def at_102(make_database: Callable[[str], Database]) -> Database:
    """Return a v0.3.4 database upgraded to 102, without usage."""
    return make_database("102")


@pytest.fixture
def head(make_database: Callable[[str], Database]) -> Database:
    """Return a v0.3.4 database upgraded to head, without usage."""
    return make_database("head")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        item.failed = True  # type: ignore[attr-defined]
    return report
