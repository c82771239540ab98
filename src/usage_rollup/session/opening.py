"""Open a session: wait for what may pass by itself, then pin what the session depends on."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import timeout_from_conninfo

from ..errors import DatabaseUnavailable, LoginRefused, UnsuitableDatabase, UsageRollupError
from . import attempt, parameters, pinned, poolers, undecodable
from .options import seconds

log = logging.getLogger(__name__)

# A database container may need minutes for crash recovery before it accepts connections.
DEFAULT_STARTUP_TIMEOUT_S = 180.0

# UNIQUE NULLS NOT DISTINCT is new in 15.
MINIMUM_VERSION = 15

# Between two attempts, doubled each time; and what has to be left for one more.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
LAST_ATTEMPT_S = 0.1
# Silence for so short a time says less than what the attempt before was told.
SHORT_ATTEMPT_S = 1.0


def startup_timeout_s() -> float:
    """Return DATABASE_STARTUP_TIMEOUT in seconds: how long to wait for a server that does not answer yet."""
    text = os.environ.get("DATABASE_STARTUP_TIMEOUT", "").strip()
    return seconds(text, "DATABASE_STARTUP_TIMEOUT") if text else DEFAULT_STARTUP_TIMEOUT_S


def connect(
    conninfo: str, timeout_s: float, settings: Mapping[str, str] | None = None
) -> psycopg.Connection[Any]:
    """Open a session, waiting up to `timeout_s` seconds for the server, and pin its settings.

    `settings` come on top of pinned.SETTINGS. Waited for is whatever may pass by itself: silence, a server
    that starts or stops, no room for one more session, there or in a pooler. A timeout of 0 is one attempt,
    bounded by connect_timeout. Raises LoginRefused for what was refused for good and ConfigurationError for
    what libpq cannot use, at once; DatabaseUnavailable when the time is over, and
    UnsuitableDatabase for a server that is too old. Returns outside a transaction.
    """
    params = parameters.read(conninfo)
    started = time.monotonic()
    guard: list[str] = []
    told = ""
    before: attempt.Failed | None = None
    longest_s = FIRST_PAUSE_S
    while True:
        left_s = timeout_s - (time.monotonic() - started) if timeout_s else math.inf
        is_short = left_s < SHORT_ATTEMPT_S
        try:
            return _open(params, guard, left_s, settings or {})
        except _CutShort as cut:
            failed, again, guard = cut.failed, not guard, [] if guard else cut.deadlines
        except attempt.Failed as error:
            # What was refused together with a guard may be the guard.
            failed = attempt.Failed(error.reason) if guard else error
            again, guard = False, []
        if before and is_short and not failed.answered:
            failed = before
        before = failed
        waited_s = time.monotonic() - started
        left_s = timeout_s - waited_s
        if again and (not timeout_s or left_s > 0):
            continue
        if failed.refused or left_s < LAST_ATTEMPT_S:
            raise _given_up(failed, waited_s) from failed
        if failed.reason != told:
            wait = f"still waiting, {left_s:.0f} s more," if told else f"waiting up to {timeout_s:.0f} s"
            told = failed.reason
            log.info("%s for the database at %s: %s", wait, parameters.where(params), told)
        # With jitter, so that several of us do not come back at one moment; never to the end of the time.
        time.sleep(min(longest_s * random.uniform(0.5, 1), 0.8 * left_s))
        longest_s = min(2 * longest_s, LONGEST_PAUSE_S)


def _given_up(failed: attempt.Failed, waited_s: float) -> UsageRollupError:
    after = f" after {waited_s:.0f} s" if waited_s >= 0.5 else ""
    if failed.refused:
        return LoginRefused(
            f"cannot connect to the database{after}: {failed.refused}: {failed.reason}",
            hint="check DATABASE_URL; it is the same at the next attempt until somebody changes something",
        )
    return DatabaseUnavailable(
        f"cannot connect to the database{after}: {failed.reason}",
        hint=failed.hint
        or "check DATABASE_URL and that the server is up;"
        " DATABASE_STARTUP_TIMEOUT says how long to wait for it",
    )


@dataclass(eq=False)
class _CutShort(Exception):
    """A session ended, or a statement did, before `deadlines` of the role or the database were lifted."""

    failed: attempt.Failed
    deadlines: list[str]


def _open(
    params: dict[str, Any], guard: list[str], seconds: float, settings: Mapping[str, str]
) -> psycopg.Connection[Any]:
    """Open a session and pin it; `guard` names deadlines that are lifted together with the login.

    That beats the race with a deadline of 1 ms. It is not done without need, because a pooler refuses it.
    Raises Failed, _CutShort, UnsuitableDatabase and ConfigurationError.
    """
    deadline = time.monotonic() + seconds
    options = parameters.options(params)
    if guard:
        lifted = " ".join(f"-c {name}=0" for name in guard)
        params = {**params, "options": f"{options} {lifted}".strip()}
    connection = poolers.Session(attempt.log_in(params, seconds))
    # Each statement commits by itself, and a prepared one would live on a process that a pooler may lend.
    connection.autocommit = True
    connection.prepare_threshold = None
    try:
        version = connection.info.server_version // 10000
        if version < MINIMUM_VERSION:
            raise UnsuitableDatabase(
                f"PostgreSQL {MINIMUM_VERSION} or newer is required, this server is {version}",
                hint="upgrade the server with pg_upgrade or dump and restore, then try again",
            )
        try:
            # No shorter than a login's bound: who begins anew goes to the end of a pooler's queue.
            bound_s = max(parameters.CONNECT_TIMEOUT_S, timeout_from_conninfo(params))
            _require_own(connection, min(bound_s, deadline - time.monotonic()))
            for statement in pinned.statements(version, settings, options):
                attempt.run(connection, statement, deadline - time.monotonic())
        except attempt.NoSession:
            raise
        except attempt.Failed as failed:
            raise _CutShort(failed, pinned.deadlines(version)) from failed
        for statement in pinned.look_for_client(options):
            with suppress(attempt.Failed):
                attempt.run(connection, statement, deadline - time.monotonic())
        undecodable.keep(connection)
        connection.add_notice_handler(_log_notice)
    except BaseException:
        connection.close()
        raise
    return connection


def _require_own(connection: poolers.Session, seconds: float) -> None:
    try:
        poolers.require_own(connection, seconds)
    except psycopg.Error as error:
        raise attempt.of_statement(error) from error


def _log_notice(diagnostic: psycopg.errors.Diagnostic) -> None:
    """Log what the server warns of, and what SQL of ours tells as INFO; notices are everyday."""
    level = {"WARNING": logging.WARNING, "INFO": logging.INFO}.get(diagnostic.severity_nonlocalized or "")
    if level:
        log.log(level, "%s", diagnostic.message_primary)
