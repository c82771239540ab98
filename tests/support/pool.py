"""A pooler in a few lines, over real sessions: who is served by which server process, and who is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from psycopg.pq import TransactionStatus

from tests.support.database import Connection
from usage_rollup.session.client import ANSWER_S, Client, Row


@dataclass
class Pool:
    """At most `size` server processes, started when they are needed.

    A free one is given to the next client that asks: the one that became free last, or each in turn. In mode
    "session" a client keeps it until it closes, else until its transaction ends.
    """

    start: Callable[[], Connection]
    size: int
    mode: Literal["session", "transaction"]
    in_turn: bool = False
    free: list[Connection] = field(default_factory=list)
    started: int = 0
    # Others' clients at work: runs before a client of the test's is served.
    others: Callable[[], object] = lambda: None

    def client(self) -> PooledClient:
        return PooledClient(self)

    def take(self) -> Connection | None:
        if self.free:
            return self.free.pop(0 if self.in_turn else -1)
        if self.started == self.size:
            return None
        self.started += 1
        return self.start()

    def warm(self, number: int) -> None:
        """Have `number` processes started, and free."""
        self.free += [process for process in [self.take() for _ in range(number)] if process]


class PooledClient(Client):
    """A client of a Pool. What there is no process for is not answered, and not asked again."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.process: Connection | None = None

    def ask(self, text: str, wait_s: float = ANSWER_S) -> list[Row] | None:
        if not text:
            return None
        if self.process is None:
            self.pool.others()
            self.process = self.pool.take()
        if self.process is None:
            return None
        answer = Client(self.process).ask(text, wait_s)
        if self.pool.mode == "transaction" and self.process.info.transaction_status == TransactionStatus.IDLE:
            self.close()
        return answer

    def close(self) -> None:
        if self.process:
            self.pool.free.append(self.process)
        self.process = None
