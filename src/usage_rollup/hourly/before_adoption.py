"""Prove the hourly rollup where another runner dropped the legacy rollups: the hook before 103 is adopted.

The product's own runner may stamp the watermark over usage that nobody rolled up, and goes on to 103 and
later. The legacy rollups are gone then and a container has to start: so nothing here stops the run. What
cannot be proven or mended is said in one warning, with the command that does it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..contract import HOURLY_ROLLUP
from ..errors import LockBusy, Refusal, SessionLost, UsageRollupError, explain
from ..queries import beside
from ..session import advisory_lock
from ..session.options import Options
from . import backfill, pipeline, products_pipeline, proof, slices
from .walk import walk

log = logging.getLogger(__name__)

_SQL = beside(__file__)

# A tick is over long before, and a start-up probe of minutes must not meet a lock that somebody has leaked.
PATIENCE_S = 60.0

# Hours that the product's window may recompute at start-up: in the first releases it joins every key to all
# tasks of its agent (issue 4), and a container is waited for.
MOST_HOURS = 24

# What the comparison, and each hour that the product's window recomputes, may take of a start-up.
DEADLINE = "2 min"

REPAIR = "usage-rollup backfill --repair"


def prove_before_adoption(session: sa.Connection, options: Options) -> None:
    """Make the rollup of a database that another runner took past 103 equal to raw usage, or say what is not.

    1. Take advisory lock 4246, by polling.
    2. What a walk of ours has left there, overtaken: finish it where our window is installed, otherwise
       rebuild the indexes it dropped and empty its plan.
    3. Compare; recompute what differs through the window that is installed. Through the product's, MOST_HOURS
       at most, and each within DEADLINE.

    Entered and left outside a transaction; 4246 is given back. Killed at any moment, the next run does it
    again, because the adoption is recorded afterwards. Raises only SessionLost.
    """
    installed = pipeline.find(session)
    if not (installed.tables and installed.installed):
        log.warning("another runner went past 103 here, and there is no hourly rollup to compare")
        return
    log.info("another runner went past 103 here: comparing the hourly rollup with raw usage")
    try:
        advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(PATIENCE_S))
        if installed.readable:
            _attempt(lambda: _tidy(session, options, ours=installed.ours))
        _attempt(lambda: _prove(session, options, ours=installed.ours))
    except LockBusy as error:
        _warn(error.refusal)
    else:
        advisory_lock.release(session, HOURLY_ROLLUP)


def _tidy(session: sa.Connection, options: Options, *, ours: bool) -> None:
    """Leave no plan and no missing index of an overtaken walk."""
    if ours and slices.is_planned(session):
        log.info("finishing the backfill that another runner has overtaken")
        walk(session, options)
    elif slices.give_up(session):
        log.info("the backfill that another runner has overtaken is given up; its indexes are built")


def _prove(session: sa.Connection, options: Options, *, ours: bool) -> None:
    """Compare, and recompute what differs; raises BackfillRefused when hours differ afterwards."""
    watermark = session.scalar(sa.text(_SQL["future_watermark"]))
    if watermark is not None:
        _warn(backfill.future_watermark(watermark))
    if ours:
        proof.repair(session, options)
        return
    reading = pipeline.reading(session)
    with _deadline(session):
        differing, waiting = session.execute(reading.sql(_SQL["differing"])).one()
        if differing > MOST_HOURS:
            _warn(
                Refusal(
                    f"hours of it that differ from raw usage: {differing:,}, more than the product's window"
                    f" is given at start-up ({MOST_HOURS})"
                )
            )
            return
        if differing:
            log.warning(
                "hours of the rollup that differ from raw usage: %d; recomputing them by the product's"
                " window",
                differing,
            )
        # In an hour that waits for a tick more may be lost than the keys that the tick comes for.
        all_of_them = differing + waiting <= MOST_HOURS
        if differing or (waiting and all_of_them):
            products_pipeline.repair(session, pending=all_of_them)
    if not all_of_them:
        log.info("hours of the rollup that are not compared: %d; they wait for the next ticks", waiting)
    log.info(
        "the hourly rollup matches raw usage" if all_of_them else "what was compared of it matches raw usage"
    )


def _attempt(act: Callable[[], None]) -> None:
    """Do it, or warn of why not. Raises LockBusy, which leaves 4246 to others, and SessionLost."""
    try:
        act()
    except (LockBusy, SessionLost):
        raise
    except UsageRollupError as error:
        _warn(error.refusal)
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        _warn(explain(error.orig))


def _warn(why: Refusal) -> None:
    said = Refusal(
        f"the hourly rollup is not proven after another runner went past 103: {why.message}",
        detail=why.detail,
        hint="; ".join(filter(None, [why.hint, f"what differs is mended by `{REPAIR}`"])),
    )
    log.warning("%s", said)


@contextmanager
def _deadline(session: sa.Connection) -> Iterator[None]:
    """Cancel what one statement of the block takes longer than DEADLINE."""
    session.execute(
        sa.text("SELECT set_config('statement_timeout', :deadline, false)"), {"deadline": DEADLINE}
    )
    try:
        yield
    finally:
        # A session that was lost would be opened anew by the attempt.
        if not session.invalidated:
            session.execute(sa.text("SELECT set_config('statement_timeout', '0', false)"))
