"""Open the sessions of a run: wait for the server, pin what a session depends on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from ..errors import DatabaseUnavailable, SessionLost, StatementFailed, UnsuitableDatabase
from . import options, pinned, poolers, signals, undecodable
from .database_url import conninfo_from_environment
from .options import Options

log = logging.getLogger(__name__)

# A database container may need minutes for crash recovery before it accepts connections.
DEFAULT_STARTUP_TIMEOUT_S = 180.0

# One attempt, when the environment does not say: a host that drops packets would take minutes.
CONNECT_TIMEOUT_S = 10

# UNIQUE NULLS NOT DISTINCT is new in 15.
MINIMUM_VERSION = 15


@contextmanager
def migration_session(
    options: Options = Options(),  # noqa: B008
    conninfo: str | None = None,
    **execution_options: Any,
) -> Iterator[sa.Connection]:
    """Open one session on the database that the environment, or `conninfo`, names.

    Each statement commits by itself: transaction() and snapshot() say what belongs together. The session is
    waited for, pinned, given what SQL reads of `options`, and never pooled: when the block is left, however
    it is left, the session ends, and with it its transaction and every advisory lock. From here on SIGTERM
    and SIGINT leave the block. Raises ConfigurationError, DatabaseUnavailable, UnsuitableDatabase and, for
    whatever PostgreSQL reports inside the block, StatementFailed: SessionLost where the session is over.
    """
    conninfo = conninfo_from_environment() if conninfo is None else conninfo
    timeout_s = startup_timeout_s()
    signals.exit_on_termination()
    try:
        with engine(conninfo, timeout_s, options.settings(), **execution_options).connect() as session:
            yield session
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        raise StatementFailed.of(error.orig) from error


def engine(
    conninfo: str, timeout_s: float, settings: Mapping[str, str] | None = None, **execution_options: Any
) -> sa.Engine:
    """Return what opens sessions by connect(), each statement committing by itself, and pools none.

    Whatever is being done when a session is lost raises SessionLost, which is no DBAPIError: who handles a
    failed statement does not take it for one.
    """
    created = sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(conninfo, timeout_s, settings),
        poolclass=NullPool,
        # A session ends when it is closed; a rollback before could only fail.
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        execution_options=execution_options,
    )
    sa.event.listen(created, "handle_error", _tell_loss)
    return created


def _tell_loss(context: sa.engine.ExceptionContext) -> None:
    """Raise SessionLost for an error that is the end of its session; SQLAlchemy's handle_error."""
    error = context.original_exception
    if not isinstance(error, psycopg.Error):
        return
    # PostgreSQL and poolers end a session after FATAL. While one is opened, libpq alone says that it ended.
    fatal = error.diag.severity_nonlocalized in {"FATAL", "PANIC"}
    unsaid = context.connection is None and isinstance(error, psycopg.OperationalError) and not error.sqlstate
    if context.is_disconnect or fatal or unsaid:
        context.is_disconnect = True
        raise SessionLost.of(error, hint="run the same command again; what was committed stays") from error


@contextmanager
def transaction(session: sa.Connection) -> Iterator[None]:
    """Run the block as one READ COMMITTED transaction: committed when it ends, rolled back when it raises."""
    with _isolated(session, "READ COMMITTED"), session.begin():
        yield


@contextmanager
def snapshot(session: sa.Connection) -> Iterator[None]:
    """Run the block as one REPEATABLE READ, READ ONLY transaction: all it reads is of one moment."""
    with _isolated(session, "REPEATABLE READ", read_only=True), session.begin():
        yield


@contextmanager
def writing_snapshot(session: sa.Connection) -> Iterator[None]:
    """Run the block as one REPEATABLE READ transaction: committed when it ends, rolled back when it raises.

    What somebody else has written since its first statement makes it fail with SQLSTATE 40001.
    """
    with _isolated(session, "REPEATABLE READ"), session.begin():
        yield


@contextmanager
def alone(session: sa.Connection) -> Iterator[None]:
    """Commit what is open, then let each statement of the block commit by itself."""
    session.commit()
    with _isolated(session, "AUTOCOMMIT"):
        yield


@contextmanager
def in_transactions(session: sa.Connection) -> Iterator[sa.Connection]:
    """Lend the session to somebody who begins and commits by himself, as Alembic does."""
    with _isolated(session, "READ COMMITTED"):
        yield session


