"""What is in a database, catalogs and rows, to compare before and after."""

from __future__ import annotations

import contextlib
import re

from tests.support.closing import Session
from tests.support.database import Database
from usage_rollup.queries import beside

SNAPSHOT = beside(__file__)["snapshot"]

# Whatever the database sets; a superuser's, so that no policy and no limit binds it.
PINNED = (
    "-c search_path=public -c row_security=off -c TimeZone=UTC -c DateStyle=ISO -c statement_timeout=0"
    " -c lock_timeout=10s -c default_transaction_read_only=off"
    " -c default_transaction_isolation=read\\ committed"
    " -c session_replication_role=origin -c default_tablespace="
    " -c standard_conforming_strings=on -c local_preload_libraries= -c xmlbinary=base64"
    " -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c client_min_messages=warning"
)


def snapshot(database: Database) -> list[tuple[str, ...]]:
    """Return all that a refusal must leave as it was."""
    return read(database, SNAPSHOT)


def read(database: Database, query: str) -> list[tuple[str, ...]]:
    """Return rows of text, whatever their encoding."""
    with contextlib.closing(pinned_session(database)) as session:
        rows = session.execute(query.encode()).fetchall()
    return [tuple(bytes(value).decode("utf-8", "replace") for value in row) for row in rows]


def difference(before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> list[str]:
    """Say what came and what went, by catalog: the names of a few, and how many more."""
    lines = []
    for sign, some in (("-", set(before) - set(after)), ("+", set(after) - set(before))):
        named: dict[str, list[str]] = {}
        for what, line in sorted(some):
            found = _NAME.search(line)
            named.setdefault(what, []).append(found[1] if found else line[:80])
        for what, names in named.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{sign} {what}: {', '.join(names[:3])}{more}")
    return lines


# What a row of a catalog, or a digest of a table, goes by.
_NAME = re.compile(r'"(?:\w+name|table)": "((?:[^"\\]|\\.)*)"')


def pinned_session(database: Database) -> Session:
    return Session.connect(database.url, autocommit=True, options=PINNED, client_encoding="SQL_ASCII")
