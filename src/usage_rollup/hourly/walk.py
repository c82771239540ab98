"""Walk what is planned to its end, with one session or several.

Slices are disjoint ranges of hours, and PostgreSQL hands them out (SKIP LOCKED), so no two sessions write
the same bucket. The caller's session, the leader's, holds advisory lock 4246 exclusively and is outside a
transaction, before and after.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from typing import Any

import psycopg
import sqlalchemy as sa

from ..contract import HOURLY_ROLLUP
from ..errors import DatabaseUnavailable
from ..session import advisory_lock, outages
from ..session.options import Options
from . import slices
from .progress import slice_progress
from .slices import Slice

log = logging.getLogger(__name__)

# A cancel is one round trip; a server that does not answer it is not waited for.
_CANCEL_TIMEOUT_S = 10.0


def walk(leader: sa.Connection, options: Options) -> list[Slice]:
    """Walk with `options.jobs` sessions at once, a transaction a slice, and move the watermark at the end.

    Between slices 4246 is given up for the rest that `options` ask for, and for a moment when a session is
    blocked on it (workspace deletion waits 10 s). Raises LockBusy; SessionLost where any of them is lost.
    """
    rows = slices.rows_left(leader)
    outages.reached(leader, ("rows left", rows))
    log.info("backfill: %d usage rows to walk", rows)
    walked = []
    # Closed however it is left: that is what cancels the workers' statements.
    with slice_progress(rows) as progress, closing(_walked(leader, options)) as done:
        for one in done:
            walked.append(one)
            progress.advance(one)
    slices.finish(leader)
    return walked


def rest(session: sa.Connection, options: Options) -> None:
    """Give 4246 up for as long as `options` say, and take it again. Raises LockBusy."""
    advisory_lock.release(session, HOURLY_ROLLUP)
    time.sleep(options.sleep_between_slices_s)
    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))


def _walked(leader: sa.Connection, options: Options) -> Generator[Slice, None, None]:
    if options.jobs > 1:
        yield from _by_workers(leader, options)
    # Whatever the workers have left, this session walks.
    while (done := slices.walk_next(leader)) is not None:
        yield done
        if options.sleep_between_slices_s or advisory_lock.is_waited_for(leader, HOURLY_ROLLUP):
            rest(leader, options)


def _by_workers(leader: sa.Connection, options: Options) -> Iterator[Slice]:
    """Yield the slices that sessions of their own walk, until each has found none.

    Fewer walk where the server, the role or a pooler has no room for as many; none, and nothing is yielded.
    Meanwhile they and the leader hold 4246 shared, each on its own session; afterwards the leader holds it
    exclusively again. Between slices all give it up when a session is blocked on it. Left early, by an error
    or a signal, running statements are cancelled in the server, finished slices stay, and the locks go
    with the sessions. Threads do nothing but wait for their own session's statement.
    """
    patience_s = options.patience_s(advisory_lock.PATIENCE_S)
    with ExitStack() as stack:
        workers = [stack.enter_context(worker) for worker in _workers(leader, options.jobs)]
        if not workers:
            return
        everyone = [leader, *workers]
        advisory_lock.release(leader, HOURLY_ROLLUP)
        advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP, patience_s)
        pool = stack.enter_context(ThreadPoolExecutor(len(workers)))
        running: dict[Future[Slice | None], sa.Connection] = {}
        stack.callback(_end, running, {worker: _driver(worker) for worker in workers})
        idle = list(workers)
        while True:
            waited_for = advisory_lock.is_waited_for(leader, HOURLY_ROLLUP)
            if waited_for and not running:
                for session in everyone:
                    advisory_lock.release(session, HOURLY_ROLLUP, shared=True)
                advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP, patience_s)
            if not waited_for or not running:
                running.update({pool.submit(slices.walk_next, worker): worker for worker in idle})
                idle.clear()
            if not running:
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                worker = running.pop(future)
                done = future.result()
                if done is not None:
                    idle.append(worker)
                    yield done
    advisory_lock.release(leader, HOURLY_ROLLUP, shared=True)
    advisory_lock.acquire(leader, HOURLY_ROLLUP, patience_s)


def _workers(leader: sa.Connection, jobs: int) -> Iterator[sa.Connection]:
    """Yield `jobs` more sessions, or as many as can be had, and say so."""
    for number in range(jobs):
        try:
            worker = outages.another(leader)
        except DatabaseUnavailable as error:
            log.warning("%d of %d sessions walk: %s", max(1, number), jobs, error.refusal.message)
            return
        yield worker


def _driver(session: sa.Connection) -> psycopg.Connection[Any]:
    driver = session.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


def _end(
    running: Mapping[Future[Slice | None], sa.Connection],
    drivers: Mapping[sa.Connection, psycopg.Connection[Any]],
) -> None:
    """Cancel what runs, and let nobody wait for an answer for ever: a server that is gone gives none."""
    if not running:
        return
    with ThreadPoolExecutor(len(running)) as pool:
        list(pool.map(_cancel, [drivers[worker] for worker in running.values()]))
    _, unanswered = wait(running, _CANCEL_TIMEOUT_S)
    for future in unanswered:
        with suppress(OSError, psycopg.OperationalError):
            socket.socket(fileno=os.dup(drivers[running[future]].fileno())).shutdown(socket.SHUT_RDWR)


def _cancel(driver: psycopg.Connection[Any]) -> None:
    # A session that is idle or gone has nothing to cancel.
    with suppress(psycopg.OperationalError):
        driver.cancel_safe(timeout=_CANCEL_TIMEOUT_S)
