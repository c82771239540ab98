"""097_autopilot_project_id: the v0.3.4 baseline.

Why: a fresh database begins where databases in the field stand, so that one chain serves both. A
database the product's own runner made is adopted here and never runs this file.
Reversed by: the .down.sql, only while no product table holds a row.
"""

from usage_rollup.runner.step import apply_sql

revision = "097"
down_revision = None
branch_labels = None
depends_on = None

LOCK: dict[str, list[str]] = {}


TABLES = [
    "user",
    "workspace",
    "agent_runtime",
    "agent",
    "project",
    "issue",
    "agent_task_queue",
    "task_usage",
    "task_usage_daily",
    "task_usage_daily_dirty",
    "task_usage_rollup_state",
    "task_usage_dashboard_daily",
    "task_usage_dashboard_dirty",
    "task_usage_dashboard_rollup_state",
]


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    apply_sql(__file__, "down", lock={"ACCESS EXCLUSIVE": TABLES})
