"""Walk what is planned to its end, with one session or several.

Slices are disjoint ranges of hours, and PostgreSQL hands them out (SKIP LOCKED), so no two sessions write
the same bucket. The caller's session, the leader's, holds advisory lock 4246 exclusively and is outside a
transaction, before and after.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from .. import account
from ..contract import HOURLY_ROLLUP
from ..session import advisory_lock, outages
from ..session.options import Options
from . import pace, slices
from .crew import crew
from .pace import Pace
from .progress import slice_progress
from .slices import Slice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Walked:
    """The slices that were walked, in the order of their ends, and how many sessions that was worth."""

    slices: list[Slice]
    sessions: int


@account.phase("rolling up")
def walk(leader: sa.Connection, options: Options) -> Walked:
    """Walk with `options.jobs` sessions, a transaction a slice, and move the watermark at the end.

    Between slices 4246 is given up for the rest that `options` ask for, and for a moment when a session is
    blocked on it (workspace deletion waits 10 s). Raises LockBusy; SessionLost where any of them is lost.
    """
    rows = slices.rows_left(leader)
    outages.reached(leader, ("rows left", rows))
    log.info("backfill: %s usage rows to walk", f"{rows:,}", extra={"fields": {"rows": rows}})
    walked = []
    # Who asks for rest asks for one session.
    jobs = 1 if options.sleep_between_slices_s else options.jobs
    speed = Pace(jobs, partial(pace.has_room, leader))
    # Closed however it is left: that is what cancels the workers' statements.
    with slice_progress(rows) as progress, closing(_walked(leader, options, speed)) as done:
        for one in done:
            walked.append(one)
            speed.note(one)
            progress.advance(one)
    slices.finish(leader)
    account.run.sessions = max(account.run.sessions, speed.proven)
    return Walked(walked, speed.worth)


def rest(session: sa.Connection, options: Options) -> None:
    """Give 4246 up for as long as `options` say, and take it again. Raises LockBusy."""
    advisory_lock.release(session, HOURLY_ROLLUP)
    time.sleep(options.sleep_between_slices_s)
    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))


def _walked(leader: sa.Connection, options: Options, speed: Pace) -> Generator[Slice, None, None]:
    while True:
        if speed.sessions > 1:
            yield from _by_workers(leader, options, speed)
        # Whatever the workers have left, this session walks.
        done = slices.walk_next(leader)
        if done is None:
            return
        yield done
        if options.sleep_between_slices_s or advisory_lock.is_waited_for(leader, HOURLY_ROLLUP):
            rest(leader, options)


def _by_workers(leader: sa.Connection, options: Options, speed: Pace) -> Iterator[Slice]:
    """Yield the slices that sessions of their own walk, `speed.sessions` of them, until no more is left.

    Fewer walk where the server, the role or a pooler has no room for as many; where it has none, nothing is
    yielded. Meanwhile they and the leader hold 4246 shared, each on its own session; afterwards the leader
    holds it exclusively again. Between slices all give it up when a session is blocked on it. Left early, by
    an error or a signal, running statements are cancelled in the server, finished slices stay, and the locks
    go with the sessions.
    """
    patience_s = options.patience_s(advisory_lock.PATIENCE_S)
    with crew(leader) as workers:
        everyone = [leader]
        advisory_lock.release(leader, HOURLY_ROLLUP)
        advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP, patience_s)
        is_left = True
        while is_left or workers.at_work:
            waited_for = advisory_lock.is_waited_for(leader, HOURLY_ROLLUP)
            if waited_for and not workers.at_work:
                for session in everyone:
                    advisory_lock.release(session, HOURLY_ROLLUP, shared=True)
                everyone = [leader, *workers.sessions]
                advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP, patience_s)
                waited_for = False
            if is_left and not waited_for:
                if workers.grow(speed.sessions) < speed.sessions:
                    speed.settle(len(workers.sessions))
                for session in workers.idle[: speed.sessions - workers.at_work]:
                    if session not in everyone and advisory_lock.try_shared(session, HOURLY_ROLLUP):
                        everyone.append(session)
                    if session in everyone:
                        workers.begin(session, slices.walk_next)
                if not workers.sessions:
                    break
            for done in workers.done():
                is_left = is_left and done is not None
                if done is not None:
                    yield done
    advisory_lock.release(leader, HOURLY_ROLLUP, shared=True)
    advisory_lock.acquire(leader, HOURLY_ROLLUP, patience_s)
