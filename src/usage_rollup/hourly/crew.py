"""More sessions at work beside the leader's, each in a thread that only waits for its statement."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import sqlalchemy as sa

from ..errors import UsageRollupError
from ..session import outages

log = logging.getLogger(__name__)

# A cancel is one round trip; a server that does not answer it is not waited for.
_CANCEL_TIMEOUT_S = 10.0

# What -x jobs may ask for.
_MOST = 99


class Crew:
    """Sessions that were opened for the leader's run, some of them at work."""

    def __init__(self, leader: sa.Connection, threads: ThreadPoolExecutor) -> None:
        self.leader = leader
        self.sessions: list[sa.Connection] = []
        self._threads = threads
        self._at_work: dict[Future[Any], sa.Connection] = {}
        # Kept from the beginning: asked for that of a lost session, SQLAlchemy would open another one.
        self._drivers: dict[sa.Connection, psycopg.Connection[Any]] = {}

    @property
    def at_work(self) -> int:
        """Return how many of them have a statement running."""
        return len(self._at_work)

    @property
    def idle(self) -> list[sa.Connection]:
        """Return those that wait for work."""
        busy = {*self._at_work.values()}
        return [session for session in self.sessions if session not in busy]

    def grow(self, number: int) -> int:
        """Open sessions until there are `number`, or all that can be had, and say so; return how many.

        A run that could do alone does not fail for want of company, whatever the reason.
        """
        while len(self.sessions) < number:
            try:
                session = outages.another(self.leader)
            except UsageRollupError as error:
                there = max(1, len(self.sessions))
                log.warning("%d of %d sessions work: %s", there, number, error.refusal.message)
                break
            self.sessions.append(session)
            self._drivers[session] = _driver(session)
        return len(self.sessions)

    def begin(self, session: sa.Connection, work: Callable[[sa.Connection], object]) -> None:
        """Let `session` do `work`, whose result done() brings."""
        self._at_work[self._threads.submit(work, session)] = session

    def done(self) -> Iterator[Any]:
        """Wait until one of them has ended its work, and yield what came of it; raise what it raised."""
        finished, _ = wait(self._at_work, return_when=FIRST_COMPLETED)
        for future in finished:
            del self._at_work[future]
            yield future.result()

    def end(self) -> None:
        """Cancel what runs, wait for no answer of a server that is gone, and close all sessions."""
        if self._at_work:
            drivers = {future: self._drivers[session] for future, session in self._at_work.items()}
            with ThreadPoolExecutor(len(drivers)) as cancelling:
                list(cancelling.map(_cancel, drivers.values()))
            _, unanswered = wait(drivers, _CANCEL_TIMEOUT_S)
            for future in unanswered:
                with suppress(OSError, psycopg.OperationalError):
                    socket.socket(fileno=os.dup(drivers[future].fileno())).shutdown(socket.SHUT_RDWR)
        self._threads.shutdown()
        for session in self.sessions:
            session.close()


@contextmanager
def crew(leader: sa.Connection) -> Iterator[Crew]:
    """Lend a crew to the run of `leader`, of nobody yet; when the block is left, nothing of it runs."""
    lent = Crew(leader, ThreadPoolExecutor(_MOST))
    try:
        yield lent
    finally:
        lent.end()


def _driver(session: sa.Connection) -> psycopg.Connection[Any]:
    driver = session.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _cancel(driver: psycopg.Connection[Any]) -> None:
    # A session that is idle or gone has nothing to cancel.
    with suppress(psycopg.OperationalError):
        driver.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
