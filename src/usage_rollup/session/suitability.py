"""Refuse, before anything is changed, a server or session that the upgrade cannot run on."""

from __future__ import annotations

from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo

from ..errors import UnsuitableDatabase
from ..queries import beside

_SQL = beside(__file__)


def require_suitable(connection: sa.Connection) -> None:
    """Refuse a server or session the upgrade cannot run on, in one sentence, before any change.

    Two round trips that only read; a few more behind a pooler. Raises UnsuitableDatabase.
    """
    raw = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    row = connection.execute(sa.text(_SQL["suitability"])).mappings().one()
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
    if bound := connection.execute(sa.text(_SQL["row_security"])).mappings().one_or_none():
        # Not even a superuser gets past it, because a step runs as the owner of task_usage.
        raise UnsuitableDatabase(
            f"row security would hide rows from role {bound['roles']}: {bound['tables']}"
            f" (policies: {bound['policies'] or 'none, so all of them'})",
            hint=bound["mend"],
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
            seen = other.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
        if seen == (backend_pid,):
            raise UnsuitableDatabase(
                "this connection goes through a pooler in transaction mode, which shares sessions and"
                " with them advisory locks",
                hint="set MIGRATION_DATABASE_URL to a direct connection to the server",
            )
