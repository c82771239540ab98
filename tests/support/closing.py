"""Sessions that are over in the server, too, when close() returns, as at the end of a `with`.

psycopg's own returns earlier, and until then the server's process holds its locks, advisory lock 4246 among
them, and its place in the database: the next step of a test would meet them, or not.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

import psycopg

from tests.support.deadline import DEADLINE_S


class Session(psycopg.Connection[Any]):
    """A session that nothing is left of when it is closed. Raises TimeoutError where something is."""

    def close(self) -> None:
        close_all(self)

    def _hang_up(self) -> socket.socket | None:
        """Close the client's side; return its socket, on which the end of the server's process will show."""
        end = None if self.closed else socket.socket(fileno=os.dup(self.pgconn.socket))
        super().close()
        return end


def close_all(*sessions: Session) -> None:
    """Close sessions all at once: one may wait for another."""
    ends = [session._hang_up() for session in sessions]
    for end in filter(None, ends):
        with end, suppress(ConnectionError):
            end.settimeout(DEADLINE_S)
            # The kernel closes the server's side, when the process is gone.
            while end.recv(8192):
                pass
