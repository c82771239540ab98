"""Keep account of what a run has done: its summary is made of that.

A process is one run, and goes on in another session when one is lost. So the account outlives sessions, and
rooms that do not know each other write in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .words import count, took


@dataclass
class Account:
    """What was done: usage rows rolled up into buckets, slice by slice; seconds by phase, as they came.

    `sessions` walked at once, at most; `skipped` is why there was nothing to walk. The last three are what
    the hourly rollup does not show: buckets, usage rows, and daily totals of the legacy rollups.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    buckets: int = 0
    slices: int = 0
    sessions: int = 1
    repaired_hours: int = 0
    skipped: str | None = None
    set_aside: int = 0
    undated: int = 0
    only_in_legacy: int = 0

    def rolled_up(self) -> str:
        """Say what was rolled up."""
        if not self.slices:
            return "nothing"
        by = f" by {self.sessions} sessions" if self.sessions > 1 else ""
        into = f"{count(self.rows, 'usage row')} into {count(self.buckets, 'bucket')}"
        repaired = f"; {count(self.repaired_hours, 'hour')} recomputed" if self.repaired_hours else ""
        return f"{into}, in {count(self.slices, 'slice')}{by}{repaired}"

    def times(self) -> str:
        """Say how long each phase took."""
        return ", ".join(f"{name}: {took(seconds)}" for name, seconds in self.seconds.items())

    def fields(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "usage_rows": self.rows,
            "buckets": self.buckets,
            "slices": self.slices,
            "sessions": self.sessions,
            "repaired_hours": self.repaired_hours,
            "skipped": self.skipped,
            "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
        }


run = Account()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Add the time that the block, or the function it decorates, takes; one that fails took time, too."""
    started = time.monotonic()
    run.seconds.setdefault(name, 0.0)
    try:
        yield
    finally:
        run.seconds[name] += time.monotonic() - started
