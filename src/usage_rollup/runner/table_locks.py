"""Lock the tables of a step without making the product wait: give way, and try again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..errors import LockBusy, Refusal
from ..queries import array, beside, filled, literal
from ..session import blockers

_SQL = beside(__file__)

# How long a step goes on asking for its table locks before it leaves them to the next run.
PATIENCE_S = 120.0

# Lock mode to tables of schema public.
Locks = Mapping[str, Sequence[str]]


def lock_tables(connection: sa.Connection, lock: Locks) -> None:
    """Lock those tables of `lock` that exist, giving way until all are free at once, for at most PATIENCE_S.

    Or for the run's option lock-timeout. Needs an open transaction, which holds the locks to its end. What
    table_locks.sql does is said there. Raises LockBusy, naming the sessions in the way. PostgreSQL manual:
    13.3 Explicit Locking, 20.12 Lock Management.
    """
    try:
        connection.exec_driver_sql(statement(lock), execution_options={"no_parameters": True})
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        report = error.orig.diag
        raise LockBusy(
            Refusal(
                report.message_primary or "table locks were not free in time",
                report.message_detail,
                report.message_hint,
                facts={"tables": [table for tables in lock.values() for table in tables]},
            )
        ) from error


def statement(lock: Locks) -> str:
    """Return the statement that locks those tables of `lock` that exist, for a transaction that is open."""
    names = array(table for tables in lock.values() for table in tables)
    return filled(
        _SQL["lock_tables"],
        patience=literal(f"{PATIENCE_S:.0f}s"),
        names=names,
        locks=",\n".join(
            f"({number}, {literal(mode)}, {literal(' '.join(tables))})"
            for number, (mode, tables) in enumerate(lock.items())
        ),
        blockers=blockers.sql("table_locks", tables=names),
    )
