"""The hourly rollup as tests drive and read it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.support.database import Database
from tests.support.oracle import differing_hours
from tests.support.sessions import is_idle
from usage_rollup.hourly.backfill import Backfill, backfill_before_103
from usage_rollup.session.options import Options

TICK = "SELECT rollup_task_usage_hourly()"
WATERMARK = "SELECT watermark_at FROM task_usage_hourly_rollup_state"
# With every hour of raw usage that changed at any time; with what is queued alone.
WINDOW = "SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')"
QUEUED_ONLY = "SELECT rollup_task_usage_hourly_window('-infinity', '-infinity')"
# As if nobody had seen what was written: the triggers see a replica's session too.
UNQUEUE = "TRUNCATE task_usage_hourly_invalidation"
# What a bucket holds besides its key.
MEASURES = (
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("task_count", "event_count"),
)
# Queues every hour there is.
EVERY_HOUR = "INSERT INTO task_usage_hourly_invalidation DEFAULT VALUES"


def run_hook(database: Database) -> Backfill:
    """Run what comes before 103, in a session that has ended when this returns."""
    with database.migration_connection() as connection:
        result = backfill_before_103(connection, Options(jobs=1))
        assert is_idle(connection)
        return result


def heal(database: Database) -> None:
    """Recompute every hour there is on either side."""
    database.execute(EVERY_HOUR)
    database.execute(WINDOW)


def corrupt(database: Database, where: str = "true", *measures: str) -> None:
    """Add one to a measure of stored buckets, in each another of `measures` in turn; of all by default."""
    measures = measures or MEASURES
    changes = ", ".join(f"{name} = {name} + (n = {number})::int" for number, name in enumerate(measures))
    database.execute(
        f"UPDATE task_usage_hourly AS h SET {changes} FROM (SELECT ctid, mod(row_number() OVER ("
        f" ORDER BY bucket_hour, agent_id, project_id, provider, model) - 1, {len(measures)}) AS n"
        f" FROM task_usage_hourly WHERE {where}) AS chosen WHERE h.ctid = chosen.ctid"
    )


def queued(database: Database) -> int:
    """Count what is queued in either queue."""
    count: int = database.value(
        "SELECT (SELECT count(*) FROM task_usage_hourly_invalidation)"
        " + (SELECT count(*) FROM task_usage_hourly_dirty)"
    )
    return count


def hourly(database: Database) -> list[tuple[Any, ...]]:
    """Return every rolled-up row, without the time it was written."""
    return database.execute(
        "SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model,"
        f" {', '.join(MEASURES)} FROM public.task_usage_hourly ORDER BY 1, 2, 3, 4, 5, 6, 7"
    )


def wrong_hours(database: Database) -> list[datetime]:
    """Ask the oracle as if the watermark had passed every event, so that time excuses nothing."""
    watermark = database.value(WATERMARK)
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'infinity'")
    try:
        return differing_hours(database.url)
    finally:
        database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = %s", watermark)


def row_versions(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Return the row versions of every table: a row written again, as it was, is another version."""
    tables = [
        row[0] for row in database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    ]
    return {
        name: database.execute(f'SELECT ctid::text, xmin::text FROM public."{name}" ORDER BY 1')
        for name in tables
    }
