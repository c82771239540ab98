"""Every way this package refuses to go on, and the exit status each ends a process with.

alembic.util.CommandError        `alembic` prints one line, no traceback, exit status 255
└── UsageRollupError          1
    ├── ConfigurationError    2  the URL or an option is missing or malformed
    ├── DatabaseUnavailable  75  no server answered in time, or it had no room for a session
    ├── LoginRefused          1  a server answered, and refused the login, the database or TLS
    ├── UnsuitableDatabase    1  wrong version, standby, read-only, pooled, privileges
    ├── AdoptionRefused       1  no revision of ours describes this database
    ├── DowngradeRefused      1  the way back could not or must not be finished
    ├── LockBusy             75  another session holds a lock past the deadline
    ├── BackfillRefused       1  the hourly rollup cannot be made to tell the truth
    └── StatementFailed       1  PostgreSQL refused a statement
        └── SessionLost      75  the session was lost, and again after it was opened anew

75 is for what may pass by itself, as EX_TEMPFAIL of sysexits.h: the same command may be run again as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import psycopg
from alembic.util import CommandError

from . import doors

REFUSED = 1
USAGE = 2
TRY_AGAIN = 75  # sysexits.h EX_TEMPFAIL

AGAIN = "run the same command again; what was committed stays"

# By SQLSTATE, or its class: the server had no room, somebody stopped the statement, the role may not do it.
_HINTS = {
    "53": f"make room on the server, then {AGAIN}",
    "57": AGAIN,
    "42501": "grant it to the role that connects, or connect as the owner of task_usage",
}


@dataclass(frozen=True)
class Refusal:
    """What was refused or went wrong: a sentence, the measured facts, and the next command to type.

    `place` shows where in a statement. `facts` are values a program would look for (an SQLSTATE, a lock's
    key); only JSON has them. `reasons`, where there are several, are refusals of their own, each with its
    hint.
    """

    message: str
    detail: str | None = None
    hint: str | None = None
    place: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        """Have the hint name the program that works where the reader stands."""
        if self.hint:
            object.__setattr__(self, "hint", doors.named(self.hint))

    @classmethod
    def of(cls, reasons: Sequence[Refusal]) -> Refusal:
        """Return one refusal that shows all `reasons`: a single one as it is."""
        if len(reasons) == 1:
            return reasons[0]
        return cls(f"{len(reasons)} reasons to refuse; nothing was changed", reasons=tuple(reasons))

    def __str__(self) -> str:
        """Render it for people: a line for each part."""
        lines = [self.message]
        lines += [f"DETAIL: {self.detail}"] if self.detail else []
        lines += [f"HINT: {self.hint}"] if self.hint else []
        lines += [self.place] if self.place else []
        for number, reason in enumerate(self.reasons, 1):
            lines.append(f"{number}. " + str(reason).replace("\n", "\n   "))
        return "\n".join(lines)

    def fields(self) -> dict[str, Any]:
        """Render it for JSON: what there is of it."""
        parts = {"error": self.message, "detail": self.detail, "hint": self.hint, "place": self.place}
        fields = {name: part for name, part in parts.items() if part is not None} | dict(self.facts)
        return fields | ({"reasons": [r.fields() for r in self.reasons]} if self.reasons else {})


class UsageRollupError(CommandError):
    """Carry a Refusal up to whoever prints it."""

    exit_status: ClassVar[int] = REFUSED

    def __init__(
        self, message: str | Refusal, *, detail: str | None = None, hint: str | None = None, **facts: Any
    ) -> None:
        if not isinstance(message, Refusal):
            message = Refusal(message, detail=detail, hint=hint, facts=facts)
        self.refusal = message
        super().__init__(str(self.refusal))


class ConfigurationError(UsageRollupError):
    """The environment does not say which database to migrate, or says it wrongly."""

    exit_status = USAGE


class DatabaseUnavailable(UsageRollupError):
    """No session could be opened, and a later attempt may open one."""

    exit_status = TRY_AGAIN


class LoginRefused(UsageRollupError):
    """The server answered and refused the session for good: role, password, database, TLS."""


class UnsuitableDatabase(UsageRollupError):
    """A session was opened that the upgrade cannot run on; nothing was changed."""


class AdoptionRefused(UsageRollupError):
    """The database stands at no point from which this chain can go on; nothing was changed."""


class DowngradeRefused(UsageRollupError):
    """The way back could not be finished, or others stand on what it undoes; nothing was undone."""


class LockBusy(UsageRollupError):
    """A lock was not free within its deadline; the holder is named."""

    exit_status = TRY_AGAIN


class BackfillRefused(UsageRollupError):
    """The hook before 103 stopped; finished slices stay, the version stays at 102."""


class StatementFailed(UsageRollupError):
    """PostgreSQL reported an error; the transaction it happened in was rolled back."""

    @classmethod
    def of(
        cls, error: psycopg.Error, *, doing: str = "", sql: str | None = None, hint: str | None = None
    ) -> Self:
        """Make one of explain()'s answer."""
        return cls(explain(error, doing=doing, sql=sql, hint=hint))


class SessionLost(StatementFailed):
    """The session ended under a statement; what was committed stays."""

    exit_status = TRY_AGAIN


def explain(
    error: psycopg.Error, *, doing: str = "", sql: str | None = None, hint: str | None = None
) -> Refusal:
    """Return PostgreSQL's report: message and SQLSTATE, detail, hint and, where known, the place in `sql`.

    `doing` says what was tried; `hint` is for want of PostgreSQL's own, and for want of both there is one for
    what is no fault of the statement.
    """
    report = error.diag
    # Below its first line libpq guesses.
    message = report.message_primary or str(error).partition("\n")[0]
    if error.sqlstate:
        message += f" (SQLSTATE {error.sqlstate})"
    if doing:
        message = f"{doing}: {message}"
    place = None
    if sql is not None and report.statement_position:
        place = _place(sql, int(report.statement_position) - 1)
    facts = {"sqlstate": error.sqlstate} if error.sqlstate else {}
    state = error.sqlstate or ""
    hint = report.message_hint or hint or _HINTS.get(state) or _HINTS.get(state[:2])
    return Refusal(message, report.message_detail, hint, place, facts)


def _place(sql: str, offset: int) -> str:
    """Return the line of `sql` that holds `offset`, with its number and a caret below."""
    before = sql[:offset]
    line = before.count("\n")
    label = f"LINE {line + 1}: "
    column = offset - before.rfind("\n") - 1
    return f"{label}{sql.splitlines()[line]}\n{' ' * (len(label) + column)}^"
