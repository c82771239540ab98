"""Refuse, before anything is changed, a server or session that the upgrade cannot run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import make_conninfo

from ..errors import Refusal, UnsuitableDatabase
from ..queries import beside

# Statements of (message, hint), and the WITH query that they read.
SQL = beside(__file__)

SHARED_SESSION = Refusal(
    "this connection goes through a pooler in transaction mode, which shares sessions and with them advisory"
    " locks",
    hint="set MIGRATION_DATABASE_URL to a direct connection to the server",
)


def require_suitable(connection: sa.Connection) -> None:
    """Refuse a server or session that nothing of ours can be written on, with all reasons, before any change.

    One round trip that only reads; a few more behind a pooler. Raises UnsuitableDatabase.
    """
    require_session_pooling(connection)
    if refusals := ask(connection, query(SQL["server"], SQL["schema"], SQL["acting"], SQL["row_security"])):
        raise UnsuitableDatabase(Refusal.of(refusals))


def query(*statements: str, shared: Sequence[str] = ()) -> str:
    """Return one query of what `statements` find, in their order; they read `who` and what is `shared`."""
    asked = "\nUNION ALL\n".join(
        f"SELECT {n} AS n, q.message, q.hint FROM (\n{text}\n) AS q" for n, text in enumerate(statements)
    )
    known = ",\n".join([SQL["who"], *shared])
    return (
        f"WITH RECURSIVE\n{known}\nSELECT f.message, f.hint FROM (\n{asked}\n) AS f ORDER BY f.n, f.message"
    )


def ask(connection: sa.Connection, text: str) -> list[Refusal]:
    """Return what query()'s `text` finds; nothing in it is a bind parameter."""
    rows = connection.exec_driver_sql(text, execution_options={"no_parameters": True}).all()
    return [Refusal(row.message, hint=row.hint) for row in rows]


def require_session_pooling(connection: sa.Connection) -> None:
    """Refuse a pooler that gives one server session to several clients: advisory locks would be shared.

    Where the handshake named another backend than answers now, there is a pooler. In transaction mode it
    hands this idle client's backend to the next one. Raises UnsuitableDatabase.
    """
    raw: Any = connection.connection.dbapi_connection
    assert isinstance(raw, psycopg.Connection)
    backend_pid = connection.scalar(sa.text("SELECT pg_catalog.pg_backend_pid()"))
    if backend_pid == raw.info.backend_pid:
        return
    conninfo = make_conninfo(raw.info.dsn, password=raw.info.password)
    for _ in range(3):
        with psycopg.connect(conninfo, prepare_threshold=None) as other:
            seen = other.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
        if seen == (backend_pid,):
            raise UnsuitableDatabase(SHARED_SESSION)
