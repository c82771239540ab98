"""Say for every day with usage whether the hourly rollup covers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

import sqlalchemy as sa

from ..hourly.pipeline import Reading

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
    """One UTC day: usage rows that belong to hours, those the rollup counts, and what that means."""

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
    rows = session.execute(reading.sql(_DAYS), {"left_out_before": left_out_before or "-infinity"})
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


# A day is a hole by what is not pending in it; what is pending must not hide the rest. The product's own
# pipeline stores hours that clients cannot read; those are left out on both sides.
_DAYS = f"""
WITH raw AS (
    SELECT public.task_usage_hour_bucket(tu.created_at) AS hour, COUNT(*) AS events
    FROM public.task_usage tu
    JOIN public.agent_task_queue q ON q.id = tu.task_id
    JOIN public.agent a ON a.id = q.agent_id
    WHERE public.task_usage_hourly_dated(tu.created_at) AND q.runtime_id IS NOT NULL
    GROUP BY 1
), rolled AS (
    SELECT bucket_hour AS hour, SUM(event_count) AS events FROM public.task_usage_hourly
    WHERE public.task_usage_hourly_dated(bucket_hour) GROUP BY 1
), hours AS (
    SELECT hour, COALESCE(raw.events, 0) AS expected, COALESCE(rolled.events, 0) AS found,
        hour NOT IN (SELECT public.task_usage_hourly_pending_hours()) AS settled
    FROM raw FULL JOIN rolled USING (hour)
), days AS (
    SELECT (hour AT TIME ZONE 'UTC')::date AS day, SUM(expected)::bigint AS expected,
        SUM(found)::bigint AS found, COALESCE(SUM(found - expected) FILTER (WHERE settled), 0) AS surplus
    FROM hours GROUP BY 1
)
SELECT day, expected, found, CASE
    WHEN found = expected THEN '{COMPLETE}'
    WHEN surplus = 0 THEN '{PENDING}'
    WHEN found > 0 THEN '{PARTLY}'
    WHEN day < CAST(:left_out_before AS timestamptz) AT TIME ZONE 'UTC' THEN '{LEFT_OUT}'
    ELSE '{MISSING}' END AS state
FROM days ORDER BY day
"""
