"""103_drop_legacy_daily_rollups: drop both legacy daily rollups, behind a guard that fails closed.

Why: the hourly rollup serves every report, once it is proven to hold the history.
Reversed by: the .down.sql, which moves kept tables back or else rebuilds both rollups from raw rows;
dropped legacy rows whose raw rows are gone do not come back.
"""

from usage_rollup.hourly.backfill import backfill_before_103
from usage_rollup.hourly.before_adoption import prove_before_adoption
from usage_rollup.runner.step import apply_sql

revision = "103"
down_revision = "102"
branch_labels = None
depends_on = None

# Runs after 102 has committed, every time this revision is about to be applied.
before_upgrade = backfill_before_103

# Runs where another runner has applied this revision, before that is recorded in alembic_version.
before_adoption = prove_before_adoption

# The product's tables carry the triggers to drop; old Go runners, which take no advisory lock, are
# kept out by the same locks.
TABLES = [
    "agent_task_queue",
    "issue",
    "task_usage",
    "task_usage_daily",
    "task_usage_daily_dirty",
    "task_usage_rollup_state",
    "task_usage_dashboard_daily",
    "task_usage_dashboard_dirty",
    "task_usage_dashboard_rollup_state",
]
LOCK = {"ACCESS EXCLUSIVE": TABLES}

# What 103 drops was made by this part of the baseline, and is made by it again on the way back.
LEGACY = "097_autopilot_project_id.up/20_legacy_rollups.sql"


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    kept = [f"legacy_usage.{table}" for table in TABLES[3:]]
    apply_sql(__file__, "down", lock={"ACCESS EXCLUSIVE": [*TABLES[:3], *kept]}, first=[LEGACY])
