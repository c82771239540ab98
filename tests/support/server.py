"""Start a throw-away PostgreSQL for tests and the demo, or borrow one that already runs.

binaries.py says which binaries. TEST_DATABASE_URL names a server somebody else runs; `open_server`
prefers it. `python -m tests.support.server` starts one by hand.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.support.binaries import binaries
from tests.support.deadline import DEADLINE_S
from tests.support.product import wait_until

SUPERUSER = "postgres"
PASSWORD = "multica"
LOCALES = ("C.UTF-8", "C")  # macOS and old libc know only the second
# Thousands of small databases are made and dropped: ext4 spends a fifth of the suite's time on finding inodes
# that were not freed in the last minute.
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 6 * 2**30
PORT_ATTEMPTS = 10
DEFAULTS: Mapping[str, str] = {
    "fsync": "off",  # only the machine's own crash needs it; a killed server loses nothing
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "100",
    "max_prepared_transactions": "10",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "256MB",
    "max_wal_size": "4GB",
    # A tick on a loaded machine must not leave work to the next; tests of the budget set their own.
    "usage_rollup.tick_budget": "10min",
}

# Waits until the launching Python closes the pipe or dies, even by SIGKILL, then ends the server
# and deletes its directory. Waiting is for the pid file, because an orphan that nobody reaps keeps
# its pid; the repeated rm is for an initdb that is still writing.
KEEPER = """
read -r _
pidfile=$1/data/postmaster.pid n=0
[ ! -e "$pidfile" ] || kill -QUIT "$(head -n 1 "$pidfile")"
while [ -e "$pidfile" ] && [ $((n += 1)) -le 100 ]; do sleep 0.1; done
for _ in 1 2 3 4 5; do rm -rf -- "$1" && break; sleep 1; done
"""

StopMode = Literal["fast", "immediate"]


class Server:
    """Name the databases of one server.

    This class is a server somebody else runs: `stop` and `restart` raise RuntimeError.
    """

    def __init__(self, conninfo: str) -> None:
        options = {key: str(value) for key, value in conninfo_to_dict(conninfo).items()}
        self._admin = options.pop("dbname", "postgres")
        self._user = options.pop("user", "")
        self._password = options.pop("password", "")
        self._host = options.pop("host", "")
        self._port = options.pop("port", "")
        self._options = options
        self._session: psycopg.Connection | None = None

    def url(
        self,
        dbname: str = "postgres",
        *,
        user: str | None = None,
        password: str | None = None,
        socket: bool = False,
    ) -> str:
        """Compose the URL of a database, in the form the field uses.

        User and password default to the superuser's; socket=True goes through the unix socket,
        where the launched server trusts every role.
        """
        user = quote(self._user if user is None else user, safe="")
        password = quote(self._password if password is None else password, safe="")
        login = user + (f":{password}" if password else "")
        host = self._socket_directory() if socket else self._host
        options = self._options
        if host.startswith("/"):  # a URL carries a socket's directory as a parameter
            options = {"host": host, "port": self._port, **options}
            place = ""
        else:
            place = f"[{host}]" if ":" in host else host
            place += f":{self._port}" if self._port else ""
        query = urlencode({k: v for k, v in options.items() if v}, safe="/", quote_via=quote)
        return (
            f"postgres://{login + '@' if login else ''}{place}/{quote(dbname, safe='')}"
            f"{'?' + query if query else ''}"
        )

    @cached_property
    def version(self) -> int:
        """Read the server's version as PostgreSQL numbers it: 170010 is 17.10."""
        with self._connect() as conn:
            return conn.info.server_version

    @property
    def port(self) -> int:
        """Return its TCP port, the default one where none is named."""
        return int(self._port or 5432)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, empty or as a copy of template, and return its URL.

        Nobody may be connected to the template meanwhile.
        """
        # Half the time of the default, which writes every page to the WAL.
        self._execute("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template or "template0")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, together with every session still connected to it."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def create_role(self, name: str, attributes: str = "") -> None:
        """Create a login role, whose password is its name."""
        self._execute(f"CREATE ROLE {{}} LOGIN PASSWORD '{_verifier(name)}' {attributes}", name)

    def drop_role(self, name: str) -> None:
        """Drop a role, which owns nothing any more."""
        self._execute("DROP ROLE IF EXISTS {}", name)

    def wait_until_gone(self, *pids: int) -> None:
        """Wait until sessions that their clients have closed are over in the server, too.

        Until then the server's process holds its advisory locks and its place in the database. A server
        that is down, or full, has none that a test could wait for.
        """
        alive = "SELECT FROM pg_stat_activity WHERE pid = ANY(%s)"
        if not pids:
            return
        with contextlib.suppress(psycopg.OperationalError), self._admin_session() as conn:
            wait_until(
                lambda: not conn.execute(alive, [list(pids)]).fetchall(), f"{pids} have ended", every_s=0.002
            )

    def runs(self, name: str) -> set[int]:
        """Return the sessions of runs in a database, none where asking would take a session more."""
        if self._session is None:
            return set()
        query = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name = 'usage-rollup'"
        return {pid for (pid,) in self._session.execute(query, [name])}

    @contextlib.contextmanager
    def administered(self) -> Iterator[None]:
        """Make, drop and wait in one session of the database that is the server's own, not in one each."""
        with self._connect() as self._session:
            yield
        self._session = None

    def program(self, name: str) -> str:
        """Return the path of a client program, pg_dump or psql, of the binaries at hand."""
        return str(binaries() / name)

    def stop(self, mode: StopMode = "fast") -> None:
        """Refuse: this server belongs to somebody else."""
        raise RuntimeError(f"the server of TEST_DATABASE_URL is not ours to stop ({mode})")

    def restart(self, *, standby: bool = False) -> None:
        """Refuse: this server belongs to somebody else."""
        raise RuntimeError("the server of TEST_DATABASE_URL is not ours to restart")

    def _socket_directory(self) -> str:
        if not self._host.startswith("/"):
            raise RuntimeError("TEST_DATABASE_URL names no socket directory")
        return self._host

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self.url(self._admin), autocommit=True, connect_timeout=int(DEADLINE_S))

    def _admin_session(self) -> contextlib.AbstractContextManager[psycopg.Connection]:
        return contextlib.nullcontext(self._session) if self._session else self._connect()

    def _execute(self, statement: str, *names: str) -> None:
        with self._admin_session() as conn:
            # The statements are this module's constants; only the names vary, and they are quoted.
            query: Any = statement
            conn.execute(sql.SQL(query).format(*map(sql.Identifier, names)))


