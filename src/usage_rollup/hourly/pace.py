"""How many sessions walk at once, where nobody has said: one more as long as rows per second really grow."""

from __future__ import annotations

import logging
from collections.abc import Callable

import sqlalchemy as sa

from ..queries import beside
from ..session import poolers
from .slices import Slice

log = logging.getLogger(__name__)

# A session more must bring a fifth; what else a machine does changes a measured pace by a tenth.
GROWTH = 1.2

# More than a rollup's disks and locks reward, whatever the processors.
MOST = 4

_SQL = beside(__file__)


def has_room(session: sa.Connection, more: int) -> bool:
    """Say whether there is room for so many `more` sessions of ours: pace.sql tells what that means.

    There is none behind a pooler, whose places nobody can count from here.
    """
    driver = session.connection.driver_connection
    assert isinstance(driver, poolers.Session)
    return not driver.pooled and bool(session.scalar(sa.text(_SQL["has_room"]), {"more": more}))


class Pace:
    """How many sessions walk: `jobs`, or, where that is None, what slices tell by their pace.

    `sessions` are to walk now; `proven` of them were worth it.
    """

    def __init__(self, jobs: int | None, has_room: Callable[[int], bool]) -> None:
        self.sessions = self.proven = jobs or 1
        self._settled = jobs is not None
        self._has_room = has_room
        self._fastest = 0.0
        self._walked: list[Slice] = []

    @property
    def worth(self) -> int:
        """Return how many are worth it; too few slices to judge a second one are no verdict against it."""
        return max(self.proven, min(2, self.sessions))

    def settle(self, sessions: int) -> None:
        """Stay with so many, at least one."""
        self.sessions = self.proven = max(1, sessions)
        self._settled = True

    def note(self, walked: Slice) -> None:
        """Take note of a committed slice; change `sessions` after two of each, or one of one alone."""
        if self._settled:
            return
        self._walked.append(walked)
        if self.sessions > 1 and len(self._walked) < 2 * self.sessions:
            return
        seconds = sum(done.seconds for done in self._walked)
        rows_a_second = self.sessions * sum(done.rows for done in self._walked) / max(seconds, 1e-6)
        self._walked.clear()
        if rows_a_second < GROWTH * self._fastest:
            self.settle(self.proven)
        else:
            self._fastest, self.proven = rows_a_second, self.sessions
            # One alone is the leader, who leaves the slices to two others then.
            if self.sessions == MOST or not self._has_room(2 if self.sessions == 1 else 1):
                self.settle(self.sessions)
            else:
                self.sessions += 1
        if self._settled:
            log.info("sessions that walk: %d, at %s rows a second", self.sessions, f"{self._fastest:,.0f}")
