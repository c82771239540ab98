"""104_drop_runtime_timezone: drop agent_runtime.timezone, since days belong to the viewer now.

Why: 103 dropped the last reader of the column. A v0.3.4 server still writes it: stop it first.
Reversed by: the .down.sql, with every runtime back at UTC.
"""

from usage_rollup.runner.step import apply_sql

revision = "104"
down_revision = "103"
branch_labels = None
depends_on = None

LOCK = {"ACCESS EXCLUSIVE": ["agent_runtime"]}


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    apply_sql(__file__, "down", lock={"ACCESS EXCLUSIVE": ["agent_runtime"]})