@contextmanager
def policies_filter(session: sa.Connection) -> Iterator[None]:
    """Let policies hide rows from the block, as those of pg_cron are meant to; elsewhere they are an error.

    In the caller's transaction, or outside one.
    """
    session.execute(sa.text(pinned.statement("row_security", "on")))
    try:
        yield
    finally:
        # A session that was lost has nothing to set back, and a failed transaction does it by itself.
        if not session.invalidated:
            with suppress(DBAPIError):
                session.execute(sa.text(pinned.statement("row_security", "off")))


@contextmanager
def _isolated(session: sa.Connection, level: str, *, read_only: bool = False) -> Iterator[None]:
    # Without a round trip: psycopg sends it with BEGIN. SQLAlchemy counts a statement that committed by
    # itself as the beginning of something, which has to be ended first.
    before = session.get_execution_options().get("isolation_level", "AUTOCOMMIT")
    session.rollback()
    session.execution_options(isolation_level=level, postgresql_readonly=read_only)
    try:
        yield
    finally:
        # A session that was lost has nothing to restore, and would be opened anew by the attempt.
        if not session.closed and not session.invalidated:
            session.rollback()
            session.execution_options(isolation_level=before, postgresql_readonly=False)


def startup_timeout_s() -> float:
    """Return DATABASE_STARTUP_TIMEOUT in seconds: how long to wait for a server that does not answer yet."""
    text = os.environ.get("DATABASE_STARTUP_TIMEOUT", "").strip()
    return options.seconds(text, "DATABASE_STARTUP_TIMEOUT") if text else DEFAULT_STARTUP_TIMEOUT_S


def connect(
    conninfo: str, timeout_s: float, settings: Mapping[str, str] | None = None
) -> psycopg.Connection[Any]:
    """Open a session, waiting up to `timeout_s` seconds for the server, and pin its settings.

    `settings` are custom ones, with a dot in their names, besides pinned.SETTINGS. Waits only while the
    server does not answer or says it is starting up (libpq's PQping, which needs no login); a refused login
    or an unknown database is final at once. Raises DatabaseUnavailable, and UnsuitableDatabase for a server
    that is too old. Returns outside a transaction.
    """

    seen_up = False

    def not_accepting(error: BaseException) -> bool:
        nonlocal seen_up
        if not isinstance(error, psycopg.OperationalError):
            return False
        # Without encryption, because a ping that insists on what the server lacks sees no response.
        plain = make_conninfo(conninfo, sslmode="disable", gssencmode="disable")
        if pq.PGconn.ping(plain.encode()) in (pq.Ping.REJECT, pq.Ping.NO_RESPONSE):
            return True
        # It may have come up between the attempt and this look: once more, then the refusal is its own.
        first, seen_up = not seen_up, True
        return first

    started = time.monotonic()
    retrying = Retrying(
        retry=retry_if_exception(not_accepting),
        stop=stop_after_delay(timeout_s),
        wait=wait_exponential(multiplier=0.1, max=2.0),
        before_sleep=lambda state: (
            log.info("waiting up to %.0f s for the database", timeout_s)
            if state.attempt_number == 1 and not seen_up
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
    poolers.require_own(connection, timeout_s)
    for statement in pinned.statements(settings or {}):
        connection.execute(statement)
    undecodable.keep(connection)
    connection.add_notice_handler(_log_notice)
    return connection


def _connect_once(conninfo: str) -> poolers.Session:
    if "connect_timeout" not in conninfo_to_dict(conninfo):
        conninfo = make_conninfo(conninfo, connect_timeout=CONNECT_TIMEOUT_S)
    # With the start-up packet, so that the first messages can be read, too; nothing set elsewhere beats it.
    conninfo = make_conninfo(conninfo, client_encoding="UTF8")
    # A prepared statement lives on a server session that a pooler may hand to somebody else.
    # Autocommit, until a timeout for idle transactions that the role may carry is off.
    return poolers.Session.connect(conninfo, prepare_threshold=None, autocommit=True)


def _log_notice(diagnostic: psycopg.errors.Diagnostic) -> None:
    """Log what the server warns of, and what SQL of ours tells as INFO; notices are everyday."""
    level = {"WARNING": logging.WARNING, "INFO": logging.INFO}.get(diagnostic.severity_nonlocalized or "")
    if level:
        log.log(level, "%s", diagnostic.message_primary)
