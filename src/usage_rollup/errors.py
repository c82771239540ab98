"""Every way this package refuses to go on.

alembic.util.CommandError        `alembic` prints one line, no traceback, exit status 255
└── UsageRollupError
    ├── ConfigurationError       the URL or an option is missing or malformed
    ├── DatabaseUnavailable      no server answered in time, or it refused the login
    ├── UnsuitableDatabase       wrong version, standby, read-only, pooled, privileges
    ├── AdoptionRefused          no revision of ours describes this database
    ├── DowngradeRefused         the way back could not or must not be finished
    ├── LockBusy                 another session holds a lock past the deadline
    ├── BackfillRefused          the hourly rollup cannot be made to tell the truth
    └── StatementFailed          PostgreSQL refused a statement, or the session was lost
"""

from __future__ import annotations

import psycopg
from alembic.util import CommandError


class UsageRollupError(CommandError):
    """Say what was refused, the measured facts and, as `hint`, the next command to type."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\nHINT: {hint}")


class ConfigurationError(UsageRollupError):
    """The environment does not say which database to migrate, or says it wrongly."""


class DatabaseUnavailable(UsageRollupError):
    """No session could be opened."""


class UnsuitableDatabase(UsageRollupError):
    """A session was opened that the upgrade cannot run on; nothing was changed."""


class AdoptionRefused(UsageRollupError):
    """The database stands at no point from which this chain can go on; nothing was changed."""


class DowngradeRefused(UsageRollupError):
    """The way back could not be finished, or others stand on what it undoes; nothing was undone."""


class LockBusy(UsageRollupError):
    """A lock was not free within its deadline; the holder is named."""


class BackfillRefused(UsageRollupError):
    """The hook before 103 stopped; finished slices stay, the version stays at 102."""


class StatementFailed(UsageRollupError):
    """PostgreSQL reported an error; the transaction it happened in was rolled back."""


def explain(error: psycopg.Error, sql: str | None = None) -> str:
    """Put PostgreSQL's report in lines: message and SQLSTATE, detail, hint, place in `sql`."""
    report = error.diag
    message = report.message_primary or " ".join(str(error).split())
    lines = [f"{message} (SQLSTATE {error.sqlstate})" if error.sqlstate else message]
    if report.message_detail:
        lines.append(f"DETAIL: {report.message_detail}")
    if report.message_hint:
        lines.append(f"HINT: {report.message_hint}")
    if sql is not None and report.statement_position:
        before = sql[: int(report.statement_position) - 1]
        label = f"LINE {before.count(chr(10)) + 1}: "
        column = len(before) - before.rfind("\n") - 1
        lines.append(label + sql.splitlines()[before.count("\n")])
        lines.append(" " * (len(label) + column) + "^")
    return "\n".join(lines)
