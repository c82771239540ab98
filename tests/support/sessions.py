"""What another session is doing, for tests that wait until it has come so far."""

from __future__ import annotations

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus

from tests.support.database import Connection, Database


def is_blocked(database: Database, connection: Connection) -> bool:
    """Tell whether a session waits for a lock that another one holds."""
    blocked: bool = database.value(
        "SELECT cardinality(pg_blocking_pids(%s)) > 0", connection.info.backend_pid
    )
    return blocked


def is_polling(database: Database, connection: Connection) -> bool:
    """Tell whether a session sleeps between two looks at what it waits for."""
    polling: bool = database.value(
        "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", connection.info.backend_pid
    )
    return polling


def is_gone(database: Database, pid: int) -> bool:
    """Tell whether a session is over in the server, and with it the locks it held."""
    gone: bool = database.value("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
    return gone


def is_idle(session: sa.Connection) -> bool:
    """Tell whether the server has no transaction open for this session."""
    driver = session.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver.info.transaction_status == TransactionStatus.IDLE
