"""What a revision's upgrade() and downgrade() are made of: table locks, then one SQL file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from alembic import op

from ..errors import LockBusy, StatementFailed, explain
from ..session import blockers, options
from . import script

log = logging.getLogger(__name__)

# How long a step goes on asking for its table locks before it leaves them to the next run.
LOCK_DEADLINE_S = 120.0

# Lock not free; we were a deadlock's victim; an old Go runner dropped a table after we looked.
_TRY_AGAIN = {"55P03", "40P01", "42P01"}

# The first attempts fail on everyday traffic; naming anybody then would be noise.
_ANNOUNCE_ATTEMPT = 5


Locks = Mapping[str, Sequence[str]]


def apply_sql(revision_file: str, direction: str, *, lock: Locks | None = None) -> None:
    """Run `<stem>.<direction>.sql`, the file beside `revision_file`, in the step's transaction.

    Runs as the owner of task_usage, where there is one, so that new objects belong to the product's
    role whoever migrates; the session's own role is back afterwards. First takes the table locks
    `lock`, lock mode to tables of schema public, under lock_tables()'s terms. The file is one
    multi-statement string: nothing in it is a bind parameter. Raises LockBusy, or StatementFailed with
    PostgreSQL's message, detail, hint and, where it gives a position, the line.
    """
    path = Path(revision_file).with_suffix(f".{direction}.sql")
    sql = path.read_text(encoding="utf-8")
    if op.get_context().as_sql:
        _write_script(sql, lock or {})
        return
    connection = op.get_bind()
    connection.exec_driver_sql(_BECOME_OWNER)
    if lock:
        lock_tables(connection, lock)
    try:
        connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise StatementFailed(f"{path.name}: {explain(error.orig, sql)}") from error
        raise
    connection.exec_driver_sql("RESET ROLE")


def _write_script(sql: str, lock: Locks) -> None:
    # Past SQLAlchemy's compiler, to which a colon is a bind parameter.
    impl = op.get_context().impl
    for statement in (
        f"{_BECOME_OWNER};",
        *([script.lock_tables(lock)] if lock else []),
        sql.rstrip(),
        "RESET ROLE;",
    ):
        impl.static_output(statement)


# NULL, on an empty database, resets the role to the session's own.
_BECOME_OWNER = (
    "SELECT set_config('role', (SELECT pg_get_userbyid(relowner) FROM pg_class"
    " WHERE oid = to_regclass('public.task_usage')), true)"
)


def lock_tables(connection: sa.Connection, lock: Locks) -> None:
    """Lock those tables of `lock` that exist, giving way until all are free at once.

    All the waiting of one attempt together stays below deadlock_timeout, so this session is gone from
    the queue before a deadlock check could choose a live server's transaction as its victim; then
    everything is released (a savepoint) and tried again after a growing, random pause, for at most
    LOCK_DEADLINE_S, or the run's option lock-timeout. Needs an open transaction, which holds the locks to
    its end. Raises LockBusy, naming the sessions in the way. PostgreSQL manual: 13.3 Explicit Locking,
    20.12 Lock Management.
    """
    tables = [_qualified(table) for group in lock.values() for table in group]

    def announce(state: RetryCallState) -> None:
        if state.attempt_number == _ANNOUNCE_ATTEMPT:
            log.info("waiting for table locks; in the way: %s", _blockers(connection, tables))

    deadline_s = options.read_seconds(connection, "lock-timeout", LOCK_DEADLINE_S)
    retrying = Retrying(
        retry=retry_if_exception(_lock_was_busy),
        stop=stop_after_delay(deadline_s),
        wait=wait_random_exponential(multiplier=0.1, max=3.0),
        before_sleep=announce,
        reraise=True,
    )
    try:
        retrying(_lock_once, connection, lock)
    except DBAPIError as error:
        if not _lock_was_busy(error):
            raise
        raise LockBusy(
            f"could not lock {', '.join(tables)} within {deadline_s:.0f} s;"
            f" in the way: {_blockers(connection, tables)}",
            hint=f"{blockers.END_THEM}; then run the same command again",
        ) from error


def _lock_once(connection: sa.Connection, lock: Locks) -> None:
    with connection.begin_nested():
        existing = {
            mode: connection.scalars(
                sa.text(
                    "SELECT t FROM unnest(CAST(:tables AS text[])) AS t WHERE to_regclass(t) IS NOT NULL"
                ),
                {"tables": [_qualified(table) for table in tables]},
            ).all()
            for mode, tables in lock.items()
        }
        connection.execute(
            sa.text(
                "SELECT set_config('lock_timeout', ceil(EXTRACT(EPOCH FROM"
                " current_setting('deadlock_timeout')::interval) * 800 / :tables)::text, true)"
            ),
            {"tables": max(1, sum(map(len, existing.values())))},
        )
        for mode, tables in existing.items():
            if tables:
                connection.exec_driver_sql(f"LOCK TABLE {', '.join(tables)} IN {mode} MODE")
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")


def _lock_was_busy(error: BaseException) -> bool:
    return (
        isinstance(error, DBAPIError)
        and isinstance(error.orig, psycopg.Error)
        and error.orig.sqlstate in _TRY_AGAIN
    )


def _blockers(connection: sa.Connection, tables: Sequence[str]) -> str:
    holders = connection.execute(
        sa.text(
            "SELECT DISTINCT l.pid, l.virtualtransaction FROM pg_locks l"
            " JOIN unnest(CAST(:tables AS text[])) AS t ON l.relation = to_regclass(t)"
            " WHERE l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()"
            # Databases cloned from one template share their tables' oids.
            " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ),
        {"tables": list(tables)},
    ).all()
    return blockers.describe(connection, holders)


def _qualified(table: str) -> str:
    return f'public."{table}"'
