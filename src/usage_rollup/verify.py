"""Compare the hourly rollup with raw usage, and the legacy rollups while they exist, without writing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

import sqlalchemy as sa

from .errors import UnsuitableDatabase


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

    @property
    def equal(self) -> bool:
        """Say whether no hour differs."""
        return not self.differences


def verify(connection: sa.Connection, since: datetime | None = None) -> Verdict:
    """Compare everything, or the hours from `since` on, in one REPEATABLE READ, READ ONLY snapshot.

    Takes no lock a server could notice. Raises UnsuitableDatabase where 102 is not installed.
    """
    connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with connection.begin():
        if connection.scalar(
            sa.text("SELECT to_regprocedure('public.task_usage_hourly_legacy_excess()') IS NULL")
        ):
            raise UnsuitableDatabase(
                "the hourly pipeline of this package is not installed here",
                hint="run `alembic upgrade 102` first; a server may keep running",
            )
        row = connection.execute(sa.text(_STATE)).one()
        return Verdict(
            watermark=row.watermark,
            pending_hours=row.pending_hours,
            differences=[
                Difference(**mapping)
                for mapping in connection.execute(sa.text(_DIFFERENCES), {"since": since}).mappings()
            ],
            set_aside=[SetAside(**mapping) for mapping in connection.execute(sa.text(_SET_ASIDE)).mappings()],
            legacy_excess=[
                LegacyExcess(**mapping) for mapping in connection.execute(sa.text(_LEGACY)).mappings()
            ],
        )


_STATE = """
SELECT
    COALESCE((SELECT watermark_at::text FROM public.task_usage_hourly_rollup_state WHERE id = 1), 'missing')
        AS watermark,
    (SELECT COUNT(*) FROM public.task_usage_hourly_pending_hours()) AS pending_hours
"""

_DIFFERENCES = """
SELECT d.hour, e.events AS expected_events, h.events AS found_events, e.tokens AS expected_tokens,
    h.tokens AS found_tokens,
    ARRAY(SELECT tu.id FROM public.task_usage tu
          WHERE tu.created_at >= d.hour AND tu.created_at < d.hour + interval '1 hour'
          ORDER BY tu.created_at LIMIT 3) AS usage_ids
FROM public.task_usage_hourly_differences(
    COALESCE(public.task_usage_hour_bucket(CAST(:since AS timestamptz)), '-infinity'), 'infinity') AS d (hour)
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
