"""100_user_timezone: let a viewer choose the time zone of their reports.

Why: the hourly rollup stores UTC hours, so the zone belongs to who looks.
Reversed by: the .down.sql; the zones users chose are lost.
"""

from usage_rollup.runner.step import apply_sql

revision = "100"
down_revision = "097"
branch_labels = None
depends_on = None

LOCK = {"ACCESS EXCLUSIVE": ["user"]}


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    apply_sql(__file__, "down", lock={"ACCESS EXCLUSIVE": ["user"]})
