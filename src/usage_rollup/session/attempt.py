"""One attempt to open a session: what came of it, and whether another one may go better.

libpq reports a failed connection as text alone, which the server translates. Told to be verbose it puts the
SQLSTATE there, and what it was waiting for says the rest: silence, a closed door, or an answer.
"""

from __future__ import annotations

import math
import os
import queue
import re
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_attempts, make_conninfo, timeout_from_conninfo

from . import parameters, pooler_words, verbosity
from .client import Client

# SQLSTATE classes of what may pass by itself: the connection, resources (53300: no room for one more), the
# server being started, stopped or restarted, its disks. Not a library that every session is to load and
# that is not there (58P01).
_PASSING = ("08", "53", "57", "58000", "58030")

# Timeouts of a transaction and of one that is idle. The others are of class 57.
_DEADLINES = ("25P04", "25P03")

# What an SQLSTATE, or its class, says was refused for good.
_REFUSED = {
    "28P01": "the password, or the role, was refused",
    "28": "the role was refused, or pg_hba.conf has no place for it",
    "3D000": "there is no such database",
    "55000": "the database does not allow connections",
    "42501": "the role may not connect to the database",
}

# As libpq writes an error when it is verbose: SEVERITY:  SQLSTATE: text, and at the end where in the server.
_SQLSTATE = re.compile(r"(?<=:  )([0-9A-Z]{5}): ")
_LOCATION = re.compile(r"\n[^\n]*:  (?:\w+, )?[\w./-]+:\d+$", re.MULTILINE)

_TLS = (pq.ConnStatus.SSL_STARTUP, pq.ConnStatus.GSS_STARTUP)


@dataclass(eq=False)
class Failed(Exception):
    """No session was opened, and why, on one line.

    `refused`: what was refused for good; None for what may pass by itself. `answered`: a server, or what
    stands before it, said something. `hint` is for want of the usual one.
    """

    reason: str
    refused: str | None = None
    answered: bool = False
    hint: str | None = None


class NoSession(Failed):
    """Who let us in has no session for us yet, as a pooler that is full."""


def log_in(params: dict[str, Any], seconds: float) -> pq.abc.PGconn:
    """Open a session with the first server of `params` that lets one in.

    `params` are libpq's, by name. No address gets more than their connect_timeout, and all together no more
    than about `seconds`; the wait ends when a signal's handler raises. Raises Failed: of several hosts, what
    one answered counts more than that another one is silent.
    """
    deadline = time.monotonic() + seconds
    failures: list[Failed] = []
    for address in _addresses(params, seconds):
        try:
            return _handshake(address, min(timeout_from_conninfo(params), deadline - time.monotonic()))
        except Failed as failed:
            failures.append(failed)
    # One that answered and may let us in later, then one that never will, then silence.
    first = min(failures, key=lambda failed: (not failed.answered, failed.refused is not None))
    others = [failed.reason for failed in failures if failed is not first]
    raise Failed("; ".join(dict.fromkeys([first.reason, *others])), first.refused, first.answered)


def run(session: psycopg.Connection[Any], statement: str, seconds: float) -> None:
    """Run statements within `seconds`, outside a transaction.

    Raises Failed for what the server reports, when it does not answer in time, and when the session is lost.
    """
    try:
        answer = Client(session).ask(statement, seconds)
    except psycopg.Error as error:
        raise of_statement(error) from error
    if answer is None:
        raise Failed("the server let us in, and does not answer")


def of_statement(error: psycopg.Error) -> Failed:
    """Return what it means that a session's first statements failed, or that it ended under them."""
    message, state = error.diag.message_primary or str(error), error.sqlstate
    if state is None:
        return Failed(_one_line(message))
    passing = state.startswith((*_PASSING, *_DEADLINES))
    refused = None if passing else "the first statement of the session was refused"
    return Failed(f"{message} (SQLSTATE {state})", refused, answered=True)


