"""Refuse, before anything is changed, a server or session that the upgrade cannot run on."""

from __future__ import annotations

from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo

from ..errors import UnsuitableDatabase


def require_suitable(connection: sa.Connection) -> None:
    """Refuse a server or session the upgrade cannot run on, in one sentence, before any change.

    One round trip that only reads; a few more behind a pooler. Raises UnsuitableDatabase.
    """
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    row = connection.execute(sa.text(_SUITABILITY)).mappings().one()
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
            hint=f"connect as their owner, or: GRANT {row['quoted_owner']} TO {row['quoted_role']};"
            f" ALTER ROLE {row['quoted_role']} INHERIT"
            " (from PostgreSQL 16: GRANT ... WITH INHERIT TRUE, SET TRUE)",
        )
    if not row["may_create"]:
        raise UnsuitableDatabase(
            f"role {row['owner']} may not create objects in schema public",
            hint=f"GRANT CREATE ON SCHEMA public TO {row['quoted_owner']}",
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
    quote_ident(current_user) AS quoted_role,
    pg_get_userbyid(owner.oid) AS owner,
    quote_ident(pg_get_userbyid(owner.oid)) AS quoted_owner,
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
