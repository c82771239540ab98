"""Compare the hourly rollup with raw usage, and the legacy rollups while they exist, without writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from ..contract import HOURLY
from ..session.connection import snapshot
from . import pipeline


@dataclass(frozen=True)
class Difference:
    """One UTC hour that is wrong: events and tokens of all kinds, by raw usage and by the rollup."""

    hour: datetime
    expected_events: int
    found_events: int
    expected_tokens: Decimal
    found_tokens: Decimal
    usage_ids: list[UUID]


@dataclass(frozen=True)
class SetAside:
    """One bucket PostgreSQL refused to store, and why."""

    hour: datetime
    agent_id: UUID
    label_start: str
    error: str


@dataclass(frozen=True)
class LegacyExcess:
    """A day's total of a legacy rollup that is larger than raw usage: it exists nowhere else."""

    rollup: str
    day: date
    workspace_id: UUID
    model: str
    legacy_tokens: Decimal
    raw_tokens: Decimal


@dataclass(frozen=True)
class Verdict:
    """What one snapshot shows. Hours at or above the watermark, or queued, are pending, not wrong."""

    watermark: str
    pending_hours: int
    differences: list[Difference]
    set_aside: list[SetAside]
    legacy_excess: list[LegacyExcess]
    # Columns of task_usage_hourly that later releases added, costs for one: only their window knows them.
    not_compared: list[str]

    @property
    def equal(self) -> bool:
        """Say whether no hour differs."""
        return not self.differences


def verify(session: sa.Connection, since: datetime | None = None) -> Verdict:
    """Compare everything, or the hours from `since` on, in one REPEATABLE READ, READ ONLY snapshot.

    Entered and left outside a transaction. Takes no lock a server could notice. Whose pipeline keeps
    the rollup does not matter: functions that are missing are lent to this session first. Raises
    UnsuitableDatabase where there is no hourly rollup yet.
    """
    pipeline.require(session, window=False)
    reading = pipeline.reading(session)

    def rows(statement: str, **parameters: Any) -> Sequence[sa.RowMapping]:
        return session.execute(reading.sql(statement), parameters).mappings().all()

    with snapshot(session):
        return Verdict(
            **rows(_STATE)[0],
            differences=[Difference(**row) for row in rows(_DIFFERENCES, since=since)],
            set_aside=[SetAside(**row) for row in rows(_SET_ASIDE)],
            legacy_excess=[LegacyExcess(**row) for row in rows(_LEGACY)],
            not_compared=[row["attname"] for row in rows(_NOT_COMPARED, columns=_COLUMNS)],
        )


_STATE = """
SELECT
    COALESCE((SELECT watermark_at::text FROM public.task_usage_hourly_rollup_state WHERE id = 1), 'missing')
        AS watermark,
    (SELECT COUNT(*) FROM public.task_usage_hourly_pending_hours()) AS pending_hours
"""

# Within the years that clients can read: the product's own pipeline stores others too.
_DIFFERENCES = """
SELECT d.hour, e.events AS expected_events, h.events AS found_events, e.tokens AS expected_tokens,
    h.tokens AS found_tokens,
    ARRAY(SELECT tu.id FROM public.task_usage tu
          WHERE tu.created_at >= d.hour AND tu.created_at < d.hour + interval '1 hour'
          ORDER BY tu.created_at LIMIT 3) AS usage_ids
FROM public.task_usage_hourly_differences(
    GREATEST(public.task_usage_hour_bucket(CAST(:since AS timestamptz)), '0001-01-01 00:00:00+00'),
    '9999-01-01 00:00:00+00') AS d (hour)
CROSS JOIN LATERAL (
    SELECT COALESCE(SUM(event_count), 0)::bigint AS events, COALESCE(SUM(
        input_tokens::numeric + output_tokens + cache_read_tokens + cache_write_tokens), 0) AS tokens
    FROM public.task_usage_hourly_expected(d.hour, d.hour + interval '1 hour')) AS e
CROSS JOIN LATERAL (
    SELECT COALESCE(SUM(event_count), 0)::bigint AS events, COALESCE(SUM(
        input_tokens::numeric + output_tokens + cache_read_tokens + cache_write_tokens), 0) AS tokens
    FROM public.task_usage_hourly WHERE bucket_hour = d.hour) AS h
ORDER BY d.hour
"""

_SET_ASIDE = """
SELECT bucket_hour AS hour, agent_id, label_start, error FROM public.task_usage_hourly_set_aside
ORDER BY 1, 2, 3
"""

_LEGACY = """
SELECT rollup, bucket_date AS day, workspace_id, model, legacy_tokens, raw_tokens
FROM public.task_usage_hourly_legacy_excess()
"""

# All that 101 gave the table are compared, updated_at excepted.
_COLUMNS = HOURLY.columns["task_usage_hourly"].split()

_NOT_COMPARED = """
SELECT attname FROM pg_catalog.pg_attribute
WHERE attrelid = 'public.task_usage_hourly'::regclass AND attnum > 0 AND NOT attisdropped
    AND attname <> ALL (CAST(:columns AS text[]))
ORDER BY attnum
"""
