"""Open the sessions of a run: wait for the server, pin what a session depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ..errors import StatementFailed
from . import blockers, pinned, signals
from .database_url import conninfo_from_environment
from .opening import DEFAULT_STARTUP_TIMEOUT_S, MINIMUM_VERSION, connect, startup_timeout_s
from .options import Options

__all__ = [
    "DEFAULT_STARTUP_TIMEOUT_S",
    "MINIMUM_VERSION",
    "alone",
    "connect",
    "engine",
    "in_transactions",
    "migration_session",
    "policies_filter",
    "snapshot",
    "startup_timeout_s",
    "transaction",
    "writing_snapshot",
]


@contextmanager
def migration_session(options: Options = Options()) -> Iterator[sa.Connection]:  # noqa: B008
    """Open the one session that migrates the database the environment names.

    Each statement commits by itself: transaction() and snapshot() say what belongs together. The session is
    waited for, pinned, given what SQL reads of `options`, and never pooled: when the block is left, however
    it is left, the session ends, and with it its transaction and every advisory lock. From here on SIGTERM
    and SIGINT leave the block. Raises ConfigurationError, DatabaseUnavailable, UnsuitableDatabase and, for
    whatever PostgreSQL reports inside the block, LockBusy or StatementFailed.
    """
    conninfo = conninfo_from_environment()
    timeout_s = startup_timeout_s()
    signals.exit_on_termination()
    try:
        with engine(conninfo, timeout_s, options.settings()).connect() as session:
            try:
                yield session
            except DBAPIError as error:
                if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                    raise
                raise blockers.lock_busy(session, error.orig) from error
    except DBAPIError as error:
        if not isinstance(error.orig, psycopg.Error):
            raise
        again = (
            "run the same command again; what was committed stays" if error.connection_invalidated else None
        )
        raise StatementFailed.of(error.orig, hint=again) from error


def engine(conninfo: str, timeout_s: float, settings: Mapping[str, str] | None = None) -> sa.Engine:
    """Return what opens sessions by connect(), each statement committing by itself, and pools none."""
    return sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(conninfo, timeout_s, settings),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
    )


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
