"""What four later steps of the product put on top: a stand-in written by their contract, not their text.

What they do to tables and triggers is held equal to the facts of real releases (test_real_releases).
Its window works key by key, at a cost that grows with the square of the keys; it drains the public queue
by time, does nothing for an empty range, and fails over one sum that does not fit bigint. Its tick rolls
up what is older than five minutes, and calls our prune.
"""

from __future__ import annotations

from tests.support.database import Database
from usage_rollup.queries import beside

# By ledger stem, in order.
STEPS = beside(__file__)

_REPLACES = "CREATE OR REPLACE FUNCTION "

# The steps that replace a function of 102.
REPLACED = {stem for stem, text in STEPS.items() if _REPLACES in text}


def function_of(stem: str) -> str:
    """Return the statement with which a step replaces a function, its last one."""
    return STEPS[stem][STEPS[stem].index(_REPLACES) :]


def apply_later_release(database: Database, *numbers: str) -> Database:
    """Apply the steps whose stems begin with `numbers`, all of them if none is named, and record them."""
    stems = [stem for stem in STEPS if not numbers or stem.split("_")[0] in numbers]
    with database.connect() as connection:
        for stem in stems:
            connection.execute(STEPS[stem].encode())
        connection.execute(
            "INSERT INTO public.schema_migrations (version) SELECT unnest(%s::text[])", [stems]
        )
    return database


def later_tick(database: Database) -> int:
    """Tick as if five minutes had passed since the last one; return the rows written and deleted."""
    database.execute(
        "UPDATE task_usage_hourly_dirty SET enqueued_at = enqueued_at - interval '6 minutes'"
        " WHERE isfinite(enqueued_at)"
    )
    rows: int = database.value("SELECT rollup_task_usage_hourly()")
    return rows
