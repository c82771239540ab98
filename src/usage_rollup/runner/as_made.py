"""What the steps of an upgrade read and write must be as it was made: as_made.sql asks, this tells it how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..contract import HOURLY, LEGACY
from ..queries import beside
from . import footprint

SQL = beside(__file__)

_READ = ("agent", "agent_task_queue", "issue", "task_usage")
_LEGACY_READ = ("task_usage_daily", "task_usage_dashboard_daily")

# What LOCK TABLE asks of who is no more than the owner.
_LOCK = ["UPDATE"]


def needs(steps: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Return what the session's role and the owner need on the tables that are there, the owner besides."""
    pipeline, drops = "102" in steps, "103" in steps
    for table in _READ if pipeline or drops else ():
        triggers = ["TRIGGER"] if pipeline else []
        # It takes a lock on these, but for `agent`, where 103 has no trigger to drop.
        locked = _LOCK if pipeline or table != "agent" else []
        yield {"table": table, "privileges": ["SELECT"], "of_owner": [*triggers, *locked]}
    if drops:
        # Whose days the daily totals are.
        yield {"table": "agent_runtime", "privileges": ["SELECT"], "of_owner": []}
    for table in LEGACY.columns if drops else ():
        read = ["SELECT"] if table in _LEGACY_READ else []
        yield {"table": table, "privileges": read, "of_owner": _LOCK}
    for table in footprint.hourly_tables() if pipeline or drops else ():
        yield {"table": table, "privileges": ["SELECT", "INSERT", "UPDATE", "DELETE"], "of_owner": []}
    for step, table in (("100", "user"), ("104", "agent_runtime")):
        if step in steps:
            yield {"table": table, "privileges": [], "of_owner": _LOCK}


def needs_back(steps: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Return what the owner needs where the legacy rollups are rolled up again."""
    for table in (*_READ, "agent_runtime") if "103" in steps else ():
        yield {"table": table, "privileges": [], "of_owner": ["SELECT"]}


def columns(steps: Sequence[str]) -> Iterator[dict[str, str]]:
    """Return the columns that `steps` read or write, with their types."""
    made = {**footprint.columns("097"), **footprint.columns("101")}
    tables = [*_READ, *HOURLY.columns] if {"102", "103"} & {*steps} else []
    tables += _LEGACY_READ if "103" in steps else ()
    for table in tables:
        for name, kind in made[table].items():
            yield {"table": table, "name": name, "type": kind}


def written(steps: Sequence[str], *, writes: bool) -> Iterator[dict[str, Any]]:
    """Return the tables that rows are written to, with the columns that are filled."""
    if writes:
        yield {"table": "schema_migrations", "columns": ["version"]}
    if {"102", "103"} & {*steps}:
        filled = {name: names.split() for name, names in HOURLY.columns.items()}
        for table, names in {**filled, **footprint.private_tables()}.items():
            yield {"table": table, "columns": sorted(names)}
