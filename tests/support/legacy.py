"""The two daily rollups of v0.3.4: their tables, their upkeep, and totals that only they hold."""

from __future__ import annotations

from tests.support.database import Database

LEGACY_TABLES = [
    "task_usage_daily",
    "task_usage_daily_dirty",
    "task_usage_rollup_state",
    "task_usage_dashboard_daily",
    "task_usage_dashboard_dirty",
    "task_usage_dashboard_rollup_state",
]


def where_legacy_is(database: Database) -> set[str]:
    """Return the schemas in which tables of the legacy rollups are."""
    return {
        row[0]
        for row in database.execute(
            "SELECT schemaname FROM pg_tables"
            " WHERE tablename ~ '^task_usage_(daily|dashboard|rollup_state)' GROUP BY 1"
        )
    }


def roll_up_as_v034(database: Database) -> None:
    for rollup in ("daily", "dashboard_daily"):
        database.execute(f"SELECT rollup_task_usage_{rollup}_window('-infinity', 'infinity')")


def lose_raw_rows(database: Database, condition: str = "true") -> None:
    """Delete usage in a way no rollup notices, as a restore or a retention script may have done."""
    database.execute(
        f"ALTER TABLE task_usage DISABLE TRIGGER USER; DELETE FROM task_usage WHERE {condition};"
        " ALTER TABLE task_usage ENABLE TRIGGER USER"
    )
