"""One database of a server: how to reach it, and the real commands run on it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from tests.support import programs
from tests.support.closing import Session, close_all
from tests.support.deadline import DEADLINE_S
from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# Where no server answers.
NOWHERE = "postgres://nobody@127.0.0.1:1/nowhere"

Connection = psycopg.Connection[Any]

# What leaves nothing behind in its session.
_PLAIN = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|TABLE)\b(?!.*(set_config|advisory|pg_export))", re.DOTALL
)


@dataclass
class Database:
    """One test's database: how to reach it, and the real commands run on it.

    With `shares` one session runs the plain statements of the main thread that follow each other: a session
    each was a tenth of the suite's time. It is over before that thread begins a command or another session.
    """

    server: Server
    name: str
    opened: list[Session] = field(default_factory=list)
    spawned: list[subprocess.Popen[str]] = field(default_factory=list)
    shares: bool = False
    _shared: Session | None = None

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def url_of(self, role: str) -> str:
        """Return the URL for a role of `make_role`, whose password is its name."""
        return self.server.url(self.name, user=role, password=role)

    def connect(self, *, autocommit: bool = False, **conninfo: Any) -> Session:
        """Open a session that ends with its `with` block, or else with the test."""
        self._end_shared()
        session = Session.connect(self.url, autocommit=autocommit, **conninfo)
        self.opened.append(session)
        return session

    def end_sessions(self) -> None:
        """End the sessions of connect() that are still open, all at once: one may wait for another."""
        self._end_shared()
        close_all(*self.opened)
        self.opened.clear()

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own; committed when it returns."""
        if self.shares and _PLAIN.match(statement) and threading.current_thread() is threading.main_thread():
            # Somebody may have ended it since the statement before.
            if self._shared is None or self._shared.closed or _was_told(self._shared):
                self._end_shared()
                self._shared = Session.connect(self.url, autocommit=True, prepare_threshold=None)
            return _rows(self._shared, statement, parameters)
        self._end_shared()
        with Session.connect(self.url, autocommit=True) as connection:
            return _rows(connection, statement, parameters)

    def _end_shared(self) -> None:
        if self._shared and threading.current_thread() is threading.main_thread():
            self._shared.close()
            self._shared = None

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
        return self._fork("alembic", arguments, self.environment(**extra), merge=True)

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
        return self._fork("usage-rollup", arguments, self.environment(**{"COLUMNS": "200", **extra}))

    def run(self, *command: str, cwd: Path | str = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, standard output and error apart.

        `alembic` and `usage-rollup` are forked (programs.py); a path, that of BIN / "alembic", is executed.
        """
        env = self.environment(**extra)
        if command[0] in programs.ENTRY_POINTS:
            return self._fork(command[0], command[1:], env, cwd=cwd)
        self._end_shared()
        return subprocess.run(
            command,
            cwd=cwd,
            env=env,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def _fork(
        self,
        program: str,
        arguments: tuple[str, ...],
        env: dict[str, str],
        *,
        cwd: Path | str = ROOT,
        merge: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, and wait for the end of its sessions, unless others of the test are at work.

        Nor where it went through a pooler, which keeps them.
        """
        self._end_shared()
        before = self.server.runs(self.name)
        done = programs.run(program, arguments, cwd=cwd, env=env, timeout_s=DEADLINE_S, merge=merge)
        direct = f":{self.server.port}/" in env["DATABASE_URL"]
        if direct and all(process.poll() is not None for process in self.spawned):
            self.server.wait_until_gone(*(self.server.runs(self.name) - before))
        return done

    def spawn(self, *command: str, **extra: str) -> subprocess.Popen[str]:
        """Start a process, `alembic` or `./entrypoint.sh`, as run() would; output merged in its stdout."""
        env = self.environment(**extra)
        self._end_shared()
        self.spawned.append(
            programs.Started(command[0], command[1:], cwd=ROOT, env=env)
            if command[0] in programs.ENTRY_POINTS
            else subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        )
        return self.spawned[-1]

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

        self._end_shared()
        with engine(url or self.url, 0).connect() as connection:
            pid: int = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            try:
                yield connection
            finally:
                connection.close()
                self.server.wait_until_gone(pid)


def _was_told(session: Session) -> bool:
    """Tell whether the server has said something unasked, and be it that it has gone."""
    return bool(select.select([session.pgconn.socket], [], [], 0)[0])


def _rows(session: Session, statement: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    # Without parameters a literal % is just that.
    cursor = session.execute(statement, parameters or None)
    return cursor.fetchall() if cursor.description else []


MakeDatabase = Callable[[str], Database]
