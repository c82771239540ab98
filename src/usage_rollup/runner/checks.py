"""The one list of checks: what preflight shows, and upgrade, downgrade and scripts refuse for, in its words.

All is asked before anything is changed, and every reason is told at once with what mends it. checks.sql and
dependents.sql ask the catalog, adoption.sql the ledgers, session/suitability.sql the session. Only what
concerns the steps still to be taken counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, RevisionStep

from ..errors import AdoptionRefused, DowngradeRefused, Refusal, UnsuitableDatabase
from ..queries import beside, filled
from ..session import suitability
from ..session.options import Options
from . import adoption, as_made, dependents
from .course import Course, gaps
from .hooks import Work

log = logging.getLogger(__name__)

_SQL = beside(__file__)

# Any command that changes the version alone.
STAMP = "stamp"

# From where an upgrade or downgrade begins to the steps it takes, oldest or newest first.
Plan = Callable[[str | None], Sequence[str]]
Forecast = Callable[[sa.Connection], list[Refusal]]


@dataclass(frozen=True)
class Found:
    """Every reason to refuse, and where the database stands: None when that could not be asked.

    `doubts` are what may refuse a step, and nobody can tell.
    """

    refusals: tuple[Refusal, ...]
    standing: adoption.Standing | None
    doubts: tuple[Refusal, ...] = ()


def find(
    session: sa.Connection, command: str, plan: Plan, options: Options, forecast: Forecast | None = None
) -> Found:
    """Return every reason to refuse `command`, in the caller's transaction, or each statement by itself.

    `plan` tells the steps from where the database stands; it is asked once that is known, and not for a
    stamp, which changes nothing but the version. `forecast` tells what only the data can, where
    that matters. Only reads.
    """
    before = Course(command, version_table=options.version_table)
    server = _ask(session, before, "server", "calls")
    if ground := _ask(session, before, "schema") or _ask(session, before, "ledgers", "unreadable"):
        acting = [reason for reason in _ask(session, before, "acting") if reason not in ground]
        return Found((*server, *ground, *acting), None)
    standing = adoption.look(session)
    refusals = standing.refused(command)
    steps: tuple[str, ...] = ()
    if command == "downgrade":
        steps = tuple(plan(standing.version))
        if "097" in steps and not refusals:
            hidden = _ask(session, Course(command, steps), "row_security", "emptied")
            refusals = hidden or adoption.look(session, to_nothing=True).refused("base")
        # Nothing to undo is nothing to refuse; and where a way back must not be begun no step matters.
        steps, refusals = ((), refusals) if steps and refusals else (steps, [])
    elif refusals and command == "upgrade" and standing.shown == "097":
        # Half of a v0.3.4, or one that was only stamped: what else is against it is told as well.
        steps = tuple(plan("097"))
    elif not refusals and command != STAMP:
        steps = tuple(plan(standing.start))
    records = command == STAMP or (command == "upgrade" and standing.reason is not None)
    course = Course(command, steps, options.keep_legacy, records, options.version_table)
    asked = _ask(session, course, *CONCERNS) if course.writes else []
    # Data is read only where nothing else is in the way of reading it.
    if forecast and not (server or refusals or asked) and looks_ahead(session, steps, options):
        asked += forecast(session)
    doubts = _ask(session, course, "doubts") if steps else []
    return Found((*server, *refusals, *asked), standing, tuple(doubts))


def require(
    session: sa.Connection, work: Work, context: MigrationContext, options: Options, forecast: Forecast
) -> adoption.Standing:
    """Return where the database stands; refuse with every reason against what Alembic's `work` would do.

    Call it while holding the migration-run lock. Raises DowngradeRefused for a downgrade, AdoptionRefused
    where only the ledgers are against an upgrade, else UnsuitableDatabase.
    """
    name: str = getattr(work, "__name__", "")
    command = name if name in {"upgrade", "downgrade"} else STAMP

    def plan(start: str | None) -> list[str]:
        steps = work((start,) if start else (), context)
        return [step.revision.revision for step in steps if isinstance(step, RevisionStep)]

    found = find(session, command, plan, options, forecast)
    for doubt in found.doubts:
        log.warning("%s", doubt)
    if found.standing and not found.refusals:
        return found.standing
    refusal = Refusal.of(found.refusals)
    if command == "downgrade":
        raise DowngradeRefused(refusal)
    if found.standing and list(found.refusals) == found.standing.refused(command):
        raise AdoptionRefused(refusal)
    raise UnsuitableDatabase(refusal)


# What is asked before the ledgers are: without rights nothing more can be, and strangers would answer.
GROUND = ("server", "calls", "schema", "ledgers", "unreadable")

# What is asked about steps, in the order in which it is told.
# fmt: off
CONCERNS = (
    "acting", "writing", "owners", "rights", "types", "additions", "parts", "in_the_way", "planted_code",
    "row_security", "keeping", "scheduler", "dependents",
)
# fmt: on


def _ask(session: sa.Connection, course: Course, *concerns: str) -> list[Refusal]:
    return suitability.ask(session, query(course, *concerns))


def keeping(session: sa.Connection) -> list[Refusal]:
    """Return why the legacy tables, which must be kept, could not be."""
    return _ask(session, Course("upgrade", ("103",), keep_legacy=True), "keeping")


def looks_ahead(session: sa.Connection, steps: Sequence[str], options: Options) -> bool:
    """Say whether it matters before the first of `steps` what the legacy tables hold.

    It does where the role may not make the schema to keep them in.
    """
    return "103" in steps and options.keep_legacy is None and bool(keeping(session))


def query(course: Course, *concerns: str) -> str:
    """Return one query of (message, hint) for `concerns` about `course`, in their order."""
    texts = suitability.SQL | _SQL | dependents.SQL | as_made.SQL
    shared = [_SQL["trusted"], _SQL["public_objects"]]
    if "dependents" in concerns:
        shared.append(dependents.SQL["roots"])
    text = suitability.query(*(texts[concern] for concern in concerns), shared=shared)
    return filled(text, **gaps(course))