def _addresses(params: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """Return the parameters for each address the hosts have.

    In a thread, because a resolver knows no deadline and is deaf to signals; one that is given up is left
    behind, and ends with the process.
    """
    answers: queue.SimpleQueue[list[dict[str, Any]] | psycopg.OperationalError] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(conninfo_attempts(params))
        except psycopg.OperationalError as error:
            answers.put(error)

    threading.Thread(target=resolve, daemon=True, name="name resolution").start()
    try:
        # Where a process was stopped, or got no processor, its time is over before the attempt begins.
        answer = answers.get(timeout=None if math.isinf(seconds) else max(0.0, seconds))
    except queue.Empty:
        raise Failed(f"{parameters.where(params)}: its name was not resolved in time") from None
    if isinstance(answer, psycopg.OperationalError):
        raise Failed(str(answer))
    return answer


def _handshake(address: dict[str, Any], seconds: float) -> pq.abc.PGconn:
    """Return a session with the server at one address; raise Failed."""
    pgconn = pq.PGconn.connect_start(make_conninfo(**address).encode())
    try:
        _poll(pgconn, address, time.monotonic() + seconds)
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1
    return pgconn


def _poll(pgconn: pq.abc.PGconn, address: dict[str, Any], deadline: float) -> None:
    if pgconn.status == pq.ConnStatus.BAD:
        raise Failed(_one_line(_text(pgconn)))
    coded = verbosity.choose(pgconn, verbosity.VERBOSE)
    answered = False
    while True:
        stage = pq.ConnStatus(pgconn.status)
        polled = pgconn.connect_poll()
        if polled == pq.PollingStatus.OK:
            verbosity.choose(pgconn, verbosity.DEFAULT)
            return
        if polled == pq.PollingStatus.FAILED:
            raise _failure(pgconn, stage, address, answered and coded)
        reading = polled == pq.PollingStatus.READING
        if not _wait(pgconn.socket, reading, deadline - time.monotonic()):
            raise Failed(f"{parameters.where(address)}: no answer in time")
        answered = reading and _has_data(pgconn.socket)


def _wait(descriptor: int, reading: bool, seconds: float) -> bool:
    """Wait until a socket may be read, or written; tell whether that came in time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN if reading else select.POLLOUT)
    return seconds > 0 and bool(poll.poll(None if math.isinf(seconds) else seconds * 1000))


def _has_data(descriptor: int) -> bool:
    """Tell whether there is something to read, and not the end of it."""
    with socket.socket(fileno=os.dup(descriptor)) as peer:
        try:
            return bool(peer.recv(1, socket.MSG_PEEK))
        except OSError:
            return False


def _failure(pgconn: pq.abc.PGconn, stage: pq.ConnStatus, address: dict[str, Any], answered: bool) -> Failed:
    """Return what a failed poll means that was made at `stage`, and whether there was an answer to read."""
    report = _LOCATION.sub("", _text(pgconn))
    states = _SQLSTATE.findall(report)
    reason = _one_line(_SQLSTATE.sub("", report))
    if pooler_words.CODE in states:
        refused = None if pooler_words.passes(report) else pooler_words.refused(report)
        return Failed(reason, refused, answered=True)
    if states:
        # Several where libpq has tried with TLS and without.
        passing = any(state.startswith(_PASSING) for state in states)
        refused = _REFUSED.get(states[-1]) or _REFUSED.get(states[-1][:2]) or "the session was refused"
        return Failed(reason, None if passing else refused, answered=True)
    if not answered:
        return Failed(reason)
    if stage in _TLS:
        return Failed(reason, "there is no agreement on TLS", answered=True)
    if pgconn.needs_password:
        return Failed(reason, "the server wants a password, and there is none", answered=True)
    if address.get("target_session_attrs", "any") != "any":
        # The right one of several servers may become one by a failover.
        return Failed(reason, answered=True)
    return Failed(reason, "the server's way to log in was refused here", answered=True)


def _text(pgconn: pq.abc.PGconn) -> str:
    return pgconn.error_message.decode(errors="replace").strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
