"""Session advisory locks, taken by polling.

pg_advisory_lock() has no deadline, names nobody, and deadlocks with CREATE INDEX CONCURRENTLY while
it waits; pg_try_advisory_lock() asked again and again does none of that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import sqlalchemy as sa

from ..errors import LockBusy
from . import blockers, options

# Held for a whole migration run, by the product's Go runner (since v0.3.15) and by ours.
MIGRATION_RUN = 7244554146635925501

# Held by every writer of task_usage_hourly.
HOURLY_ROLLUP = 4246

NAMES = {MIGRATION_RUN: "migration run", HOURLY_ROLLUP: "hourly rollup"}

# A healthy migration run or tick is over long before; a crash loop's supervisor is still patient.
DEFAULT_DEADLINE_S = 600.0

_POLL_INTERVAL_S = 0.1


def acquire(connection: sa.Connection, key: int, deadline_s: float | None = None) -> None:
    """Take the session lock `key`, waiting up to `deadline_s` seconds, and commit.

    Without a deadline, the run's option lock-timeout is one, else DEFAULT_DEADLINE_S. The lock is held
    by the session until it ends or calls release(); taking it again nests. Commits between attempts, so
    no snapshot is held while waiting. Raises LockBusy, naming the holder.
    """
    _take([connection], key, deadline_s, shared=False)


def acquire_shared(connections: Sequence[sa.Connection], key: int) -> None:
    """Take the session lock `key` shared on every one of `connections`, under acquire()'s terms.

    All of them or, while it waits, none: PostgreSQL refuses a shared lock as soon as somebody is queued
    for the exclusive one, and who held some and asked for more would wait for the one that waits for it.
    """
    _take(connections, key, None, shared=True)


def _take(connections: Sequence[sa.Connection], key: int, deadline_s: float | None, *, shared: bool) -> None:
    first = connections[0]
    if deadline_s is None:
        deadline_s = options.read_seconds(first, "lock-timeout", DEFAULT_DEADLINE_S)
    give_up = time.monotonic() + deadline_s
    attempt = sa.text(f"SELECT pg_try_advisory_lock{_SHARED[shared]}(:key)")
    while True:
        taken = []
        for connection in connections:
            if not connection.scalar(attempt, {"key": key}):
                break
            connection.commit()
            taken.append(connection)
        if len(taken) == len(connections):
            return
        for connection in taken:
            release(connection, key, shared=shared)
        holders = describe_holders(connection, key)
        connection.commit()
        if time.monotonic() >= give_up:
            raise LockBusy(
                f"advisory lock {key} ({NAMES[key]}) was not free within {deadline_s:.0f} s;"
                f" held by {holders}",
                hint=blockers.END_THEM,
            )
        time.sleep(_POLL_INTERVAL_S)


def release(connection: sa.Connection, key: int, *, shared: bool = False) -> None:
    """Give the session lock `key` back once, and commit."""
    connection.execute(sa.text(f"SELECT pg_advisory_unlock{_SHARED[shared]}(:key)"), {"key": key})
    connection.commit()


def is_waited_for(connection: sa.Connection, key: int) -> bool:
    """Say whether a session is blocked on advisory lock `key`; those that poll cannot be seen."""
    return bool(connection.scalar(sa.text(f"SELECT EXISTS (SELECT {_ON_KEY} AND NOT granted)"), {"key": key}))


def is_held(connection: sa.Connection, key: int) -> bool:
    """Say whether any session of this database holds advisory lock `key`."""
    return bool(connection.scalar(sa.text(f"SELECT EXISTS (SELECT {_ON_KEY} AND granted)"), {"key": key}))


def describe_holders(connection: sa.Connection, key: int) -> str:
    """Say who holds advisory lock `key` in this database: pid, application, state, since when."""
    holders = connection.execute(
        sa.text(f"SELECT pid, virtualtransaction {_ON_KEY} AND granted"), {"key": key}
    ).all()
    return blockers.describe(connection, holders)


_SHARED = {False: "", True: "_shared"}

# A bigint key is split into classid and objid; objsubid 1 marks that form.
_ON_KEY = """
FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
    AND (classid::bigint << 32 | objid::bigint) = :key
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
