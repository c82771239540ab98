"""Describe the sessions and prepared transactions that are in the way, for an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from .. import queries

_SQL = queries.beside(__file__)


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


def sql(holders: str, **values: str) -> str:
    """Return the query, of `who` and `hint`, that all of these are, for a DO block.

    `holders` is advisory_lock with its `key`, or table_locks with its `tables`.
    """
    return queries.filled(queries.filled(_SQL["who"], holders=_SQL[holders]), **values)


def _read(connection: sa.Connection, holders: str, **parameters: Any) -> Blockers:
    return Blockers(*connection.execute(sa.text(sql(holders)), parameters).one())
