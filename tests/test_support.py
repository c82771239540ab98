"""What every other test relies on: a session that was closed is over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg

from tests.support.database import Connection, Database
from tests.support.product import wait_until
from tests.support.sessions import is_blocked, is_gone


def lock(database: Database, session: Connection) -> int:
    """Make a session wait for a lock that another one holds; return its pid in the server."""
    session.pgconn.send_query(b"TABLE workspace")
    wait_until(lambda: is_blocked(database, session), "the session waits")
    return session.info.backend_pid


def test_close_returns_when_the_session_is_over_in_the_server_too(v034: Database) -> None:
    holder = v034.connect()
    holder.execute("LOCK TABLE workspace")

    # The trap: psycopg's own leaves the server at work, with all locks the session holds.
    plain = psycopg.connect(v034.url, autocommit=True)
    left = lock(v034, plain)
    plain.close()
    assert not is_gone(v034, left)

    session = v034.connect(autocommit=True)
    pid = lock(v034, session)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(session.close)
        wait_until(lambda: session.closed, "the client has closed")
        assert not is_gone(v034, pid)
        assert not closing.done()
        holder.rollback()
        closing.result()
    assert is_gone(v034, pid)


def test_end_of_a_test_ends_sessions_that_wait_for_each_other(v034: Database) -> None:
    waiting, holding = v034.connect(autocommit=True), v034.connect()
    holding.execute("LOCK TABLE workspace")
    pids = [lock(v034, waiting), holding.info.backend_pid]
    v034.end_sessions()
    assert all(is_gone(v034, pid) for pid in pids)
