"""Say for every day with usage whether the hourly rollup covers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

import sqlalchemy as sa

from ..hourly.pipeline import Reading
from ..queries import beside

_SQL = beside(__file__)

COMPLETE = "complete"
# Above the watermark or queued: the next windows will see to it.
PENDING = "pending"
PARTLY = "partly"
MISSING = "not rolled up"
# By a partial backfill that somebody acknowledged.
LEFT_OUT = "left out"

HOLES = (PARTLY, MISSING)


@dataclass(frozen=True)
class Day:
    """One UTC day: usage rows that an hour can hold, those the rollup counts, and what that means.

    Rows of a bucket that is set aside are in neither number.
    """

    day: date
    usage_rows: int
    rolled_up_rows: int
    state: str


@dataclass(frozen=True)
class Hole:
    """Neighbours among the days with usage that the rollup holds partly or not at all."""

    first: date
    last: date
    usage_rows: int
    rolled_up_rows: int


def read(session: sa.Connection, reading: Reading, left_out_before: str | None = None) -> list[Day]:
    """Return the days that hold usage or rolled up usage, in order; all others hold nothing.

    Counts rows, never tokens: `verify` compares those. Reads in the caller's transaction, by the
    functions of 102, and costs about what the comparison costs.
    """
    states = {
        "complete": COMPLETE,
        "pending": PENDING,
        "partly": PARTLY,
        "missing": MISSING,
        "left_out": LEFT_OUT,
        "left_out_before": left_out_before or "-infinity",
    }
    rows = session.execute(reading.sql(_SQL["days"]), states)
    return [Day(row.day, row.expected, row.found, row.state) for row in rows]


def holes(days: Sequence[Day]) -> list[Hole]:
    """Return the holes, the oldest first: neighbouring days make one."""
    found = []
    for is_hole, run in groupby(days, lambda day: day.state in HOLES):
        if is_hole:
            part = list(run)
            found.append(
                Hole(
                    part[0].day,
                    part[-1].day,
                    sum(day.usage_rows for day in part),
                    sum(day.rolled_up_rows for day in part),
                )
            )
    return found
