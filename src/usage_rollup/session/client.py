"""A session whose answers are waited for within a bound, open to signals."""

from __future__ import annotations

import math
import select
import time
from typing import Any

import psycopg

# How long a server, or a pooler, may take for the next statement of a client that it serves already.
ANSWER_S = 5.0

Row = list[str | None]


class Client:
    """A client of a server or a pooler: what it asks is answered within a bound, or not."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def ask(self, text: str, wait_s: float = ANSWER_S) -> list[Row] | None:
        """Return the rows of the last statement of `text`, or None when `wait_s` seconds bring no answer.

        After None an empty `text` goes on waiting; after an error another one may be asked. Raises
        psycopg.Error: the first that was reported, or the end of the session.
        """
        link = self._connection.pgconn
        deadline = time.monotonic() + wait_s
        rows: list[Row] = []
        failed: psycopg.Error | None = None
        try:
            if text:
                link.send_query(text.encode())
                while link.flush():
                    if not _wait(link.socket, select.POLLOUT, deadline):
                        return None
            while True:
                while link.is_busy():
                    if not _wait(link.socket, select.POLLIN, deadline):
                        return None
                    link.consume_input()
                if (result := link.get_result()) is None:
                    break
                if result.error_message:
                    failed = failed or psycopg.errors.error_from_result(result)
                rows = [
                    [
                        None if v is None else v.decode()
                        for v in (result.get_value(n, i) for i in range(result.nfields))
                    ]
                    for n in range(result.ntuples)
                ]
        except psycopg.OperationalError as error:
            raise (failed or error) from error
        if failed:
            raise failed
        return rows

    def close(self) -> None:
        """End it."""
        self._connection.close()


def _wait(descriptor: int, event: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    left_s = max(0.0, deadline - time.monotonic())
    return bool(poll.poll(None if math.isinf(left_s) else left_s * 1000))
