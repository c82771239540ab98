"""Open the sessions of a run: wait for the server, pin what a session depends on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from ..errors import DatabaseUnavailable, StatementFailed, UnsuitableDatabase, explain
from . import durations, signals
from .database_url import conninfo_from_environment

log = logging.getLogger(__name__)

APPLICATION_NAME = "usage-rollup"

# A database container may need minutes for crash recovery before it accepts connections.
DEFAULT_STARTUP_TIMEOUT_S = 180.0

# One attempt, when the environment does not say: a host that drops packets would take minutes.
CONNECT_TIMEOUT_S = 10

# UNIQUE NULLS NOT DISTINCT is new in 15.
MINIMUM_VERSION = 15

# Whatever the role, the database or the service file set: statements here mean the same everywhere.
# Deadlines are set by the phases that need one.
SESSION_SETTINGS = {
    "application_name": APPLICATION_NAME,
    "search_path": "public, pg_temp",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "standard_conforming_strings": "on",
    # What `alembic check` reads back would differ in every quoted name.
    "quote_all_identifiers": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "jit": "off",
    # Its hash tables live in /dev/shm, of which a container has 64 MB.
    "enable_parallel_hash": "off",
    # A slice's hash tables fit; a server of 1 GB can spare it for one session.
    "work_mem": "64MB",
}


@contextmanager
def migration_session() -> Iterator[sa.Connection]:
    """Open the one session that migrates the database the environment names.

    It is waited for, pinned and never pooled: when the block is left, however it is left, the session
    ends, and with it its transaction and every advisory lock. From here on SIGTERM and SIGINT leave
    the block. Raises ConfigurationError, DatabaseUnavailable, UnsuitableDatabase and, for whatever
    PostgreSQL reports inside the block, StatementFailed.
    """
    conninfo = conninfo_from_environment()
    timeout_s = startup_timeout_s()
    signals.exit_on_termination()
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: connect(conninfo, timeout_s), poolclass=NullPool
    )
    try:
        with engine.connect() as session:
            yield session
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        again = (
            "run the same command again; what was committed stays" if error.connection_invalidated else None
        )
        raise StatementFailed(explain(error.orig), hint=again) from error


def startup_timeout_s() -> float:
    """Return DATABASE_STARTUP_TIMEOUT in seconds: a number, or one with the unit s, m or h."""
    text = os.environ.get("DATABASE_STARTUP_TIMEOUT", "").strip()
    return durations.seconds(text, "DATABASE_STARTUP_TIMEOUT") if text else DEFAULT_STARTUP_TIMEOUT_S


def connect(conninfo: str, timeout_s: float) -> psycopg.Connection[Any]:
    """Open a session, waiting up to `timeout_s` seconds for the server, and pin its settings.

    Waits only while the server does not answer or says it is starting up (libpq's PQping, which
    needs no login); a refused login or an unknown database is final at once. Raises
    DatabaseUnavailable, and UnsuitableDatabase for a server that is too old. Returns outside a transaction.
    """

    def not_accepting(error: BaseException) -> bool:
        if not isinstance(error, psycopg.OperationalError):
            return False
        # Without encryption, because a ping that insists on what the server lacks sees no response.
        plain = make_conninfo(conninfo, sslmode="disable", gssencmode="disable")
        return pq.PGconn.ping(plain.encode()) in (pq.Ping.REJECT, pq.Ping.NO_RESPONSE)

    started = time.monotonic()
    retrying = Retrying(
        retry=retry_if_exception(not_accepting),
        stop=stop_after_delay(timeout_s),
        wait=wait_exponential(multiplier=0.1, max=2.0),
        before_sleep=lambda state: (
            log.info("waiting up to %.0f s for the database", timeout_s)
            if state.attempt_number == 1
            else None
        ),
        reraise=True,
    )
    try:
        connection = retrying(_connect_once, conninfo)
    except psycopg.OperationalError as error:
        waited_s = time.monotonic() - started
        after = f" after {waited_s:.0f} s" if waited_s >= 1 else ""
        raise DatabaseUnavailable(
            f"cannot connect to the database{after}: {' '.join(str(error).split())}",
            hint="check DATABASE_URL and that the server is up;"
            " DATABASE_STARTUP_TIMEOUT says how long to wait for it",
        ) from error
    version = connection.info.server_version // 10000
    if version < MINIMUM_VERSION:
        connection.close()
        raise UnsuitableDatabase(
            f"PostgreSQL {MINIMUM_VERSION} or newer is required, this server is {version}",
            hint="upgrade the server with pg_upgrade or dump and restore, then try again",
        )
    names = list(SESSION_SETTINGS)
    # By way of pg_settings, because not every server knows every one (transaction_timeout is new in 17).
    connection.execute(
        "SELECT set_config(s.name, p.value, false) FROM pg_settings s"
        " JOIN unnest(%s::text[], %s::text[]) AS p (name, value) USING (name)",
        (names, [SESSION_SETTINGS[name] for name in names]),
    )
    connection.add_notice_handler(_log_warning)
    connection.autocommit = False
    return connection


def _connect_once(conninfo: str) -> psycopg.Connection[Any]:
    if "connect_timeout" not in conninfo_to_dict(conninfo):
        conninfo = make_conninfo(conninfo, connect_timeout=CONNECT_TIMEOUT_S)
    # A prepared statement lives on a server session that a pooler may hand to somebody else.
    # Autocommit, until a timeout for idle transactions that the role may carry is off.
    return psycopg.connect(conninfo, prepare_threshold=None, autocommit=True)


def _log_warning(diagnostic: psycopg.errors.Diagnostic) -> None:
    if diagnostic.severity_nonlocalized == "WARNING":
        log.warning("%s", diagnostic.message_primary)
