"""A session behind a pooler: none where the pooler shares it, and given back as clean as it came.

Advisory locks and settings belong to the server's process. In session mode that is ours until we go, and
somebody else's afterwards, whose pooler need not clean it (an empty server_reset_query).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from ..errors import explain
from .attempt import NoSession
from .client import Client
from .pool_mode import DIRECT, SQL, judge

CONNECT_TIMEOUT_S = 10

_IN_TRANSACTION = {TransactionStatus.INTRANS, TransactionStatus.INERROR}

# Poolers, by their address, that were found to lend this run's process to nobody.
_judged: set[tuple[Any, ...]] = set()


class Session(psycopg.Connection[Any]):
    """A session that is given back to a pooler without our locks, settings and role."""

    pooled = False

    def close(self) -> None:
        """Clean the server's process where another client gets it next, and close, whatever came of that."""
        try:
            if self.pooled and not self.closed:
                _clean(self)
        finally:
            super().close()


def require_own(session: Session, wait_s: float) -> None:
    """Refuse a pooler that gives one server process to several clients, before anything of ours is set in it.

    Where the handshake named another process than answers now, there is a pooler. Whoever connects directly
    pays one round trip; a pooler, whose free session is waited for up to `wait_s` seconds, is probed once in
    a run. Outside a transaction, before and after. Raises UnsuitableDatabase, and NoSession where a pooler
    gives no session or cannot be judged now.
    """
    info = session.info
    if _first_process(session, wait_s) == str(info.backend_pid):
        return
    pooler = (info.host, info.hostaddr, info.port, info.dbname, info.user)
    if pooler not in _judged:
        # Where this session went, not wherever the name leads next.
        place = {"host": info.host, "hostaddr": info.hostaddr, "port": str(info.port)}
        secret = {"password": info.password} if info.password else {}
        conninfo = make_conninfo(
            info.dsn,
            connect_timeout=CONNECT_TIMEOUT_S,
            **secret,
            **{name: value for name, value in place.items() if value},
        )
        judge(Client(session), lambda: Client(psycopg.connect(conninfo, autocommit=True)))
        _judged.add(pooler)
    session.pooled = True


def _first_process(session: Session, wait_s: float) -> str:
    try:
        rows = Client(session).ask(SQL["own"], wait_s)
    except psycopg.errors.ProtocolViolation as error:
        # No server's, but PgBouncer's for everything.
        why = f"the pooler in front of the database gave no session: {explain(error).message}"
        raise _no_session(why) from error
    if rows is None:
        raise _no_session(
            "who let us in does not answer: a pooler without a free session, or a server that hangs"
        )
    return str(rows[0][0])


def _no_session(why: str) -> NoSession:
    hint = f"behind a pooler, end a client that holds a session, or raise the pool's size; or {DIRECT}"
    return NoSession(why, answered=True, hint=hint)


def _clean(session: Session) -> None:
    """Free the process of our locks, settings, temporary objects and role, as far as it answers."""
    if session.info.transaction_status not in {TransactionStatus.IDLE, *_IN_TRANSACTION}:
        # The pooler ends a process that is left at work.
        return
    statements = ["DISCARD ALL", "RESET role"]
    if session.info.transaction_status in _IN_TRANSACTION:
        statements.insert(0, "ROLLBACK")
    client = Client(session)
    with suppress(psycopg.Error):
        for statement in statements:
            if client.ask(statement) is None:
                return
