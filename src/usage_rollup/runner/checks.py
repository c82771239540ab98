"""The one list of checks: what preflight shows, and upgrade, downgrade and scripts refuse for, in its words.

All is asked before anything is changed, and every reason is told at once with what mends it. checks.sql and
dependents.sql ask the catalog, adoption.sql the ledgers, session/suitability.sql the session. Only what
concerns the steps still to be taken counts.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, RevisionStep

from ..contract import BUILT_BY_THE_WALK, LEGACY
from ..errors import AdoptionRefused, DowngradeRefused, Refusal, UnsuitableDatabase
from ..queries import array, beside, filled, literal
from ..session import suitability
from ..session.options import VERSION_TABLE, Options
from . import adoption, as_made, dependents, footprint
from .hooks import Work

log = logging.getLogger(__name__)

_SQL = beside(__file__)

# Any command that changes the version alone.
STAMP = "stamp"

# Which steps make new objects, by direction: their owner must be able to.
_CREATING = {True: {"097", "101", "102"}, False: {"103"}}

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


@dataclass(frozen=True)
class Course:
    """What is about to be done: `upgrade`, `downgrade` or a `stamp`, and the steps by their revisions."""

    command: str
    steps: tuple[str, ...] = ()
    keep_legacy: bool | None = None
    records: bool = False
    version_table: str = VERSION_TABLE

    @property
    def up(self) -> bool:
        """Say whether this goes up."""
        return self.command != "downgrade"

    @property
    def writes(self) -> bool:
        """Say whether anything is to be recorded: a step, an adoption or a stamp."""
        return bool(self.steps) or self.records


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
    return filled(text, **_gaps(course))


def _gaps(course: Course) -> dict[str, str]:
    steps, up, keep = course.steps, course.up, course.keep_legacy
    altered = footprint.altered_tables(steps)
    functions = dict.fromkeys(footprint.altered_functions(steps), True)
    hourly = footprint.hourly_tables() if steps else []
    if steps:
        functions |= {f: False for f in footprint.functions("102") if f not in functions}
    hourly_functions = {*footprint.functions("102")}
    made = hourly_functions if up and "102" in steps else set()
    drops = dependents.drops(steps, up=up, keep_legacy=keep is True)
    return {
        "version_table": literal(course.version_table),
        "another_table": adoption.ANOTHER_TABLE,
        "acting": suitability.SQL["acting"],
        "row_security": suitability.SQL["row_security"],
        "writes": _boolean(course.writes),
        "up": _boolean(up),
        "creates": _boolean(bool(_CREATING[up] & {*steps})),
        "backfills": _boolean(up and "103" in steps),
        "built_by_the_walk": array(BUILT_BY_THE_WALK.split()),
        "empties": _boolean(not up and "097" in steps),
        "keeps": _boolean(up and "103" in steps and keep is True),
        "unschedules": _boolean((up and "103" in steps) or (not up and "102" in steps)),
        "takes_back": _boolean(not up and "103" in steps),
        "may_keep": _boolean(up and keep is None),
        "calls": _boolean(up and bool({"102", "103"} & {*steps})),
        "stands_on_102": _boolean(up and "103" in steps and "102" not in steps),
        "needs": _records(as_made.needs(steps) if up else ()),
        "columns": _records(as_made.columns(steps) if up else ()),
        "written": _records(as_made.written(steps, writes=course.writes) if up else ()),
        "constraints": array(sorted(footprint.constraints())),
        "altered_tables": array(altered),
        "hourly_tables": array(hourly),
        "legacy_tables": array(LEGACY.columns),
        "functions": _records(
            {
                **dataclasses.asdict(f),
                "altered": altered_,
                "made": f in made,
                "used": f in hourly_functions,
            }
            for f, altered_ in functions.items()
        ),
        "private": _records(
            {"name": name, "columns": sorted(columns)}
            for name, columns in footprint.private_tables().items()
            if up and "102" in steps
        ),
        "taken": _records(
            {"kind": kind, "name": name, "table": table}
            for kind, name, table in footprint.taken_names(steps, up=up)
        ),
        "triggers": _records(
            {"table": table, "name": name, "function": function}
            for table, name, function in footprint.triggers()
            if up and "102" in steps
        ),
        "gone": _records(dependents.relations_gone(steps, up=up)),
        "drops": _records({"n": d.order, "kind": d.kind, "name": d.name, "part": d.part} for d in drops),
    }


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _records(records: Any) -> str:
    """Return an SQL literal for an array of records."""
    return f"{literal(json.dumps(list(records)))}::jsonb"
