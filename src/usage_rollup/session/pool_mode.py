"""Tell a pooler that lends a client's server process to others from one that does not.

Where a pooler hands our process to somebody else between two of our transactions, two runs hold "the same"
advisory lock, and the product's server finds our settings on its connections. No pooler says which mode it
is in: it is seen by what it does, on a few clients of our own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

import psycopg

from ..errors import UnsuitableDatabase, explain
from ..queries import beside, filled
from .attempt import NoSession
from .client import Client, Row

log = logging.getLogger(__name__)

SQL = beside(__file__)

# How long a pooler may take to serve one more client: meanwhile the probes keep from others what the pool has
# left.
PROBE_S = 0.5

# A probe tells of one pooler, and behind one name there may be several, each with a pool of its own. Of ours
# and so many probes that stay connected, two are clients of the same one where there are up to three.
STARTED = 3
# How many of a pool's free processes are tried, each kept from others for the milliseconds that takes.
PROBES = 64

SHARED = (
    "this connection goes through a pooler in transaction mode, which shares sessions and with them advisory"
    " locks"
)
DIRECT = "set MIGRATION_DATABASE_URL to a direct connection to the server, or to a pool in session mode"


class Lent(Exception):
    """A server process served two clients that were connected at the same time."""


def judge(ours: Client, connect: Callable[[], Client]) -> None:
    """Return when nobody else can be given the server process that serves `ours`, an idle client of a pooler.

    Probes are connected one after another. Processes are lent where a probe is served by one of ours, where
    one of ours has served somebody else, or where a client of ours changes its process. They are not where
    a process had to be started for a probe, or the probe has to wait, while ours was idle: it would have
    been given ours. A probe that is served by any other process keeps it, in a transaction, so that the
    next one gets another. Raises UnsuitableDatabase and NoSession.
    """
    probes: list[Client] = []
    try:
        _judge(ours, connect, probes)
    except Lent as error:
        raise UnsuitableDatabase(SHARED, detail=str(error), hint=DIRECT) from error
    finally:
        for probe in probes:
            # With a transaction open, the pooler would end its process, which the pool would miss.
            with suppress(psycopg.Error):
                probe.ask("ROLLBACK")
            probe.close()


def _judge(ours: Client, connect: Callable[[], Client], probes: list[Client]) -> None:
    """Raise Lent, or return; `probes` is for the caller to close."""
    idle, processes = [ours], {_process_in_a_transaction(ours, connect)}
    for _ in range(PROBES):
        before = max(map(float, _asked_at(idle, processes).values()))
        try:
            probes.append(probe := connect())
        except psycopg.OperationalError as error:
            # None may connect beyond those that were told apart.
            if len(idle) > 1:
                return
            raise _unjudged(" ".join(str(error).split())) from error
        asked_at = _asked_at(idle, processes)
        looked = probe.ask(filled(SQL["look"], pids=", ".join(processes)), PROBE_S)
        if looked is None:
            # Had the process been for everybody, whoever waits longer would have got it first.
            if ours.ask(SQL["own"]) is None:
                raise _unjudged("it gives no session for now")
            if probe.ask("", 0) is None:
                if len(probes) == 1:
                    log.info("the pooler has no second session to give: this run has one to itself")
                return
            continue
        process, started = _served_by(looked, asked_at)
        if started > before:
            probe.ask("COMMIT")
            idle.append(probe)
            processes.add(process)
            if len(idle) > STARTED:
                return
    raise UnsuitableDatabase(
        f"this connection goes through a pooler, and {PROBES} sessions did not tell whether it shares them",
        hint=DIRECT,
    )


def _process_in_a_transaction(ours: Client, connect: Callable[[], Client]) -> str:
    """Return which process serves a client, where it may begin a transaction at all.

    PgBouncer has one SQLSTATE for a mode without transactions and for a server or pooler that is going, so
    another client has to meet it as well. Raises psycopg.OperationalError for what is going.
    """
    try:
        rows = _in_a_transaction(ours)
    except psycopg.OperationalError as error:
        if error.sqlstate is not None and _meets(error.sqlstate, connect()):
            raise UnsuitableDatabase(
                f"this connection goes through a pooler that refuses transactions: {explain(error).message}",
                hint=DIRECT,
            ) from error
        raise
    if rows is None:
        raise _unjudged("it gives no session for now")
    return str(rows[0][0])


def _meets(sqlstate: str, probe: Client) -> bool:
    try:
        _in_a_transaction(probe)
    except psycopg.OperationalError as error:
        return error.sqlstate == sqlstate
    finally:
        probe.close()
    return False


def _in_a_transaction(client: Client) -> list[Row] | None:
    rows = client.ask(SQL["transaction"])
    if rows is not None:
        client.ask("COMMIT")
    return rows


def _asked_at(idle: list[Client], processes: set[str]) -> dict[str, str]:
    """Have each idle client use its process; return when each process began to answer."""
    asked_at: dict[str, str] = {}
    for client in idle:
        if (rows := client.ask(SQL["own"])) is None:
            raise _unjudged("it gives no session for now")
        process, began = map(str, rows[0])
        asked_at[process] = began
    if asked_at.keys() != processes:
        raise Lent(f"clients of server processes {_list(processes)} were served by {_list(asked_at)} later")
    return asked_at


def _served_by(looked: list[Row], asked_at: dict[str, str]) -> tuple[str, float]:
    """Return which process serves a probe and when it was started, 0 where that is not shown."""
    served, at = "", 0.0
    for mine, process, started, began in looked:
        if process == mine:
            served, at = str(mine), float(started or 0)
        elif began not in (asked_at[str(process)], None):
            raise Lent(f"idle server process {process} has served somebody else meanwhile")
    if served in asked_at:
        raise Lent(f"server process {served} serves two clients that are connected")
    return served, at


def _list(processes: Iterable[str]) -> str:
    return ", ".join(sorted(processes))


def _unjudged(why: str) -> NoSession:
    return NoSession(
        f"this connection goes through a pooler, and cannot be told to be in session mode: {why}",
        answered=True,
        hint=f"try again; or {DIRECT}",
    )
