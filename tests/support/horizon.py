"""Transactions that hold the horizon back, and a horizon that tests need not wait five minutes for."""

from __future__ import annotations

from datetime import datetime

from tests.support.closing import Session
from tests.support.database import Database

HORIZON = "public.task_usage_hourly_horizon(interval)"


def rewrite_function(database: Database, function: str, old: str, new: str) -> None:
    """Change the installed text of a function, where a test cannot wait for minutes to pass.

    Raises LookupError where the text is not there: no test has failed by that (support/mutants/judge.py).
    """
    definition: str = database.value("SELECT pg_get_functiondef(%s::regprocedure)", function)
    if definition.count(old) != 1:
        raise LookupError(f"found {definition.count(old)} times in {function}: {old}")
    database.execute(definition.replace(old, new))


def without_margin(database: Database) -> None:
    """Take the horizon's five minutes away: only open transactions are left to hold it back.

    They would hide every transaction that is younger, and a test cannot wait until one is older.
    """
    rewrite_function(database, HORIZON, "v_start - interval '5 minutes'", "v_start")


def named_at_once(database: Database) -> None:
    """Have those named that hold the horizon back without being five minutes old."""
    rewrite_function(
        database, "public.task_usage_hourly_held_back_by()", "interval '5 minutes'", "interval '0'"
    )


def stuck_writer(database: Database, *, age: str = "3 hours", **conninfo: str) -> Session:
    """Open a transaction that has written usage and stays open, as if it were of that age."""
    named_at_once(database)
    rewrite_function(database, HORIZON, "interval '5 minutes'", f"interval '{age}'")
    return begin(database, "DELETE FROM task_usage WHERE false", **conninfo)[0]


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
