"""Lock the tables of a step without making the product wait: give way, and try again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..errors import LockBusy, Refusal
from ..queries import array, beside, filled, literal
from ..session import blockers
from ..session.options import LOCK_PATIENCE_S

_SQL = beside(__file__)

# How long a step goes on asking for its table locks before it leaves them to the next run.
PATIENCE_S = LOCK_PATIENCE_S

# Lock mode to tables of schema public, or, as legacy_usage.name, to those that 103 keeps.
Locks = Mapping[str, Sequence[str]]

# Keeps out of a ledger whoever writes, or locks a row, and nobody who reads.
LEDGER_MODE = "EXCLUSIVE"


def ledgers(version_table: str) -> tuple[str, str]:
    """Return the tables in which a step is recorded.

    They are locked with it, first: somebody's open transaction that wrote the same row would be waited for
    by the step's last statements, under all its other locks.
    """
    return version_table, "schema_migrations"


def lock_tables(connection: sa.Connection, lock: Locks, recorded_in: Sequence[str] = ()) -> None:
    """Lock those tables of `lock` that exist, giving way until all are free at once, for at most PATIENCE_S.

    Or for the run's option lock-timeout; before them the ledgers() it is `recorded_in`. Needs an open
    transaction, which holds the locks to its end, and a role that may act for the tables' owners. What
    table_locks.sql does is said there. Raises LockBusy, naming the sessions in the way. PostgreSQL manual:
    13.3 Explicit Locking, 20.12 Lock Management.
    """
    try:
        connection.exec_driver_sql(statement(lock, recorded_in), execution_options={"no_parameters": True})
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        report = error.orig.diag
        raise LockBusy(
            Refusal(
                report.message_primary or "table locks were not free in time",
                report.message_detail,
                report.message_hint,
                facts={"tables": [*recorded_in, *(table for tables in lock.values() for table in tables)]},
            )
        ) from error


def statement(lock: Locks, recorded_in: Sequence[str] = ()) -> str:
    """Return the statement that does what lock_tables() does, for a transaction that is open."""
    wanted = filled(
        _SQL["wanted"],
        locks=",\n".join(
            f"({number}, {literal(mode)}, {literal(' '.join(tables))})"
            for number, (mode, tables) in enumerate(lock.items())
        )
        or "(0, NULL, NULL)",
        ledgers=array(recorded_in),
        ledger_mode=literal(LEDGER_MODE),
    )
    return filled(
        _SQL["lock_tables"],
        patience=literal(f"{PATIENCE_S:.0f}s"),
        names=array(table for tables in lock.values() for table in tables),
        wanted=wanted,
        # Of the locks that could not be had: who holds what is asked for after them may be a live server.
        blockers=blockers.sql(
            "table_locks", wanted=f"SELECT w.* FROM (\n{wanted}\n) AS w WHERE w.number = v_lock.number"
        ),
    )
