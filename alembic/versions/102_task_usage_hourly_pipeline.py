"""102_task_usage_hourly_pipeline: what keeps the hourly rollup equal to raw usage.

Why: from here on the history can be rolled up while a v0.3.4 server runs. Replaces the functions of
the Go release where those are installed.
Reversed by: the .down.sql; what is queued is lost, and the watermark goes back to 1970, so that the next
upgrade walks history again.
"""

from usage_rollup.runner.step import apply_sql

revision = "102"
down_revision = "101"
branch_labels = None
depends_on = None

# The first keeps writers out, so that every row is either committed before the triggers or theirs.
LOCK = {
    "SHARE ROW EXCLUSIVE": ["agent", "agent_task_queue", "issue", "task_usage"],
    "ACCESS EXCLUSIVE": [
        "task_usage_hourly",
        "task_usage_hourly_dirty",
        "task_usage_hourly_rollup_state",
    ],
}


# What only this revision has made: writers get there by the tables above, readers by themselves.
PRIVATE = [
    "task_usage_hourly_backfill",
    "task_usage_hourly_invalidation",
    "task_usage_hourly_left_out",
    "task_usage_hourly_legacy_settings",
    "task_usage_hourly_set_aside",
]


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    apply_sql(
        __file__,
        "down",
        lock={"ACCESS EXCLUSIVE": [*(table for tables in LOCK.values() for table in tables), *PRIVATE]},
    )
