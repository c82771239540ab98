"""Lock the tables of a step without making the product wait: give way, and try again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

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

from ..errors import LockBusy
from ..session import blockers

log = logging.getLogger(__name__)

# How long a step goes on asking for its table locks before it leaves them to the next run.
PATIENCE_S = 120.0

# Lock not free; we were a deadlock's victim; an old Go runner dropped a table after we looked.
_TRY_AGAIN = {"55P03", "40P01", "42P01"}

# The first attempts fail on everyday traffic; naming anybody then would be noise.
_ANNOUNCE_ATTEMPT = 5

# Lock mode to tables of schema public.
Locks = Mapping[str, Sequence[str]]


def lock_tables(connection: sa.Connection, lock: Locks) -> None:
    """Lock those tables of `lock` that exist, giving way until all are free at once.

    All the waiting of one attempt together stays below deadlock_timeout, so this session is gone from
    the queue before a deadlock check could choose a live server's transaction as its victim; then
    everything is released (a savepoint) and tried again after a growing, random pause, for at most
    PATIENCE_S, or the run's option lock-timeout. Needs an open transaction, which holds the locks to
    its end. Raises LockBusy, naming the sessions in the way. PostgreSQL manual: 13.3 Explicit Locking,
    20.12 Lock Management.
    """
    tables = [_qualified(table) for group in lock.values() for table in group]

    def announce(state: RetryCallState) -> None:
        if state.attempt_number == _ANNOUNCE_ATTEMPT:
            log.info("waiting for table locks; in the way: %s", _blockers(connection, tables))

    deadline_s = connection.scalar(sa.text(_PATIENCE_S), {"default_s": PATIENCE_S})
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


_PATIENCE_S = """
SELECT COALESCE(EXTRACT(EPOCH FROM
    NULLIF(current_setting('usage_rollup.lock_timeout', true), '')::interval), :default_s)::float8
"""
