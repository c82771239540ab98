"""What every other test relies on: a session that was closed is over, and what it starts heeds signals."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg

from tests.support.database import ROOT, Connection, Database
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


def started_where_sigint_is_ignored(first: str) -> str:
    """Return what a process said, and how it ended, whom Python has started after doing `first`."""
    program = (
        f"import subprocess; {first};"
        " print(subprocess.run(['sh', '-c', 'kill -INT $$; echo survived']).returncode)"
    )
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-c", program]
    return subprocess.run(ignoring, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_what_tests_start_heeds_sigint_also_where_it_is_ignored() -> None:
    assert started_where_sigint_is_ignored("pass") == "survived\n0\n"
    assert started_where_sigint_is_ignored("from tests import conftest") == "-2\n"
