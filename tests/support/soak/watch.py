"""Watch the locks while everything runs: who writes the rollup must hold 4246 (I4)."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from tests.support.deadline import DEADLINE_S
from tests.support.soak.findings import Finding
from tests.support.soak.writers import LOST

_LOOK_S = 0.25

# Two looks this far apart: pg_locks is not of one moment, and shows one that ends without its advisory lock.
_AGAIN_S = 0.05

_UNLOCKED = """
SELECT l.pid, l.virtualtransaction, s.query
FROM pg_locks l JOIN pg_stat_activity s USING (pid)
WHERE l.relation = to_regclass('public.task_usage_hourly') AND l.mode = 'RowExclusiveLock' AND l.granted
    AND s.datname = current_database() AND NOT EXISTS (
        SELECT FROM pg_locks h WHERE h.pid = l.pid AND h.granted AND (
            (h.locktype = 'advisory' AND h.classid = 0 AND h.objid = 4246 AND h.objsubid = 1)
            -- A revision that changes the table keeps everybody else out.
            OR (h.relation = l.relation AND h.mode = 'AccessExclusiveLock')))
"""


class Watch(threading.Thread):
    """Look again and again, on a session opened anew whenever it is lost."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True, name="watch")
        self._url = url
        self._ends = threading.Event()
        self.finding: Finding | None = None
        self.looks = 0

    def run(self) -> None:
        while not self._ends.wait(_LOOK_S) and self.finding is None:
            try:
                with psycopg.connect(
                    self._url, autocommit=True, application_name="soak watch", connect_timeout=10
                ) as session:
                    while not self._ends.wait(_LOOK_S) and self.finding is None:
                        self._look(session)
            except psycopg.Error as error:
                if error.sqlstate not in LOST:
                    self.finding = Finding(f"the watch got SQLSTATE {error.sqlstate}: {error}")

    def _look(self, session: psycopg.Connection[Any]) -> None:
        self.looks += 1
        if (first := session.execute(_UNLOCKED).fetchall()) and not self._ends.wait(_AGAIN_S):
            again = {row[:2] for row in session.execute(_UNLOCKED)}
            if unlocked := [row for row in first if row[:2] in again]:
                self.finding = Finding(f"task_usage_hourly is written without advisory lock 4246: {unlocked}")

    def raise_findings(self) -> None:
        """Raise what was seen."""
        if self.finding is not None:
            raise self.finding

    def stop(self) -> None:
        """Look no more."""
        self._ends.set()
        self.join(DEADLINE_S)
