"""Session advisory locks, taken by polling.

pg_advisory_lock() has no deadline, names nobody, and deadlocks with CREATE INDEX CONCURRENTLY while
it waits; pg_try_advisory_lock() asked again and again does none of that.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

import sqlalchemy as sa

from .. import queries
from ..contract import HOURLY_ROLLUP, MIGRATION_RUN
from ..errors import LockBusy, UnsuitableDatabase
from . import blockers, pool_mode
from .blockers import Blockers

log = logging.getLogger(__name__)

NAMES = {MIGRATION_RUN: "migration run", HOURLY_ROLLUP: "hourly rollup"}

# A healthy migration run or tick is over long before; a crash loop's supervisor is still patient.
PATIENCE_S = 600.0

_POLL_INTERVAL_S = 0.1

# When a wait is announced, and how often again: everyday traffic is over before the first.
_SAY_AFTER_S = 3.0
_SAY_EVERY_S = 60.0


def acquire(session: sa.Connection, key: int, patience_s: float = PATIENCE_S) -> None:
    """Take the session lock `key`, waiting up to `patience_s` seconds.

    The lock is held by the session until it ends or calls release(); taking it again nests. No transaction
    is open between attempts, so no snapshot is held while waiting. A wait of more than a few seconds is
    announced with its holder and its end, and again every minute. Raises LockBusy, naming the holder.
    """
    _take([session], key, patience_s, shared=False)


def acquire_shared(sessions: Sequence[sa.Connection], key: int, patience_s: float = PATIENCE_S) -> None:
    """Take the session lock `key` shared on every one of `sessions`, under acquire()'s terms.

    All of them or, while it waits, none: PostgreSQL refuses a shared lock as soon as somebody is queued
    for the exclusive one, and who held some and asked for more would wait for the one that waits for it.
    """
    _take(sessions, key, patience_s, shared=True)


def try_shared(session: sa.Connection, key: int) -> bool:
    """Take the session lock `key` shared, if that needs no wait, and say whether it is taken.

    It is not where somebody is queued for the exclusive one, whoever else holds it shared.
    """
    taken = bool(session.scalar(_attempt(shared=True), {"key": key}))
    if taken:
        _held_by(session)[key] += 1
    return taken


def _take(sessions: Sequence[sa.Connection], key: int, patience_s: float, *, shared: bool) -> None:
    started = time.monotonic()
    give_up, say_at = started + patience_s, started + _SAY_AFTER_S
    attempt = _attempt(shared=shared)
    while True:
        taken = list(takewhile(lambda session: session.scalar(attempt, {"key": key}), sessions))
        if len(taken) == len(sessions):
            for session in sessions:
                _held_by(session)[key] += 1
            return
        for session in taken:
            _unlock(session, key, shared=shared)
        if time.monotonic() >= give_up:
            holders = describe_holders(sessions[0], key)
            raise LockBusy(
                f"advisory lock {key} ({NAMES[key]}) was not free within {patience_s:.0f} s;"
                f" held by {holders}",
                hint=holders.hint,
                lock=key,
            )
        if time.monotonic() >= say_at:
            log.info(
                "waiting for advisory lock %d (%s), %.0f s more at most; held by %s",
                key,
                NAMES[key],
                give_up - time.monotonic(),
                describe_holders(sessions[0], key),
            )
            say_at += _SAY_EVERY_S
        time.sleep(_POLL_INTERVAL_S)


def _attempt(*, shared: bool) -> sa.TextClause:
    return sa.text(f"SELECT pg_try_advisory_lock{_SHARED[shared]}(CAST(:key AS bigint))")


def may_be_taken(session: sa.Connection) -> bool:
    """Say whether the role may call what takes a lock, and what gives it up."""
    return bool(session.scalar(sa.text(_SQL["may_be_taken"])))


def release(session: sa.Connection, key: int, *, shared: bool = False) -> None:
    """Give the session lock `key` back once."""
    _held_by(session)[key] -= 1
    _unlock(session, key, shared=shared)


def require_held(session: sa.Connection) -> None:
    """Refuse to go on unless the server's process that answers now holds every lock this session took.

    First in the transaction that relies on it: a pooler in transaction mode may serve the next one by another
    process, and what is written there would be written by two runs at once. Raises UnsuitableDatabase.
    """
    keys = [key for key, times in _held_by(session).items() if times > 0]
    held = session.scalars(sa.text(f"SELECT DISTINCT {_KEY} {_OF_THIS_PROCESS}")).all()
    if not {*keys} <= {*held}:
        raise UnsuitableDatabase(
            pool_mode.SHARED, detail="locks of this session are not held any more", hint=pool_mode.DIRECT
        )


def _held_by(session: sa.Connection) -> Counter[int]:
    """Return how often this session has taken each lock and not given it back; gone with the session."""
    held: Counter[int] = session.info.setdefault("advisory_locks", Counter())
    return held


def _unlock(session: sa.Connection, key: int, *, shared: bool) -> None:
    session.execute(
        sa.text(f"SELECT pg_advisory_unlock{_SHARED[shared]}(CAST(:key AS bigint))"), {"key": key}
    )


def is_waited_for(connection: sa.Connection, key: int) -> bool:
    """Say whether a session is blocked on advisory lock `key`; those that poll cannot be seen."""
    return bool(connection.scalar(sa.text(f"SELECT EXISTS (SELECT {_ON_KEY} AND NOT granted)"), {"key": key}))


def is_held(connection: sa.Connection, key: int) -> bool:
    """Say whether any session of this database holds advisory lock `key`."""
    return bool(connection.scalar(sa.text(f"SELECT EXISTS (SELECT {_ON_KEY} AND granted)"), {"key": key}))


def describe_holders(connection: sa.Connection, key: int) -> Blockers:
    """Say who holds advisory lock `key` in this database: pid, role, application, state, since when."""
    return blockers.of_advisory_lock(connection, key)


def in_script(key: int) -> str:
    """Return a block of PL/pgSQL that does in a script what acquire() does.

    Its session must be outside a transaction and outside a block that catches exceptions. The setting
    usage_rollup.lock_timeout says how long to wait.
    """
    return queries.filled(
        _SQL["in_script"],
        key=str(key),
        name=NAMES[key],
        patience=queries.literal(f"{PATIENCE_S:.0f}s"),
        blockers=blockers.sql("advisory_lock", key=str(key)),
    )


_SQL = queries.beside(__file__)


_SHARED = {False: "", True: "_shared"}

# A bigint key is split into classid and objid; objsubid 1 marks that form.
_KEY = "(classid::bigint << 32 | objid::bigint)"
_ADVISORY = """
FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_ON_KEY = f"{_ADVISORY} AND {_KEY} = :key"
_OF_THIS_PROCESS = f"{_ADVISORY} AND granted AND pid = pg_backend_pid()"
