"""What is about to be done, and what of it the checks' SQL has to be told."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from ..contract import BUILT_BY_THE_WALK, LEGACY
from ..queries import array, literal
from ..session import suitability
from ..session.options import VERSION_TABLE
from . import adoption, as_made, dependents, footprint

# Which steps make new objects, by direction: their owner must be able to.
_CREATING = {True: {"097", "101", "102"}, False: {"103"}}


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


def gaps(course: Course) -> dict[str, str]:
    """Return the gaps of checks.sql, dependents.sql and as_made.sql, closed for `course`."""
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
        "needs": _records(as_made.needs(steps) if up else as_made.needs_back(steps)),
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
