"""Estimate what a backfill would take, from what a sample takes on this very database."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from ..hourly import slices
from ..hourly.pipeline import Reading
from ..queries import beside, filled

_SQL = beside(__file__)

# The newest hours that hold as many rows: their aggregate takes a fraction of a second, and tells enough.
SAMPLE_ROWS = 50_000

# A walk also writes, and the proof reads everything again.
TIMES_AGGREGATE = 2.5

# task_usage_hourly with its five indexes, after a backfill of a million generated rows into 297,114 buckets.
BYTES_PER_BUCKET = 350


@dataclass(frozen=True)
class Estimate:
    """Usage rows to roll up, by UTC month; about how many seconds, and how many bytes of rollup."""

    rows: int
    months: dict[str, int]
    seconds: float
    rollup_bytes: int


def estimate(session: sa.Connection, reading: Reading, *, has_state: bool, unfinished: bool) -> Estimate:
    """Count the rows a walk would read, time a slice's aggregate of a sample and scale it.

    In the caller's transaction; `reading` has the functions of 102. Reads an index of task_usage
    once. Without a state row, or its table, the whole history is to be rolled up.
    """
    source = "public.task_usage_hourly_backfill WHERE walked_at IS NULL"
    if not unfinished:
        ranges = "public.task_usage_hourly_unwalked()" if has_state else f"({_SQL['history']})"
        source = f"public.task_usage_hourly_slices({ranges}, bigint '{slices.SLICE_ROWS}')"
    by_month = reading.sql(filled(_SQL["months"], source=source))
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
    return Estimate(
        rows,
        months,
        min(durations) * share * TIMES_AGGREGATE,
        round(sample.buckets * share * BYTES_PER_BUCKET),
    )
