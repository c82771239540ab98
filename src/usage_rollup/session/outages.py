"""Do a run's work in one session, and all of it again in another one when that is lost.

A restart, a failover, a terminated backend and a cut network are the same to a run: its session is over, and
with it its transaction, its settings and its locks. No phase resumes by means of its own. The work begins
again: it takes its locks, asks its checks and reads where the database stands, and so it goes on with what is
left. A commit whose reply never came is found, or not, by that look.

Two sessions of one run are never at work at once. The server's process of a lost session may live on for a
while, and what it was sent may still commit. But it keeps its session advisory locks until its last
transaction is over, because PostgreSQL frees them only when the process goes, and the new session polls for
the same locks before it looks at anything. Where no pooler stands between, the old process is ended first.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..errors import DatabaseUnavailable, Refusal, SessionLost
from . import connection, opening, poolers
from .database_url import conninfo_from_environment
from .options import Options

log = logging.getLogger(__name__)

T = TypeVar("T")

# Losses in a row, with nothing reached in between: a statement that crashes the server is not sent for ever.
MOST_LOSSES = 5

# Before a lost session is opened anew, doubled with each loss in a row; half of it is left to chance.
_PAUSE_S = 0.2

# How often a server that is in recovery is asked whether it has been promoted.
_PROMOTION_POLL_S = 0.5

# How long to wait for one more session, which the run can do without.
ANOTHER_S = 5.0

_RUN = "usage_rollup_run"


@dataclass
class _Run:
    """What outlives the sessions of a run: places it has come to, and the processes that served it."""

    conninfo: str
    options: Options
    places: set[Hashable] = field(default_factory=set)
    losses_in_a_row: int = 0
    backends: set[tuple[int, datetime]] = field(default_factory=set)
    writable: bool = False


def in_session(work: Callable[[sa.Connection], T], options: Options = Options()) -> T:  # noqa: B008
    """Return what `work` makes of a session of migration_session(); done again in another when that is lost.

    Between a loss and the next attempt lies a short, random, growing pause; then the server is waited for as
    at the start of a run. Each loss is logged once. `work` must be fit to be repeated, and print nothing
    before its end. Raises what `work` and migration_session() raise; SessionLost when no server comes within
    DATABASE_STARTUP_TIMEOUT, or after MOST_LOSSES in a row between which the run has reached() nothing new.
    """
    run = _Run(conninfo_from_environment(), options)
    lost: SessionLost | None = None
    while True:
        try:
            with connection.migration_session(options, run.conninfo, **{_RUN: run}) as session:
                _arrive(session, run, again=lost is not None)
                return work(session)
        except DatabaseUnavailable as unavailable:
            if lost is None:
                raise
            raise SessionLost(_nobody_came(lost, unavailable)) from unavailable
        except SessionLost as error:
            if signal := _signal_in(error):
                raise signal from None
            lost = error
        run.losses_in_a_row += 1
        if run.losses_in_a_row >= MOST_LOSSES:
            raise lost
        pause_s = random.uniform(0.5, 1) * _PAUSE_S * 2 ** (run.losses_in_a_row - 1)
        log.warning("the session was lost: %s; another one is opened in %.1f s", _why(lost), pause_s)
        time.sleep(pause_s)


def reached(session: sa.Connection, place: Hashable) -> None:
    """Take note that what leads to `place` is committed: a run that gets on is worth another attempt."""
    run = _run(session)
    if run is not None and place not in run.places:
        run.places.add(place)
        run.losses_in_a_row = 0


def another(session: sa.Connection) -> sa.Connection:
    """Open one more session for the run of `session`, on which its work may rely until either is lost.

    Waits ANOTHER_S at most. Raises DatabaseUnavailable.
    """
    run = _run(session)
    assert run is not None
    more = connection.engine(run.conninfo, ANOTHER_S, run.options.settings(), **{_RUN: run}).connect()
    _note_backend(more, run)
    return more


def _run(session: sa.Connection) -> _Run | None:
    run: _Run | None = session.get_execution_options().get(_RUN)
    return run


def _arrive(session: sa.Connection, run: _Run, *, again: bool) -> None:
    """End what is left of the sessions before, and wait for a primary where there was one."""
    if again:
        _end_backends(session, run)
        give_up = time.monotonic() + opening.startup_timeout_s()
        while run.writable and _is_standby(session) and time.monotonic() < give_up:
            time.sleep(_PROMOTION_POLL_S)
        log.info("a session is open again: the run goes on with what is left")
    _note_backend(session, run)
    run.writable = run.writable or not _is_standby(session)


def _is_standby(session: sa.Connection) -> bool:
    return bool(session.scalar(sa.text("SELECT pg_is_in_recovery()")))


def _note_backend(session: sa.Connection, run: _Run) -> None:
    """Note the process that serves the session, unless a pooler may give it to somebody else afterwards."""
    driver = session.connection.driver_connection
    assert isinstance(driver, poolers.Session)
    if not driver.pooled:
        started = "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        run.backends.add((driver.info.backend_pid, session.scalar(sa.text(started))))


def _end_backends(session: sa.Connection, run: _Run) -> None:
    """End the processes of lost sessions that have not noticed yet, and wait for each up to ten seconds."""
    ended = sa.text(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE pid = :pid AND backend_start = :since"
    )
    for pid, since in run.backends:
        # A role that was switched at login may not; then they are waited for, as anybody's locks are.
        with suppress(DBAPIError):
            session.execute(ended, {"pid": pid, "since": since})
    run.backends.clear()


def _signal_in(error: BaseException | None) -> SystemExit | None:
    """Return the SystemExit on whose way out the loss was noticed, by a rollback."""
    while error is not None and not isinstance(error, SystemExit):
        error = error.__context__
    return error


def _why(lost: SessionLost) -> str:
    return lost.refusal.message


def _nobody_came(lost: SessionLost, unavailable: DatabaseUnavailable) -> Refusal:
    return Refusal(
        f"the session was lost, and no other could be opened: {unavailable.refusal.message}",
        detail=f"it was lost by: {_why(lost)}",
        hint=lost.refusal.hint,
    )
