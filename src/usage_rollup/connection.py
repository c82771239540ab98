"""Open sessions: wait for the server, pin what a session depends on, refuse unsuitable databases."""

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

from . import signals
from .database_url import conninfo_from_environment
from .errors import (
    ConfigurationError,
    DatabaseUnavailable,
    StatementFailed,
    UnsuitableDatabase,
    explain,
)

log = logging.getLogger(__name__)

APPLICATION_NAME = "usage-rollup"

# UNIQUE NULLS NOT DISTINCT is new in 15.
MINIMUM_VERSION = 15

# A database container may need minutes for crash recovery before it accepts connections.
DEFAULT_STARTUP_TIMEOUT_S = 180.0

# One attempt, when the environment does not say: a host that drops packets would take minutes.
CONNECT_TIMEOUT_S = 10

# Whatever the role, the database or the service file set: statements here mean the same everywhere.
# Deadlines are set by the phases that need one.
SESSION_SETTINGS = {
    "application_name": APPLICATION_NAME,
    "search_path": "public, pg_temp",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "jit": "off",
    # A slice's hash tables fit; a server of 1 GB can spare it for one session.
    "work_mem": "64MB",
}


@contextmanager
def migration_session() -> Iterator[sa.Connection]:
    """Open the one session that migrates the database the environment names.

    It is waited for, pinned and never pooled: when the block is left, however it is left, the session
    ends, and with it its transaction and every advisory lock. From here on SIGTERM and SIGINT leave
    the block. Raises ConfigurationError, DatabaseUnavailable and, for whatever PostgreSQL reports
    inside the block, StatementFailed.
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
    if not text:
        return DEFAULT_STARTUP_TIMEOUT_S
    unit_s = {"s": 1, "m": 60, "h": 3600}.get(text[-1])
    number = text[:-1] if unit_s else text
    if not number.isascii() or not number.replace(".", "", 1).isdigit():
        raise ConfigurationError(
            f"DATABASE_STARTUP_TIMEOUT is not a duration: {text!r}", hint="use 180, 90s or 3m"
        )
    return float(number) * (unit_s or 1)


def connect(conninfo: str, timeout_s: float) -> psycopg.Connection[Any]:
    """Open a session, waiting up to `timeout_s` seconds for the server, and pin its settings.

    Waits only while the server does not answer or says it is starting up (libpq's PQping, which
    needs no login); a refused login or an unknown database is final at once. Raises
    DatabaseUnavailable. Returns outside a transaction.
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


def require_suitable(connection: sa.Connection) -> None:
    """Refuse a server or session the upgrade cannot run on, in one sentence, before any change.

    One round trip that only reads, in a transaction of its own; a few more behind a pooler. Raises
    UnsuitableDatabase.
    """
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    if raw.info.server_version < MINIMUM_VERSION * 10000:
        raise UnsuitableDatabase(
            f"PostgreSQL {MINIMUM_VERSION} or newer is required,"
            f" this server is {raw.info.server_version // 10000}",
            hint="upgrade the server with pg_upgrade or dump and restore, then try again",
        )
    row = connection.execute(sa.text(_SUITABILITY)).mappings().one()
    connection.commit()
    if row["backend_pid"] != raw.info.backend_pid:
        _require_session_pooling(raw, row["backend_pid"])
    if row["standby"]:
        raise UnsuitableDatabase(
            "this server is a standby: it replays a primary and cannot be changed",
            hint="point DATABASE_URL at the primary",
        )
    if row["read_only"] == "on":
        raise UnsuitableDatabase(
            f"sessions of role {row['role']} are read-only here (default_transaction_read_only)",
            hint="ALTER DATABASE or ALTER ROLE ... RESET default_transaction_read_only",
        )
    if row["elsewhere"]:
        raise UnsuitableDatabase(
            f"task_usage is in schema {row['elsewhere']}, not in public",
            hint="the product keeps its tables in schema public; nothing else is supported",
        )
    if row["not_ours"]:
        raise UnsuitableDatabase(
            f"role {row['role']} may not act for the owner of: {row['not_ours']}",
            hint=f"connect as their owner, or: GRANT {row['owner']} TO {row['role']};"
            f" ALTER ROLE {row['role']} INHERIT (from PostgreSQL 16: GRANT ... WITH INHERIT TRUE, SET TRUE)",
        )
    if not row["may_create"]:
        raise UnsuitableDatabase(
            f"role {row['owner']} may not create objects in schema public",
            hint=f"GRANT CREATE ON SCHEMA public TO {row['owner']}",
        )


def _require_session_pooling(raw: psycopg.Connection[Any], backend_pid: int) -> None:
    """Refuse a pooler that gives one server session to several clients: advisory locks would be shared.

    The handshake named another backend than answers now, so there is a pooler. In transaction mode it
    hands this idle client's backend to the next one.
    """
    conninfo = make_conninfo(raw.info.dsn, password=raw.info.password)
    for _ in range(3):
        with psycopg.connect(conninfo, prepare_threshold=None) as other:
            seen = other.execute("SELECT pg_backend_pid()").fetchone()
        if seen == (backend_pid,):
            raise UnsuitableDatabase(
                "this connection goes through a pooler in transaction mode, which shares sessions and"
                " with them advisory locks",
                hint="set MIGRATION_DATABASE_URL to a direct connection to the server",
            )


# New objects belong to the owner of task_usage, who must therefore be able to alter its neighbours.
_SUITABILITY = """
WITH owner AS (
    SELECT COALESCE(
        (SELECT relowner FROM pg_class WHERE oid = to_regclass('public.task_usage')),
        (SELECT oid FROM pg_roles WHERE rolname = current_user)) AS oid
)
SELECT
    pg_backend_pid() AS backend_pid,
    current_user AS role,
    pg_get_userbyid(owner.oid) AS owner,
    pg_is_in_recovery() AS standby,
    current_setting('transaction_read_only') AS read_only,
    has_schema_privilege(owner.oid, 'public', 'CREATE') AS may_create,
    (SELECT string_agg(c.relname, ', ' ORDER BY c.relname)
     FROM pg_class c
     WHERE c.relnamespace = 'public'::regnamespace
        AND c.relname IN ('user', 'agent_runtime', 'agent', 'issue', 'agent_task_queue',
            'task_usage', 'schema_migrations', 'alembic_version')
        AND NOT (
            pg_has_role(current_user, owner.oid, 'USAGE')
            -- SET is a privilege of its own since 16.
            AND CASE WHEN current_setting('server_version_num')::int >= 160000
                     THEN pg_has_role(current_user, owner.oid, 'SET') ELSE true END
            AND (pg_has_role(owner.oid, c.relowner, 'USAGE')
                -- The two ledgers are written by the session's own role.
                OR c.relname IN ('schema_migrations', 'alembic_version')
                    AND has_table_privilege(c.oid, 'SELECT')
                    AND has_table_privilege(c.oid, 'INSERT')
                    AND has_table_privilege(c.oid, 'DELETE')))) AS not_ours,
    (SELECT string_agg(n.nspname, ', ' ORDER BY n.nspname)
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relname = 'task_usage' AND c.relkind = 'r'
        AND to_regclass('public.task_usage') IS NULL) AS elsewhere
FROM owner
"""
