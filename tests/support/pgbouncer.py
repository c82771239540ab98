"""A real PgBouncer in front of a test's server, in any of its modes.

Debian's package, from `PGBOUNCER` or the path where it is installed; else apt fetches it once, without
being root, and it is unpacked beside this Python. Where there is no apt, tests that ask for it are skipped
and say so: what they hold of the logic, tests/session/test_poolers.py holds everywhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.support.deadline import DEADLINE_S
from tests.support.server import Server, free_port, unprivileged_account

# The pooler, and the one library that it needs and an ordinary Debian lacks.
PACKAGES = ("pgbouncer", "libc-ares2")


class PgBouncer:
    """A pooler that runs, on a port of its own."""

    def __init__(self, server: Server, program: Path, **settings: str | int) -> None:
        self._server = conninfo_to_dict(server.url())
        self._account = unprivileged_account()
        self._directory = Path(tempfile.mkdtemp(prefix="usage-rollup-pgbouncer-", dir="/tmp"))
        self.port = free_port()
        self._environment = {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": str(next(iter(program.parent.parent.glob("lib/*-linux-*")), "")),
        }
        self._program = program
        self._configure(settings)
        self._start()

    def url(self, database: str) -> str:
        """Return the URL of a database behind the pooler, for the user of the server's own."""
        login = f"{self._server['user']}:{self._server.get('password', '')}"
        return f"postgres://{login}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def serve(self, name: str, conninfo: str) -> None:
        """Have one database more, with parameters of its own beside the server's address."""
        server, ini = self._server, self._directory / "ini"
        line = f"[databases]\n{name} = host={server['host']} port={server['port']} {conninfo}\n"
        ini.write_text(ini.read_text().replace("[databases]\n", line))
        with psycopg.connect(self.url("pgbouncer"), autocommit=True) as console:
            console.execute("RELOAD")

    def restart(self) -> None:
        """End every session through it, and start anew on the same port."""
        self._stop()
        self._start()

    def close(self) -> None:
        """Stop it and delete its directory."""
        self._stop()
        shutil.rmtree(self._directory)

    def _configure(self, settings: dict[str, str | int]) -> None:
        server = self._server
        (self._directory / "users").write_text(f'"{server["user"]}" "{server.get("password", "")}"\n')
        options = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": self._directory / "users",
            "admin_users": server["user"],
            **settings,
        }
        lines = ["[databases]", f"* = host={server['host']} port={server['port']}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in options.items()]
        (self._directory / "ini").write_text("\n".join(lines) + "\n")
        if self._account:
            for path in (self._directory, *self._directory.iterdir()):
                os.chown(path, self._account["user"], self._account["group"])

    def _start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, self._directory / "ini"],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        deadline = time.monotonic() + DEADLINE_S
        while True:
            # Its own console: no session of the server's is opened.
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url("pgbouncer"), autocommit=True).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._stop()
                tail = (self._directory / "log").read_text().splitlines()[-10:]
                raise RuntimeError("\n".join(["PgBouncer did not start:", *tail]))
            time.sleep(0.02)

    def _stop(self) -> None:
        self._process.terminate()  # SIGTERM: at once, whoever is connected
        self._process.wait(DEADLINE_S)


@contextlib.contextmanager
def pgbouncer(server: Server, **settings: str | int) -> Iterator[PgBouncer]:
    """Run a pooler in front of a server: pool_mode, default_pool_size and whatever else its file takes."""
    pooler = PgBouncer(server, _program(), **settings)
    try:
        yield pooler
    finally:
        pooler.close()


def _program() -> Path:
    """Return the program, fetched by the first call; skip the test where it cannot be had."""
    if given := os.environ.get("PGBOUNCER") or shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"):
        return Path(given)
    home = Path(sys.prefix, "pgbouncer")
    if not home.exists():
        try:
            _fetch(home)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no PgBouncer, and apt has none to fetch; PGBOUNCER names one: {error}")
    return home / "usr/sbin/pgbouncer"


def _fetch(home: Path) -> None:
    """Unpack Debian's packages in `home`; workers that do so at the same time do not mind each other."""
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        # Lists and cache of its own: nothing of the machine's is written, nor need they be there.
        apt = ["apt-get", "-qq", f"-oDir::State={scratch}", f"-oDir::Cache={scratch}"]
        apt += ["-oDir::State::status=/var/lib/dpkg/status"]
        Path(scratch, "lists/partial").mkdir(parents=True)
        Path(scratch, "archives/partial").mkdir(parents=True)
        for command in (["update"], ["download", *PACKAGES]):
            subprocess.run([*apt, *command], cwd=scratch, check=True, capture_output=True, timeout=300)
        unpacked = Path(scratch, "unpacked")
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        with contextlib.suppress(OSError):
            unpacked.rename(home)
