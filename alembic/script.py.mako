"""${up_revision}_${message}: <what it does, in a few words; this line is the log line>

Why: <what the step is for, and why it comes now>
Reversed by: <the .down.sql beside this file, and what it cannot bring back>

Rules for the SQL beside this file, <revision>_<slug>.up.sql and .down.sql:
* in place of a long file a folder, <revision>_<slug>.up/, of parts 10_this.sql, 20_that.sql, one idea each;
* header: what, why now, what it assumes, the locks it takes, how it is undone;
* no BEGIN or COMMIT, no psql meta-commands: it runs in the step's transaction, as one string;
* names qualified or search_path pinned; constraints and indexes named; timestamptz;
* guards fail closed: RAISE with MESSAGE, DETAIL (measured values) and HINT (the next command);
* the file name is the ledger stem: add it to usage_rollup.contract.STEMS;
* table locks are named here, in LOCK, never waited for in the SQL;
* beside the module of a hook (`before_upgrade`) lies a .sql file of its name, which does the same in a script;
* with the commit: `make freeze`, because a released file never changes, and `make snapshot`.
"""

from usage_rollup.runner.step import apply_sql

revision = "${up_revision}"
down_revision = ${f'"{down_revision}"' if down_revision else None}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# Lock mode to tables of schema public; preflight tells who is in the way of them.
LOCK: dict[str, list[str]] = {}


def upgrade() -> None:
    apply_sql(__file__, "up", lock=LOCK)


def downgrade() -> None:
    apply_sql(__file__, "down")
