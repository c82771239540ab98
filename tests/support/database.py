"""One database of a server: how to reach it, and the real commands run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from tests.support import programs
from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# Where no server answers.
NOWHERE = "postgres://nobody@127.0.0.1:1/nowhere"

Connection = psycopg.Connection[Any]


class Session(Connection):
    """A session that is over in the server, too, when close() returns, as at the end of a `with`.

    So that no later step finds it holding advisory lock 4246.
    """

    server: Server
    pid = 0

    def close(self) -> None:
        super().close()
        pid, self.pid = self.pid, 0
        if pid:
            self.server.wait_until_gone(pid)


@dataclass
class Database:
    """One test's database: how to reach it, and the real commands run on it."""

    server: Server
    name: str
    opened: list[Session] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def url_of(self, role: str) -> str:
        """Return the URL for a role of `make_role`, whose password is its name."""
        return self.server.url(self.name, user=role, password=role)

    def connect(self, *, autocommit: bool = False, **conninfo: Any) -> Session:
        """Open a session that ends with its `with` block, or else with the test."""
        session = Session.connect(self.url, autocommit=autocommit, **conninfo)
        session.server, session.pid = self.server, session.info.backend_pid
        self.opened.append(session)
        return session

    def end_sessions(self) -> None:
        """End the sessions of connect() that are still open, all at once: one may wait for another."""
        pids = [session.pid for session in self.opened if session.pid]
        for session in self.opened:
            session.pid = 0
            session.close()
        self.opened.clear()
        if pids:
            self.server.wait_until_gone(*pids)

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
            # In order, so that a test knows what is walked when. Those of the default say JOBS="auto".
            "JOBS": "1",
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

    def downgrade(self, target: str, **extra: str) -> str:
        """Downgrade, which must succeed; return what was printed."""
        result = self.alembic("downgrade", target, **extra)
        assert result.returncode == 0, result.stdout
        assert "Traceback" not in result.stdout
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

    def schema(self, *, in_order: bool = True) -> list[str]:
        """Return the lines of catalog() without the rows of the ledgers, whose times differ.

        Not in order, it does not matter where a table's columns stand: one that comes back comes last.
        """
        lines = [line for line in self.catalog().splitlines() if not line.startswith("('")]
        return lines if in_order else sorted(line.strip().rstrip(",") for line in lines)

    @contextmanager
    def migration_connection(self, url: str | None = None) -> Iterator[sa.Connection]:
        """Open a SQLAlchemy connection, pinned as the runner pins its own; its session ends with it."""
        from usage_rollup.session.connection import engine

        with engine(url or self.url, 0).connect() as connection:
            pid: int = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            try:
                yield connection
            finally:
                connection.close()
                self.server.wait_until_gone(pid)


MakeDatabase = Callable[[str], Database]
