"""Transactions that hold the horizon back, and a horizon that tests need not wait five minutes for."""

from __future__ import annotations

from datetime import datetime

from tests.support.database import Database, Session

HORIZON = "public.task_usage_hourly_horizon(interval)"


def rewrite_function(database: Database, function: str, old: str, new: str) -> None:
    """Change the installed text of a function, where a test cannot wait for minutes to pass."""
    definition: str = database.value("SELECT pg_get_functiondef(%s::regprocedure)", function)
    assert definition.count(old) == 1
    database.execute(definition.replace(old, new))


def without_margin(database: Database) -> None:
    """Take the horizon's five minutes away: only open transactions are left to hold it back.

    They would hide every transaction that is younger, and a test cannot wait until one is older.
    """
    rewrite_function(database, HORIZON, "v_start - interval '5 minutes'", "v_start")


def begin(database: Database, *statements: str, **conninfo: str) -> tuple[Session, datetime]:
    """Open a transaction that stays open; return it and when it began."""
    connection = database.connect(autocommit=True, **conninfo)
    connection.execute("BEGIN")
    for statement in statements:
        connection.execute(statement)
    began: datetime = database.value(
        "SELECT xact_start FROM pg_stat_activity WHERE pid = %s", connection.info.backend_pid
    )
    return connection, began
