"""What the steps stand on, make, replace and drop: read from the contract and from the revisions' own SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from .. import revisions
from ..contract import BASELINE, HOURLY, LEGACY

# Tables by the step that alters them or puts triggers on them, in both directions.
_TABLES = {
    "097": [*BASELINE.columns, *LEGACY.columns],
    "100": ["user"],
    "101": [*HOURLY.columns],
    "102": ["agent", "agent_task_queue", "issue", "task_usage", *HOURLY.columns],
    "103": ["agent_task_queue", "issue", "task_usage", *LEGACY.columns],
    "104": ["agent_runtime"],
}

_FUNCTION = re.compile(
    r"^CREATE (?:OR REPLACE )?FUNCTION public\.(\w+)\s*\((.*?)\)\s*RETURNS\s+(.*?)"
    r"\s+(?:LANGUAGE|AS|IMMUTABLE|STABLE|VOLATILE)\b",
    re.MULTILINE | re.DOTALL,
)
_TABLE = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?public\.(\w+) \((.*?)^\)", re.MULTILINE | re.DOTALL)
_TRIGGER = re.compile(
    r"^CREATE OR REPLACE TRIGGER (\w+)\s.*?\bON public\.(\w+).*?FUNCTION public\.(\w+)",
    re.MULTILINE | re.DOTALL,
)
_COLUMN = re.compile(r"^    ([a-z]\w*) ", re.MULTILINE)
_TYPED = re.compile(r"^    ([a-z]\w*) +(\w+)", re.MULTILINE)
_CONSTRAINT = re.compile(r"\bCONSTRAINT (\w+)")

# As format_type() writes them.
_TYPES = {"timestamptz": "timestamp with time zone", "int": "integer", "float8": "double precision"}


@dataclass(frozen=True)
class Function:
    """A function by the facts that CREATE OR REPLACE cannot change, in pg_catalog's words."""

    name: str
    arguments: tuple[str, ...]
    types: str
    defaults: int
    result: str


@cache
def functions(revision: str) -> tuple[Function, ...]:
    """Return the functions that a revision makes."""
    return tuple(_functions(revisions.sql(revision)))


def _functions(text: str) -> Iterator[Function]:
    for name, arguments, result in _FUNCTION.findall(text):
        words = [argument.split() for argument in arguments.split(",") if argument.strip()]
        defaults = sum("DEFAULT" in argument for argument in words)
        types = ", ".join(
            _canonical(" ".join(takewhile(lambda word: word != "DEFAULT", a[1:]))) for a in words
        )
        yield Function(name, tuple(argument[0] for argument in words), types, defaults, _canonical(result))


def _canonical(result: str) -> str:
    text = " ".join(result.replace("public.", "").split())
    text = re.sub(rf"\b({'|'.join(_TYPES)})\b", lambda found: _TYPES[found[0]], text)
    return text.replace("( ", "(").replace(" )", ")").replace(" [", "[").replace("TABLE (", "TABLE(")


@cache
def private_tables() -> dict[str, frozenset[str]]:
    """Return the tables that 102 makes, with their columns, in the order in which it does."""
    skip = {"CONSTRAINT", "CHECK"}
    return {
        name: frozenset(column for column in _COLUMN.findall(body) if column not in skip)
        for name, body in _TABLE.findall(revisions.sql("102"))
    }


@cache
def columns(revision: str) -> dict[str, dict[str, str]]:
    """Return the columns of the tables that a revision makes, with their types in pg_catalog's words."""
    return {
        table: {name: _canonical(kind) for name, kind in _TYPED.findall(body)}
        for table, body in _TABLE.findall(revisions.sql(revision))
    }


@cache
def constraints() -> frozenset[str]:
    """Return the names of the constraints of the hourly tables, PostgreSQL's own choice included."""
    named = _CONSTRAINT.findall(revisions.sql("101") + revisions.sql("102"))
    return frozenset({*named, "task_usage_hourly_rollup_state_id_check"})


@cache
def triggers() -> tuple[tuple[str, str, str], ...]:
    """Return the triggers that 102 makes: table, name, function."""
    return tuple((table, name, function) for name, table, function in _TRIGGER.findall(revisions.sql("102")))


def altered_tables(steps: Iterable[str]) -> list[str]:
    """Return the tables that `steps` alter, drop, or put triggers on."""
    private = {"102": [*private_tables()]}
    return sorted({table for step in steps for table in [*_TABLES[step], *private.get(step, [])]})


def altered_functions(steps: Iterable[str]) -> list[Function]:
    """Return the functions that `steps` replace or drop."""
    making = {"097": "097", "102": "102", "103": "097"}
    return sorted(
        {f for step in steps if step in making for f in functions(making[step])}, key=lambda f: f.name
    )


def hourly_tables() -> list[str]:
    """Return the tables of the hourly rollup, public and private."""
    return [*HOURLY.columns, *private_tables()]


def taken_names(steps: Iterable[str], *, up: bool) -> list[tuple[str, str, str]]:
    """Return what must not be there before `steps` make it: kind, name, and a trigger's table."""
    names: list[tuple[str, str, str]] = []
    makes = {
        "097": [BASELINE, LEGACY] if up else [],
        "101": [HOURLY] if up else [],
        "103": [] if up else [LEGACY],
    }
    for step in steps:
        for inventory in makes.get(step, []):
            names += [("relation", name, "") for name in [*inventory.columns, *inventory.indexes.split()]]
            names += [("function", name, "") for name in inventory.functions.split()]
            names += [
                ("trigger", name, table) for table, t in inventory.triggers.items() for name in t.split()
            ]
    return names
