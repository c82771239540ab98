"""Estimate what a backfill would take, from what a sample takes on this very database."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from ..hourly import slices
from ..hourly.pipeline import Reading

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
        ranges = "public.task_usage_hourly_unwalked()" if has_state else _HISTORY
        source = f"public.task_usage_hourly_slices({ranges}, {slices.SLICE_ROWS})"
    months = {m.month: m.rows for m in session.execute(reading.sql(_MONTHS.format(source=source)))}
    since = session.scalar(reading.sql(_SAMPLE_START), {"rows": SAMPLE_ROWS})
    durations = []
    # The first run also warms this session up.
    for _ in range(2):
        started = time.monotonic()
        sample = session.execute(reading.sql(_SAMPLE), {"since": since or "-infinity"}).one()
        durations.append(time.monotonic() - started)
    rows = sum(months.values())
    share = rows / max(1, sample.rows)
    return Estimate(
        rows,
        months,
        min(durations) * share * TIMES_AGGREGATE,
        round(sample.buckets * share * BYTES_PER_BUCKET),
    )


_HISTORY = """
(SELECT tstzmultirange(tstzrange(
    date_trunc('day', MIN(created_at)), date_trunc('day', MAX(created_at)) + interval '1 day'))
 FROM public.task_usage WHERE public.task_usage_hourly_dated(created_at))
"""

_MONTHS = """
SELECT to_char(from_hour, 'YYYY-MM') AS month, SUM(usage_rows)::bigint AS rows FROM {source}
GROUP BY 1 HAVING SUM(usage_rows) > 0 ORDER BY 1
"""

# The first whole hour after the sample's oldest row, or the newest hour if that alone holds more.
_SAMPLE_START = """
SELECT LEAST(b.hour + interval '1 hour', (SELECT public.task_usage_hour_bucket(MAX(created_at))
    FROM public.task_usage WHERE public.task_usage_hourly_dated(created_at)))::text
FROM (
    SELECT public.task_usage_hour_bucket(created_at) AS hour FROM public.task_usage
    WHERE public.task_usage_hourly_dated(created_at) ORDER BY created_at DESC OFFSET :rows LIMIT 1) AS b
"""

_SAMPLE = """
SELECT COUNT(*) AS buckets, COALESCE(SUM(event_count), 0)::bigint AS rows
FROM public.rollup_task_usage_hourly_aggregate(CAST(:since AS timestamptz), 'infinity')
"""
