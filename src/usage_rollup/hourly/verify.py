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
from ..times import rfc3339
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
    """What one snapshot shows. Hours at or above the watermark, or queued, are pending, not wrong.

    `judged_hours` were compared; where there are none, `newest_hour` is the newest that could be asked for.
    """

    watermark: str
    judged_hours: int
    pending_hours: int
    newest_hour: datetime | None
    differences: list[Difference]
    set_aside: list[SetAside]
    legacy_excess: list[LegacyExcess]
    # Columns of task_usage_hourly that later releases added, costs for one: only their window knows them.
    not_compared: list[str]
    # What was created before is not rolled up on purpose, by a partial backfill.
    left_out_before: str | None

    @property
    def empty(self) -> bool:
        """Say whether there is nothing to compare: no usage, and nothing rolled up."""
        return not self.judged_hours and not self.pending_hours and self.newest_hour is None

    @property
    def equal(self) -> bool:
        """Say whether no hour differs; not where hours could have been judged and none was."""
        return not self.differences and (self.judged_hours > 0 or self.empty)


def verify(session: sa.Connection, since: datetime | None = None) -> Verdict:
    """Compare everything, or the hours from `since` on, in one REPEATABLE READ, READ ONLY snapshot.

    Entered and left outside a transaction. Takes no lock a server could notice. Whose pipeline keeps
    the rollup does not matter: functions that are missing are lent to this session first. Raises
    UnsuitableDatabase where there is no hourly rollup yet, or where nothing may be lent.
    """
    pipeline.require(session, window=False)
    reading = pipeline.reading(session)

    def rows(statement: str, **parameters: Any) -> Sequence[sa.RowMapping]:
        return session.execute(reading.sql(statement), parameters).mappings().all()

    with snapshot(session):
        has_left_out = session.scalar(sa.text(_SQL["has_left_out"]))
        differences = [Difference(**row) for row in rows(_SQL["differences"], since=since)]
        differing = [difference.hour for difference in differences]
        judged = session.scalar(reading.sql(_SQL["judged"]), {"since": since, "differing": differing})
        state = rows(_SQL["state"], since=since)[0]
        return Verdict(
            **{**state, "watermark": rfc3339(state["watermark"])},
            judged_hours=judged or 0,
            newest_hour=None if judged else session.scalar(reading.sql(_SQL["newest_hour"])),
            differences=differences,
            set_aside=[SetAside(**row) for row in rows(_SQL["set_aside"])],
            legacy_excess=[LegacyExcess(**row) for row in rows(_SQL["legacy_excess"])],
            left_out_before=rfc3339(session.scalar(sa.text(_SQL["left_out"]))) if has_left_out else None,
            not_compared=[row["attname"] for row in rows(_SQL["not_compared"], columns=_COLUMNS)],
        )
