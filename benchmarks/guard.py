"""Measure what 103 does under its locks, with this session's proof at hand and without."""

from __future__ import annotations

import time
from pathlib import Path

import sqlalchemy as sa

from benchmarks.demo import ROOT
from usage_rollup.hourly import backfill
from usage_rollup.session import outages
from usage_rollup.session.options import Options

SQL = ROOT / "alembic" / "versions" / "103_drop_legacy_daily_rollups.up.sql"


def measure() -> tuple[float, float]:
    """Return the seconds of the guard alone and of all of 103, which is then rolled back."""
    script = Path(SQL).read_text()
    guard, _ = script.split("$guard$;", 1)

    def work(session: sa.Connection) -> tuple[float, float]:
        backfill.backfill_before_103(session, Options())
        return _rolled_back(session, guard + "$guard$;"), _rolled_back(session, script)

    return outages.in_session(work)


def _rolled_back(session: sa.Connection, sql: str) -> float:
    session.exec_driver_sql("BEGIN")
    started = time.monotonic()
    session.exec_driver_sql(sql, execution_options={"no_parameters": True})
    seconds = time.monotonic() - started
    session.exec_driver_sql("ROLLBACK")
    return seconds
