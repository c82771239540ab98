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
from ..queries import beside
from ..session.connection import snapshot
from . import pipeline

_SQL = beside(__file__)

# All that 101 gave the table are compared, updated_at excepted.
_COLUMNS = HOURLY.columns["task_usage_hourly"].split()


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
            **rows(_SQL["state"])[0],
            differences=[Difference(**row) for row in rows(_SQL["differences"], since=since)],
            set_aside=[SetAside(**row) for row in rows(_SQL["set_aside"])],
            legacy_excess=[LegacyExcess(**row) for row in rows(_SQL["legacy_excess"])],
            not_compared=[row["attname"] for row in rows(_SQL["not_compared"], columns=_COLUMNS)],
        )
