"""Measure what 103 does under its locks, with this session's proof at hand and without."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.demo import ROOT
from usage_rollup.contract import HOURLY_ROLLUP
from usage_rollup.hourly import backfill
from usage_rollup.session import advisory_lock
from usage_rollup.session.connection import migration_session
from usage_rollup.session.options import Options

SQL = ROOT / "alembic" / "versions" / "103_drop_legacy_daily_rollups.up.sql"


def measure() -> tuple[float, float]:
    """Return the seconds of the guard alone and of all of 103, which is then rolled back."""
    script = Path(SQL).read_text()
    guard, _ = script.split("$guard$;", 1)
    with migration_session() as session:
        advisory_lock.acquire(session, HOURLY_ROLLUP)
        backfill.backfill_before_103(session, Options())
        times = []
        for sql in (guard + "$guard$;", script):
            started = time.monotonic()
            session.exec_driver_sql(sql, execution_options={"no_parameters": True})
            times.append(time.monotonic() - started)
            session.rollback()
    return times[0], times[1]
