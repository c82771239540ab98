"""Describe the sessions and prepared transactions that are in the way, for an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa

from .. import queries
from ..contract import BASELINE, HOURLY_ROLLUP
from ..errors import LockBusy, Refusal

_SQL = queries.beside(__file__)

# Rows (mode, held modes that keep it out).
CONFLICTS = _SQL["conflicts"]

_LOCK_WAIT = queries.filled(
    _SQL["lock_wait"], product=queries.array(BASELINE.columns), hourly_rollup=str(HOURLY_ROLLUP)
)

# Where it is, as one value.
_LOCK_WAIT_MESSAGE = queries.filled(_SQL["lock_wait_message"], lock_wait=_LOCK_WAIT)

# Rows (pid, virtualtransaction), whoever is asked for.
_HOLDERS = {
    "given": _SQL["given"],
    "advisory_lock": _SQL["advisory_lock"],
    "table_locks": queries.filled(_SQL["table_locks"], conflicts=CONFLICTS),
    "lock_wait": f"SELECT h.pid, h.virtualtransaction FROM (\n{_LOCK_WAIT}\n) AS h",
}


@dataclass(frozen=True)
class Blockers:
    """Who is in the way, in words, and `hint`, the statements that end them."""

    who: str
    hint: str

    def __str__(self) -> str:
        """Return who they are."""
        return self.who


def describe(connection: sa.Connection, holders: Iterable[Sequence[Any]]) -> Blockers:
    """Say who `holders` are: rows of pg_locks, as (pid, virtualtransaction).

    A session by pid, role, application, state and since when; a prepared transaction, which has no
    pid, by its name. Reads in the caller's transaction.
    """
    pids, transactions = [list(column) for column in zip(*holders, strict=True)] or ([], [])
    return _read(connection, "given", pids=pids, transactions=transactions)


def of_advisory_lock(connection: sa.Connection, key: int) -> Blockers:
    """Say who holds advisory lock `key` in this database, on the terms of describe()."""
    return _read(connection, "advisory_lock", key=key)


def lock_busy(session: sa.Connection, error: psycopg.errors.LockNotAvailable) -> LockBusy:
    """Return what to raise for a statement whose wait for somebody else's lock has come to its deadline.

    `session` is one that has given up the transaction of that statement; it is asked who holds what the
    statement may have waited for, and is left outside a transaction. SQL of ours that raises the same says
    by itself who is in the way.
    """
    if not error.diag.message_hint:
        session.rollback()
    return LockBusy(lock_wait(session, error))


def lock_wait(session: sa.Connection, error: psycopg.errors.LockNotAvailable) -> Refusal:
    """Say what lock_busy() says, in the caller's transaction, which has outlived the statement."""
    facts, report = {"sqlstate": error.sqlstate}, error.diag
    if report.message_hint:
        return Refusal(report.message_primary or "", report.message_detail, report.message_hint, facts=facts)
    # Who was there earlier in the transaction may have gone, and others come.
    session.execute(sa.text("SELECT pg_stat_clear_snapshot()"))
    message: str = session.scalar(sa.text(_LOCK_WAIT_MESSAGE))
    blockers = _read(session, "lock_wait")
    return Refusal(message, f"in the way: {blockers.who}", f"{blockers.hint}; then begin again", facts=facts)


def in_script(again: str) -> str:
    """Return what ends a block of PL/pgSQL, which has a record v_blockers, and does what lock_busy() does.

    The expression `again` says what to do next.
    """
    return queries.filled(
        _SQL["in_script"], blockers=sql("lock_wait"), message=_LOCK_WAIT_MESSAGE, again=again
    )


def sql(holders: str, **values: str) -> str:
    """Return the query, of `who` and `hint`, that all of these are, for a DO block.

    `holders` is advisory_lock with its `key`, table_locks with what is `wanted`, or lock_wait.
    """
    return queries.filled(queries.filled(_SQL["who"], holders=_HOLDERS[holders]), **values)


def _read(connection: sa.Connection, holders: str, **parameters: Any) -> Blockers:
    return Blockers(*connection.execute(sa.text(sql(holders)), parameters).one())
