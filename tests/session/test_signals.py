"""A signal may come at any moment, also while the server's notice is being logged."""

from __future__ import annotations

import signal
import socket
import sys

import pytest

from tests.support.database import BIN, Database
from tests.support.processes import finish, read_until
from tests.support.product import wait_until
from tests.support.walks import runners

# A signal that comes while a line is being written, and a statement that goes on after that line.
SESSION = """
import logging, os, signal, sys
from usage_rollup.session import connection, signals

class Terminated(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        os.kill(os.getpid(), signal.SIGTERM)

logging.basicConfig(level=logging.INFO, handlers=[Terminated()])
if sys.argv[1:] == ["plain"]:
    signals._is_in_notice = lambda frame: False
with connection.migration_session() as session:
    session.exec_driver_sql("DO $$ BEGIN RAISE INFO 'here'; PERFORM pg_sleep(600); END $$")
"""


def test_statement_is_cancelled_by_a_signal_that_comes_while_its_notice_is_logged(empty: Database) -> None:
    # The trap: from inside a notice the process ends on the spot, and the statement runs on.
    plain = empty.spawn(sys.executable, "-c", SESSION, "plain")
    finish(plain, 143)
    assert runners(empty) == 1
    empty.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO %'")
    wait_until(lambda: runners(empty) == 0, "its session is gone")

    process = empty.spawn(sys.executable, "-c", SESSION)
    read_until(process, "here")
    finish(process, 143)
    wait_until(lambda: runners(empty) == 0, "its session is gone")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("command", "imported"),
    [(("alembic", "upgrade", "head"), "psycopg"), (("usage-rollup", "tick"), "alembic.config")],
)
def test_signal_among_the_imports_ends_a_command_as_any_other_does(
    empty: Database, command: tuple[str, ...], imported: str, signum: signal.Signals, status: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgres://u:p@127.0.0.1:{silent.getsockname()[1]}/d"
        program, *arguments = command
        process = empty.spawn(str(BIN / program), *arguments, DATABASE_URL=url, PYTHONPROFILEIMPORTTIME="1")
        read_until(process, f" {imported}\n")
        process.send_signal(signum)
        finish(process, status)
