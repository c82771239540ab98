"""Who stands on what the steps drop: dependents.sql asks the catalog, this tells it what goes, and when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..contract import BASELINE, HOURLY, LEGACY
from ..queries import beside
from . import footprint

SQL = beside(__file__)


@dataclass(frozen=True)
class Drop:
    """One object that a step drops. `part` is a column, a trigger, or a function's number of arguments.

    What goes with `order` n is there when everything with a lower one is gone.
    """

    order: int
    kind: str
    name: str
    part: str = ""


def drops(steps: Iterable[str], *, up: bool, keep_legacy: bool) -> list[Drop]:
    """Return what `steps` drop, in their order; tables that are kept are dropped by nobody."""
    found: list[Drop] = []

    def add(kind: str, names: Iterable[tuple[str, str]], *, together: bool = False) -> None:
        for name, part in names:
            last = found[-1] if found else Drop(0, "", "")
            order = last.order if together and last.kind == kind else last.order + 1
            found.append(Drop(order, kind, name, part))

    for step in steps:
        match (up, step):
            case (True, "103"):
                add("trigger", _legacy_triggers())
                add("function", [(f.name, str(len(f.arguments))) for f in footprint.functions("097")])
                if not keep_legacy:
                    add("table", [(table, "") for table in LEGACY.columns])
            case (True, "104"):
                add("column", [("agent_runtime", "timezone")])
            case (False, "102"):
                add("trigger", [(table, name) for table, name, _ in footprint.triggers()])
                add("function", [(f.name, str(len(f.arguments))) for f in footprint.functions("102")])
                add("table", [(table, "") for table in footprint.private_tables()])
            case (False, "101"):
                add("table", [(table, "") for table in reversed(HOURLY.columns)])
            case (False, "100"):
                add("column", [("user", "timezone")])
            case (False, "097"):
                add("table", [(t, "") for t in [*LEGACY.columns, *BASELINE.columns]], together=True)
                add("function", [(f.name, str(len(f.arguments))) for f in footprint.functions("097")])
    return found


def relations_gone(steps: Iterable[str], *, up: bool) -> list[dict[str, str]]:
    """Return the tables and columns that are not in schema public any more after `steps`, kept or not."""
    found = drops(steps, up=up, keep_legacy=False)
    return [{"name": drop.name, "part": drop.part} for drop in found if drop.kind in {"table", "column"}]


def _legacy_triggers() -> Iterator[tuple[str, str]]:
    return ((table, name) for table, names in LEGACY.triggers.items() for name in names.split())
