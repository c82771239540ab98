"""Open the sessions of a run: wait for the server, pin what a session depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ..errors import AGAIN, SessionLost, StatementFailed
from . import blockers, pinned, signals
from .database_url import conninfo_from_environment
from .opening import connect, startup_timeout_s
from .options import Options


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
    whatever PostgreSQL reports inside the block, LockBusy or StatementFailed: SessionLost where it is over.
    """
    conninfo = conninfo_from_environment() if conninfo is None else conninfo
    timeout_s = startup_timeout_s()
    signals.exit_on_termination()
    try:
        with engine(conninfo, timeout_s, options.settings(), **execution_options).connect() as session:
            try:
                yield session
            except DBAPIError as error:
                if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                    raise
                raise blockers.lock_busy(session, error.orig) from error
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
    # PostgreSQL and poolers, which translate nothing, end a session after FATAL. While one is opened, libpq
    # alone says that it ended.
    fatal = (error.diag.severity_nonlocalized or error.diag.severity) in {"FATAL", "PANIC"}
    unsaid = context.connection is None and isinstance(error, psycopg.OperationalError) and not error.sqlstate
    if context.is_disconnect or fatal or unsaid:
        context.is_disconnect = True
        raise SessionLost.of(error, hint=AGAIN) from error


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
