"""Refuse, before anything is changed, a server or session that the upgrade cannot run on."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from ..errors import Refusal, UnsuitableDatabase
from ..queries import beside

# Statements of (message, hint), and the WITH query that they read.
SQL = beside(__file__)


def require_suitable(connection: sa.Connection) -> None:
    """Refuse a server or session that nothing of ours can be written on, with all reasons, before any change.

    One round trip that only reads. Raises UnsuitableDatabase.
    """
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
