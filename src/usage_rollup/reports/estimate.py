"""Estimate what a backfill would take, from what a sample takes on this very database."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..hourly import pipeline, slices
from ..hourly.pipeline import Reading
from ..queries import beside, filled
from . import backfilling
from .backfilling import Backfilling
from .forecast_103 import Guard

_SQL = beside(__file__)

# The newest hours that hold as many rows: their aggregate takes a fraction of a second, and tells enough.
SAMPLE_ROWS = 50_000

# A walk also writes, and the proof reads everything again.
TIMES_AGGREGATE = 2.5

# The product's window: 500 rows tell, and fewer where they take long already.
WINDOW_SAMPLES = (50, 500)
LONG_S = 0.3

# On a great history even the smallest sample may take minutes: then a lower bound has to do.
WINDOW_DEADLINE_S = 5

# It writes as well, and looks at its keys twice. Histories of 10,000 to 60,000 rows took its stand-ins 0.9
# to 2 times what the sample told.
TIMES_WINDOW = 1.5

# task_usage_hourly with its five indexes, after a backfill of a million generated rows into 297,114 buckets.
BYTES_PER_BUCKET = 350


@dataclass(frozen=True)
class Estimate:
    """Usage rows to roll up, by UTC month; about how many seconds, and how many bytes of rollup.

    `unfinished` is the backfill that has begun with them.
    """

    rows: int
    months: dict[str, int]
    seconds: float
    rollup_bytes: int
    unfinished: Backfilling | None


@dataclass(frozen=True)
class Walk:
    """What would be walked: all of it without a state row (`has_state`), or what is `unfinished`.

    Otherwise what the watermark trails, where it `is_behind`; and what was `left_out`. By a window that is
    `ours` or will be when it walks, else by the one that is installed.
    """

    has_state: bool
    unfinished: bool
    ours: bool
    is_behind: bool = True
    left_out: bool = False

    @classmethod
    def of(cls, guard: Guard, *, ours: bool) -> Walk:
        """Return what `guard` says is to be walked."""
        has_state, left_out = guard.watermark is not None, guard.left_out_before is not None
        return cls(has_state, guard.resumes, ours, guard.is_behind, left_out)

    def ranges(self) -> str:
        """Return an SQL expression for the multirange of it."""
        if self.unfinished:
            found = f"({_SQL['planned']})"
        elif not self.has_state:
            found = f"({_SQL['history']})"
        else:
            found = "public.task_usage_hourly_unwalked()" if self.is_behind else "tstzmultirange()"
        left_out = f"({slices.LEFT_OUT})" if self.left_out else "NULL"
        return f"(COALESCE({found}, tstzmultirange()) + COALESCE({left_out}, tstzmultirange()))"


def estimate(session: sa.Connection, reading: Reading, walk: Walk) -> Estimate:
    """Count the rows a walk would read, time a slice's aggregate of a sample and scale it.

    In the caller's transaction; `reading` has the functions of 102. Reads an index of task_usage
    once. The product's window takes many times as long, where that is installed, and is timed apart.
    """
    by_month = reading.sql(filled(_SQL["months"], ranges=walk.ranges()))
    months = {found.month: found.rows for found in session.execute(by_month)}
    since = session.scalar(reading.sql(_SQL["sample_start"]), {"rows": SAMPLE_ROWS})
    durations = []
    # The first run also warms this session up.
    for _ in range(2):
        started = time.monotonic()
        sample = session.execute(reading.sql(_SQL["sample"]), {"since": since or "-infinity"}).one()
        durations.append(time.monotonic() - started)
    rows = sum(months.values())
    share = rows / max(1, sample.rows)
    seconds = min(durations) * share * TIMES_AGGREGATE
    if not walk.ours and not pipeline.find(session).ours:
        seconds = max(seconds, _window_s_a_row(session, reading) * rows * TIMES_WINDOW)
    return Estimate(
        rows,
        months,
        seconds,
        round(sample.buckets * share * BYTES_PER_BUCKET),
        backfilling.find(session, has_plan=True) if walk.unfinished else None,
    )


def _window_s_a_row(session: sa.Connection, reading: Reading) -> float:
    """Return the seconds that what the product's window reads takes a row, at least."""
    asked = reading.sql(_SQL["window_sample"])
    for rows in WINDOW_SAMPLES:
        started = time.monotonic()
        try:
            with session.begin_nested():
                session.exec_driver_sql(f"SET LOCAL statement_timeout = '{WINDOW_DEADLINE_S}s'")
                session.execute(asked, {"rows": rows})
                session.exec_driver_sql("SET LOCAL statement_timeout = 0")
        except DBAPIError as error:
            if not isinstance(error.orig, psycopg.errors.QueryCanceled):
                raise
        duration_s = time.monotonic() - started
        if duration_s > LONG_S:
            break
    return duration_s / rows
