"""Describe the sessions and prepared transactions that are in the way, for an operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa


def describe(connection: sa.Connection, holders: Iterable[Sequence[Any]]) -> str:
    """Say who `holders` are: rows of pg_locks, as (pid, virtualtransaction).

    A session by pid, role, application, state and since when; a prepared transaction, which has no
    pid, by its name. Reads in the caller's transaction.
    """
    rows = list(holders)
    described = connection.scalars(
        sa.text(_DESCRIBE),
        {
            "pids": [pid for pid, _ in rows if pid is not None],
            "prepared": [transaction for pid, transaction in rows if pid is None],
        },
    ).all()
    return ", ".join(described) or "a session that has just ended"


def oldest_transactions(connection: sa.Connection) -> str:
    """Name what holds the horizon back: the oldest open transactions of this database, and prepared ones."""
    return describe(connection, connection.execute(sa.text(_OLDEST)).all())


_OLDEST = """
(SELECT s.pid, l.virtualtransaction FROM pg_stat_activity s
 JOIN pg_locks l ON l.pid = s.pid AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock'
 WHERE s.datname = current_database() AND s.pid <> pg_backend_pid() AND s.usesysid IS NOT NULL
 ORDER BY s.xact_start NULLS FIRST LIMIT 3)
UNION ALL
SELECT NULL, l.virtualtransaction FROM pg_prepared_xacts p
JOIN pg_locks l ON l.locktype = 'transactionid' AND l.pid IS NULL AND l.transactionid = p.transaction
WHERE p.database = current_database()
"""

_DESCRIBE = """
SELECT format('pid %s (%s, %s, %s%s)', pid, COALESCE(usename, 'no role'),
    COALESCE(NULLIF(application_name, ''), 'no application name'),
    COALESCE(state, 'state not visible to this role'),
    ' since ' || to_char(COALESCE(xact_start, state_change, backend_start), 'YYYY-MM-DD HH24:MI:SS TZ'))
FROM pg_stat_activity WHERE pid = ANY (CAST(:pids AS int[]))
UNION ALL
SELECT format('prepared transaction %L (%s, since %s)', p.gid, p.owner,
    to_char(p.prepared, 'YYYY-MM-DD HH24:MI:SS TZ'))
FROM pg_prepared_xacts p JOIN pg_locks l
    ON l.locktype = 'transactionid' AND l.pid IS NULL AND l.transactionid = p.transaction
WHERE l.virtualtransaction = ANY (CAST(:prepared AS text[]))
"""

# What to do about either kind.
END_THEM = (
    "wait for that session, or end it: SELECT pg_terminate_backend(<pid>);"
    " a prepared transaction by ROLLBACK PREPARED '<name>' or COMMIT PREPARED"
)
