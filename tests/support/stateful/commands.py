"""Run real commands among the operations of a schedule, in its thread.

A command opens sessions of its own, by its own code, and may lose them. Before each statement and commit of
its leader SQLAlchemy calls the schedule, where other sessions act: one thread does both, and what would wait
fails soon. The threads of a crew are at work meanwhile, as they are for an operator.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from psycopg import Connection
from sqlalchemy.exc import DBAPIError

from usage_rollup.errors import LockBusy, UsageRollupError
from usage_rollup.hourly import catch_up, products_pipeline
from usage_rollup.session import advisory_lock, outages
from usage_rollup.session.options import Options

# Sessions of one crew wait for each other for a moment. Those of the schedule act only between two looks at
# an advisory lock.
_PATIENCE_S = 0.1

# As many as help walk, and as many as are asked for compare.
COMMANDS: dict[str, Callable[[], Any]] = {
    "run_backfill": lambda: _in_session(catch_up.catch_up, Options(lock_timeout_s=_PATIENCE_S)),
    "run_repair": lambda: _in_session(catch_up.repair, Options(jobs=3, lock_timeout_s=_PATIENCE_S)),
}

# Told by hand while it runs.
LOSE = "lose"


def _in_session(work: Callable[[sa.Connection, Options], object], options: Options) -> object:
    return outages.in_session(lambda session: work(session, options), options)


@contextmanager
def hurried(url: str) -> Iterator[None]:
    """Let commands of the block work on this database, in slices of an hour, without a pause."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("PGOPTIONS", "-c usage_rollup.slice_rows=1 -c client_min_messages=error")
        patch.setattr(outages, "_PAUSE_S", 0)
        patch.setattr(advisory_lock, "_POLL_INTERVAL_S", _PATIENCE_S / 10)
        patch.setattr(products_pipeline, "STEP_ROWS", 2)
        yield


@contextmanager
def overheard(
    statement: Callable[[int], None], commit: Callable[[int], None], count: Counter[str]
) -> Iterator[None]:
    """Call back before statements and commits of this thread, with the process that will get them.

    What the sessions of a crew do in their threads is counted.
    """
    leader = threading.get_ident()

    def before_statement(
        connection: sa.Connection, cursor: Any, text: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        if threading.get_ident() == leader:
            statement(cursor.connection.info.backend_pid)
        elif "rollup_task_usage_hourly_slice()" in text:
            count["slices of a crew"] += 1
        elif text.startswith("SET TRANSACTION SNAPSHOT"):
            count["parts of a proof"] += 1

    def before_commit(connection: sa.Connection) -> None:
        if threading.get_ident() == leader:
            driver = connection.connection.driver_connection
            assert isinstance(driver, Connection)
            commit(driver.info.backend_pid)

    events: dict[str, Callable[..., Any]] = {
        "before_cursor_execute": before_statement,
        "commit": before_commit,
    }
    for name, act in events.items():
        sa.event.listen(sa.Engine, name, act)
    try:
        yield
    finally:
        for name, act in events.items():
            sa.event.remove(sa.Engine, name, act)


def sqlstate(error: UsageRollupError) -> str | None:
    """Return PostgreSQL's word for what a command ended with; None where the command refused by itself."""
    if isinstance(error, LockBusy):
        return "55P03"
    cause = error.__cause__
    orig = cause.orig if isinstance(cause, DBAPIError) else cause
    return getattr(orig, "sqlstate", None)