class ThrowAwayServer(Server):
    """Run a PostgreSQL of our own in one directory under /tmp, unprivileged even as root.

    `in_memory` puts it under /dev/shm instead, where that has room.

    `close` stops it and deletes the directory. A launching Python that dies first, by whatever
    signal, leaves neither server nor directory behind; a machine that dies leaves the directory.
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        installed: Path | None = None,
        environment: Mapping[str, str] = {},
        *,
        in_memory: bool = False,
    ) -> None:
        self._environment = environment
        # /tmp whatever TMPDIR says: a socket's path may have 107 bytes.
        parent = MEMORY if in_memory and _has_room(MEMORY) else "/tmp"
        self._directory = Path(tempfile.mkdtemp(prefix="usage-rollup-pg-", dir=parent))
        self._account = unprivileged_account()
        self._process: subprocess.Popen[bytes] | None = None
        if self._account:
            os.chown(self._directory, self._account["user"], self._account["group"])
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", str(self._directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._child(),
        )
        try:
            self._bin = self._reachable(installed or binaries())
            self._initdb({**DEFAULTS, **settings})
            port = self._start_on_free_port()
        except BaseException:
            self.close()
            raise
        super().__init__(f"user={SUPERUSER} password={PASSWORD} host=127.0.0.1 port={port} sslmode=disable")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and keep its directory; no effect when it is stopped.

        "fast" rolls back and writes a checkpoint; "immediate" is a crash, recovered from at the
        next start. A server that does not go is stopped harder.
        """
        if self._process is None:
            return
        for attempt in ("fast", "immediate") if mode == "fast" else ("immediate",):
            self._process.send_signal(signal.SIGINT if attempt == "fast" else signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DEADLINE_S)
                break
        else:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self, *, standby: bool = False) -> None:
        """Start the server again on its directory and port, stopping it first where it runs.

        As a `standby` it stays in recovery, with nobody to follow, until it is promoted.
        """
        self.stop()
        if standby:
            (self._directory / "data" / "standby.signal").touch()
        self._start(int(self._port))

    @property
    def directory(self) -> Path:
        """Return where the server's data, log and socket are."""
        return self._directory

    def keep(self) -> str:
        """Stop the server for good, but leave its directory; return the command that starts it again."""
        self.stop()
        self._keeper.kill()
        account = f"setpriv --reuid {self._account['user']} --clear-groups " if self._account else ""
        return (
            f"{account}{self._bin / 'postgres'} -D {self._directory / 'data'}"
            f" -p {self._port} -k {self._directory} -c listen_addresses=127.0.0.1"
        )

    def close(self) -> None:
        """Stop the server and delete its directory."""
        try:
            self.stop()
        finally:
            self._keeper.communicate(timeout=DEADLINE_S)

    def _child(self) -> dict[str, Any]:
        # A session of its own: Ctrl-C in the terminal ends the tests, which then end the server.
        # The caller's PG* variables are meant for clients and would reconfigure the server.
        env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        return {
            "cwd": self._directory,
            "env": {**env, "LC_ALL": "C", **self._environment},
            "start_new_session": True,
            **self._account,
        }

    def _reachable(self, directory: Path) -> Path:
        """Return binaries that the account can run, copied where a parent directory is private."""
        if not self._account:
            return directory
        with contextlib.suppress(PermissionError):
            if self._run(directory / "postgres", "--version").returncode == 0:
                return directory
        copy = self._directory / "install"
        shutil.copytree(directory.parent, copy, symlinks=True)
        for path in (copy, *copy.rglob("*")):  # the keeper deletes it, as this account
            os.chown(path, self._account["user"], self._account["group"], follow_symlinks=False)
        return copy / directory.name

    def _run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=DEADLINE_S, **self._child()
        )

    def _initdb(self, settings: Mapping[str, str]) -> None:
        data, password = self._directory / "data", self._directory / "password"
        password.write_text(_verifier(PASSWORD))
        password.chmod(0o644)  # for the account, whatever the umask; the directory is private
        for locale in LOCALES:
            done = self._run(
                *(self._bin / "initdb", f"--pgdata={data}", f"--username={SUPERUSER}"),
                *("--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"),
                *(f"--pwfile={password}", "--encoding=UTF8"),
                f"--locale={locale}",
            )
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")
        with (data / "postgresql.conf").open("a") as conf:
            for name, value in settings.items():
                conf.write(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n")

    def _start_on_free_port(self) -> int:
        for _ in range(PORT_ATTEMPTS):
            port = free_port()
            try:
                self._start(port)
            except RuntimeError:
                if _port_is_free(port):
                    raise
            else:
                return port
        raise RuntimeError(f"no free loopback port in {PORT_ATTEMPTS} attempts")

    def _start(self, port: int) -> None:
        log = self._directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(self._bin / "postgres", "-D", self._directory / "data"),
                    *("-p", str(port), "-k", self._directory),
                    *("-c", "listen_addresses=127.0.0.1"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **self._child(),
            )
        # Asked on the socket: another server could have taken the port and answer for ours.
        conninfo = f"host={self._directory} port={port} user={SUPERUSER} dbname=postgres".encode()
        deadline = time.monotonic() + DEADLINE_S
        while psycopg.pq.PGconn.ping(conninfo) != psycopg.pq.Ping.OK:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop("immediate")
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise RuntimeError(f"PostgreSQL did not start; the end of its log:\n{tail}")
            time.sleep(0.02)

    def _socket_directory(self) -> str:
        return str(self._directory)


@contextlib.contextmanager
def start_server(
    settings: Mapping[str, str] = {}, installed: Path | None = None, *, in_memory: bool = False
) -> Iterator[Server]:
    """Start a throw-away server, yield it, then stop it and delete its data.

    The settings go to postgresql.conf over DEFAULTS; the binaries in `installed` win over the chosen
    ones. Raises RuntimeError with the end of the server's log where it does not start.
    """
    server = ThrowAwayServer(settings, installed, in_memory=in_memory)
    try:
        yield server
    finally:
        server.close()


def running_server(url: str) -> Server:
    """Borrow a server somebody else runs; url needs a role that may create databases."""
    return Server(url)


@contextlib.contextmanager
def open_server(settings: Mapping[str, str] = {}, *, in_memory: bool = False) -> Iterator[Server]:
    """Yield the server of TEST_DATABASE_URL, as it is configured, else a throw-away one."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield running_server(url)
    else:
        with start_server(settings, in_memory=in_memory) as server:
            yield server


def _has_room(directory: Path) -> bool:
    """Tell whether a file system, if there is one, has room for four servers of tests, and runs programs.

    Room of its own, and free memory behind it. Binaries out of reach are copied to where the server lives.
    """
    if not directory.is_dir() or os.statvfs(directory).f_flag & os.ST_NOEXEC:
        return False
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(memory, shutil.disk_usage(directory).free) >= MEMORY_BYTES


def unprivileged_account() -> dict[str, Any]:
    """Choose the account for the server's processes, as Popen's arguments; none unless root."""
    if os.geteuid() != 0:
        return {}
    accounts = sorted(pwd.getpwall(), key=lambda entry: entry.pw_name != "nobody")
    entry = next(entry for entry in accounts if entry.pw_uid != 0)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _verifier(password: str) -> str:
    """Return what PostgreSQL keeps of a SCRAM password, derived in one iteration instead of 4096.

    Those took more than half of the time of each of the suite's many thousand connections.
    """
    salt = b"usage-rollup pg!"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations=1)
    client, server = (hmac.digest(salted, key, "sha256") for key in (b"Client Key", b"Server Key"))
    stored = hashlib.sha256(client).digest()
    texts = (base64.b64encode(binary).decode() for binary in (salt, stored, server))
    return "SCRAM-SHA-256$1:{}${}:{}".format(*texts)


def free_port() -> int:
    """Choose a free port below the range of outgoing connections, so that a restart finds it free again."""
    for _ in range(PORT_ATTEMPTS):
        port = random.SystemRandom().randrange(15_000, 32_000)
        if _port_is_free(port):
            return port
    raise RuntimeError(f"no free loopback port in {PORT_ATTEMPTS} attempts")


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> None:
    """Run a throw-away server until Ctrl-C."""
    with start_server() as server, contextlib.suppress(KeyboardInterrupt):
        note = "Ctrl-C stops the server and deletes its data."
        print(server.url(), note, sep="\n", flush=True)  # noqa: T201
        signal.pause()


if __name__ == "__main__":
    main()
