"""101_task_usage_hourly_schema: the hourly rollup, its public queue and its state row.

Why: one rollup by UTC hour replaces one by runtime day and one by UTC day.
Reversed by: the .down.sql; the rollup can be rebuilt from raw rows.
"""

from usage_rollup.runner.step import apply_sql

revision = "101"
down_revision = "100"
branch_labels = None
depends_on = None

LOCK: dict[str, list[str]] = {}
TABLES = ["task_usage_hourly", "task_usage_hourly_dirty", "task_usage_hourly_rollup_state"]


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    apply_sql(__file__, "down", lock={"ACCESS EXCLUSIVE": TABLES})
