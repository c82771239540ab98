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


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    apply_sql(__file__, "down")
