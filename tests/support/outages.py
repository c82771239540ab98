"""Take a run's sessions away from it: end them in the server, or cut their way there."""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from subprocess import Popen
from urllib.parse import urlsplit

from tests.support.database import Database
from tests.support.product import wait_until

_OURS = "application_name = 'usage-rollup' AND datname = current_database()"


def end_sessions(database: Database) -> None:
    """End what sessions the run has, at least one."""
    # Those that give way and come back are looked up and ended in one statement.
    wait_until(
        lambda: database.execute(
            f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {_OURS}"
        ),
        "its sessions are ended",
    )


def end_what_is_left(database: Database) -> None:
    """End the sessions of a run that was killed, where the server has not noticed it by itself."""
    wait_until(
        lambda: (
            not database.execute(
                f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {_OURS}"
            )
        ),
        "no session of it is left",
    )


def end_every_session(database: Database, run: Popen[str]) -> None:
    """End every session the run opens, once it waits for a lock, until the run gives up."""
    waiting = f"{_OURS} AND wait_event_type = 'Lock'"
    wait_until(
        lambda: (
            database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {waiting}") == []
            and run.poll() is not None
        ),
        "the run gives up",
    )


class Proxy:
    """Pass a database's traffic on, until a connection is cut.

    `lose_commit_after`: once a session has sent what this pattern finds, the server carries out its next
    COMMIT or ROLLBACK, the reply is swallowed, and the client finds its connection closed. `commits_lost`
    counts them; there are `most_commits_lost`.
    """

    def __init__(self, database: Database) -> None:
        url = urlsplit(database.url)
        assert url.port
        self._server = (url.hostname or "", url.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = database.url.replace(f":{url.port}/", f":{port}/")
        self.lose_commit_after: re.Pattern[bytes] | None = None
        self.most_commits_lost = sys.maxsize
        self.commits_lost = 0
        self._passages: list[_Passage] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_clients(self) -> None:
        """Close the clients' side of every connection; the server hears nothing of it."""
        for passage in self._passages:
            passage.cut = True
            _close(passage.client)

    def cut_server(self) -> None:
        """Close both sides of every connection."""
        for passage in self._passages:
            _close(passage.client)
            _close(passage.server)
        self._passages.clear()

    def close(self) -> None:
        """End everything."""
        _close(self._listener)
        self.cut_server()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                passage = _Passage(client, socket.create_connection(self._server))
                self._passages.append(passage)
                threading.Thread(target=self._forth, args=[passage], daemon=True).start()
                threading.Thread(target=self._back, args=[passage], daemon=True).start()

    def _forth(self, passage: _Passage) -> None:
        with suppress(OSError):
            sent = b""
            while data := passage.client.recv(65536):
                sent += data
                if data.endswith((b"COMMIT\0", b"ROLLBACK\0")):
                    passage.swallows = self._loses(sent)
                    sent = b""
                passage.server.sendall(data)
        if not passage.cut:
            _close(passage.server)

    def _loses(self, sent: bytes) -> bool:
        wanted = self.lose_commit_after
        return wanted is not None and self.commits_lost < self.most_commits_lost and bool(wanted.search(sent))

    def _back(self, passage: _Passage) -> None:
        with suppress(OSError):
            while data := passage.server.recv(65536):
                if passage.swallows:
                    self.commits_lost += 1
                    break
                passage.client.sendall(data)
        _close(passage.client)


@dataclass
class _Passage:
    client: socket.socket
    server: socket.socket
    cut: bool = False
    swallows: bool = False


@contextmanager
def proxy(database: Database) -> Iterator[Proxy]:
    """Yield a proxy before the database's server; its connections end with the block."""
    made = Proxy(database)
    try:
        yield made
    finally:
        made.close()


def _close(end: socket.socket) -> None:
    # close() alone would not wake up whoever reads from it.
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
