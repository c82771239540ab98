"""Session advisory locks, taken by polling.

pg_advisory_lock() has no deadline, names nobody, and deadlocks with CREATE INDEX CONCURRENTLY while
it waits; pg_try_advisory_lock() asked again and again does none of that.
"""

from __future__ import annotations

import time

import sqlalchemy as sa

from . import sessions
from .errors import LockBusy

# Held for a whole migration run, by the product's Go runner (since v0.3.15) and by ours.
MIGRATION_RUN = 7244554146635925501

# Held by every writer of task_usage_hourly.
HOURLY_ROLLUP = 4246

NAMES = {MIGRATION_RUN: "migration run", HOURLY_ROLLUP: "hourly rollup"}

# A healthy migration run or tick is over long before; a crash loop's supervisor is still patient.
DEFAULT_DEADLINE_S = 600.0

_POLL_INTERVAL_S = 0.1


def acquire(
    connection: sa.Connection, key: int, deadline_s: float = DEFAULT_DEADLINE_S, *, shared: bool = False
) -> None:
    """Take the session lock `key`, waiting up to `deadline_s` seconds, and commit.

    The lock is held by the session until it ends or calls release(); taking it again nests, shared and
    exclusive apart. Commits between attempts, so no snapshot is held while waiting. Raises LockBusy,
    naming the holder.
    """
    give_up = time.monotonic() + deadline_s
    attempt = sa.text(f"SELECT pg_try_advisory_lock{_SHARED[shared]}(:key)")
    while not connection.scalar(attempt, {"key": key}):
        holders = describe_holders(connection, key)
        connection.commit()
        if time.monotonic() >= give_up:
            raise LockBusy(
                f"advisory lock {key} ({NAMES[key]}) was not free within {deadline_s:.0f} s;"
                f" held by {holders}",
                hint=sessions.END_THEM,
            )
        time.sleep(_POLL_INTERVAL_S)
    connection.commit()


def release(connection: sa.Connection, key: int, *, shared: bool = False) -> None:
    """Give the session lock `key` back once, and commit."""
    connection.execute(sa.text(f"SELECT pg_advisory_unlock{_SHARED[shared]}(:key)"), {"key": key})
    connection.commit()


def is_waited_for(connection: sa.Connection, key: int) -> bool:
    """Say whether a session is blocked on advisory lock `key`; those that poll cannot be seen."""
    return bool(connection.scalar(sa.text(f"SELECT EXISTS (SELECT {_ON_KEY} AND NOT granted)"), {"key": key}))


def describe_holders(connection: sa.Connection, key: int) -> str:
    """Say who holds advisory lock `key` in this database: pid, application, state, since when."""
    holders = connection.execute(
        sa.text(f"SELECT pid, virtualtransaction {_ON_KEY} AND granted"), {"key": key}
    ).all()
    return sessions.describe(connection, holders)


_SHARED = {False: "", True: "_shared"}

# A bigint key is split into classid and objid; objsubid 1 marks that form.
_ON_KEY = """
FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
    AND (classid::bigint << 32 | objid::bigint) = :key
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
