"""One backend of a schedule, driven from one thread."""

from __future__ import annotations

from select import select
from typing import Any

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus

# How a session holds advisory lock 4246: the end of the names of PostgreSQL's functions.
EXCLUSIVE, SHARED = "", "_shared"

# One thread: whatever blocks a statement stays there as long as the statement waits.
_OPTIONS = (
    "-c lock_timeout=4ms -c statement_timeout=20s -c client_min_messages=error -c TimeZone=UTC"
    " -c synchronous_commit=off"
)


class Session:
    """One backend: what it was last told, whether it waits at a gate, how it holds 4246 on purpose."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.connect()

    def connect(self) -> None:
        self.connection: psycopg.Connection[Any] = psycopg.connect(
            self._url, autocommit=True, options=_OPTIONS
        )
        self.pgconn = self.connection.pgconn
        # The only one that is ever sent.
        self.pgconn.notice_handler = lambda notice: setattr(self, "_stopped", True)
        self.pid = self.connection.info.backend_pid
        self.at_gate = self.savepoint = self.has_snapshot = False
        self.held: str | None = None
        self.said = ""
        self._stopped = False
        self._last: tuple[str | None, list[str | None]] = (None, [])

    @property
    def in_transaction(self) -> bool:
        return self.pgconn.transaction_status != TransactionStatus.IDLE

    def run(self, sql: str) -> tuple[str | None, list[str | None]]:
        """Run statements; return the SQLSTATE of a failure and the first row of the last result."""
        return self._outcome(self.pgconn.exec_(sql.encode()))

    def stops(self, sql: str) -> bool:
        """Send statements, and say whether they come to a gate; otherwise there is a result()."""
        self._stopped, self._last = False, (None, [])
        self.pgconn.send_query(sql.encode())
        while True:
            # Of several statements the first may have ended, and hides what comes after its result.
            while not self.pgconn.is_busy():
                if (result := self.pgconn.get_result()) is None:
                    return False
                self._last = self._outcome(result)
            if self._stopped:
                return True
            select([self.pgconn.socket], [], [])
            self.pgconn.consume_input()

    def result(self) -> tuple[str | None, list[str | None]]:
        """Wait for the result of what was sent."""
        while (result := self.pgconn.get_result()) is not None:
            self._last = self._outcome(result)
        return self._last

    def _outcome(self, result: Any) -> tuple[str | None, list[str | None]]:
        if result.status == ExecStatus.FATAL_ERROR:
            state = result.error_field(DiagnosticField.SQLSTATE)
            self.said = (result.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
            return (state or b"57P01").decode(), []
        if result.status != ExecStatus.TUPLES_OK or result.ntuples == 0:
            return None, []
        values = [result.get_value(0, column) for column in range(result.nfields)]
        return None, [None if value is None else value.decode() for value in values]

    def must(self, sql: str) -> list[str | None]:
        """Run statements that cannot fail; return the first row of the last result."""
        state, row = self.run(sql)
        assert state is None, (sql, state, self.said)
        return row
