"""Walk with several sessions at once: each takes the next slice that nobody else is walking.

Slices are disjoint ranges of hours, and PostgreSQL hands them out (SKIP LOCKED), so no two sessions
write the same bucket. Threads do nothing but wait for their own session's statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import sqlalchemy as sa

from ..session import advisory_lock
from ..session.advisory_lock import HOURLY_ROLLUP
from .progress import Slice

# Walks and commits one slice that nobody else is walking; None when there is none.
NextSlice = Callable[[sa.Connection], Slice | None]

# A cancel is one round trip; a server that does not answer it is not waited for.
_CANCEL_TIMEOUT_S = 10.0


def slices(leader: sa.Connection, jobs: int, next_slice: NextSlice) -> Iterator[Slice]:
    """Yield what `next_slice` returns on `jobs` sessions of their own, until that is None on each.

    Entered with the leader's session holding 4246 exclusively. Meanwhile it and every worker hold it
    shared, each on its own session; afterwards the leader holds it exclusively again. Between slices all
    give it up when a session is blocked on it. Left early, by an error or a signal, running statements
    are cancelled in the server, finished slices stay, and the locks go with the sessions. Raises
    DatabaseUnavailable and LockBusy.
    """
    with ExitStack() as stack:
        sessions = [stack.enter_context(leader.engine.connect()) for _ in range(jobs)]
        everyone = [leader, *sessions]
        advisory_lock.release(leader, HOURLY_ROLLUP)
        advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP)
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        running: dict[Future[Slice | None], sa.Connection] = {}
        stack.callback(_cancel, [_driver(session) for session in sessions])
        idle = list(sessions)
        while True:
            waited_for = advisory_lock.is_waited_for(leader, HOURLY_ROLLUP)
            leader.commit()
            if waited_for and not running:
                for session in everyone:
                    advisory_lock.release(session, HOURLY_ROLLUP, shared=True)
                advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP)
            if not waited_for or not running:
                running.update({pool.submit(next_slice, session): session for session in idle})
                idle.clear()
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                session = running.pop(future)
                done = future.result()
                if done is not None:
                    idle.append(session)
                    yield done
    advisory_lock.release(leader, HOURLY_ROLLUP, shared=True)
    advisory_lock.acquire(leader, HOURLY_ROLLUP)


def _driver(session: sa.Connection) -> psycopg.Connection[Any]:
    driver = session.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _cancel(drivers: list[psycopg.Connection[Any]]) -> None:
    """Cancel what runs; a session that is idle or gone has nothing to cancel."""
    for driver in drivers:
        with suppress(psycopg.OperationalError):
            driver.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
