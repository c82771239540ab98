"""Recognise what later product releases are known to change in what this project makes.

The product's runner replaces functions and triggers of 102 and adds columns to the hourly table. Each
known change goes by the number its ledger stem begins with and by what is there; whatever else differs
is a difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from ..contract import BASELINE, NEXT_STEM, STEMS
from ..hourly import pipeline
from ..runner import adoption
from .catalog import Catalog

COST_COLUMNS = {
    "cost_usd_ticks": "bigint NOT NULL DEFAULT 0",
    "uncosted_input_tokens": "bigint",
    "uncosted_output_tokens": "bigint",
    "uncosted_cache_read_tokens": "bigint",
    "uncosted_cache_write_tokens": "bigint",
}

# What a comment says, which may take several lines.
_TEXT = "E?'(?:[^']|'')*'"

_COST_LINES = "|".join(f"column {name} {kind}|comment {name} {_TEXT}" for name, kind in COST_COLUMNS.items())

_WINDOW = "function rollup_task_usage_hourly_window(timestamp with time zone, timestamp with time zone)"
_TICK = "function rollup_task_usage_hourly()"

# What the product's own 101 and 102 have under the same names.
_CONTRACT = frozenset(
    {
        _WINDOW,
        _TICK,
        "function task_usage_hour_bucket(timestamp with time zone)",
        "function prune_task_usage_hourly_dirty(interval)",
        "function task_usage_hourly_rollup_lag_seconds()",
        *(f"function enqueue_task_usage_hourly_dirty_for_{of}()" for of in ("atq", "tu")),
        *(f"function enqueue_task_usage_hourly_dirty_for_issue_{of}()" for of in ("delete", "project")),
        "table task_usage_hourly",
        "table task_usage_hourly_dirty",
        "table task_usage_hourly_rollup_state",
        "trigger agent_task_queue.trg_atq_dirty_hourly",
        "trigger issue.trg_issue_delete_dirty_hourly",
        "trigger issue.trg_issue_project_dirty_hourly",
        "trigger task_usage.trg_tu_dirty_hourly",
    }
)

PRODUCTS = frozenset(f"table {table}" for table in BASELINE.columns)

_REPLACED_BY_243 = (
    "trigger agent_task_queue.trg_atq_dirty_hourly",
    "trigger issue.trg_issue_delete_dirty_hourly",
    "trigger task_usage.trg_tu_dirty_hourly",
)
_TEARDOWN = " WHEN ((current_setting('multica.workspace_teardown'::text, true) IS DISTINCT FROM 'on'::text))"


@dataclass(frozen=True)
class Standing:
    """What the ledger records, and whether 102 is the product's own instead of ours."""

    stems: frozenset[str]
    products_pipeline: bool

    def records(self, number: str) -> bool:
        """Say whether a step of this number is in the ledger."""
        return any(stem.startswith(f"{number}_") for stem in self.stems)

    @property
    def beyond(self) -> str | None:
        """Return the newest stem, where the product's tables are beyond what this project knows."""
        newest = max(self.stems, default="")
        return newest if newest > NEXT_STEM else None


def find(connection: sa.Connection) -> Standing:
    """Read ledger and catalog in the caller's transaction. Raises AdoptionRefused for another's ledger."""
    stems = adoption.look(connection).ledger() or frozenset()
    private = connection.scalar(
        sa.text("SELECT to_regclass('public.task_usage_hourly_invalidation') IS NOT NULL")
    )
    return Standing(stems, STEMS["104"] in stems and not private and not pipeline.find(connection).readable)


def accept(standing: Standing, expected: Catalog, found: Catalog) -> tuple[Catalog, list[str]]:
    """Return `found` with every known variant taken back to what is expected, and their names."""
    named = []
    for variant in _VARIANTS:
        if variant.applies(standing):
            accepted = variant.accept(expected, found)
            if accepted != found:
                named.append(variant.name)
            found = accepted
    return found, named


def _pipeline(expected: Catalog, found: Catalog) -> Catalog:
    """Accept the product's 102 for ours: its contract counts, not its bodies, helpers and comments."""
    accepted = {n: t for n, t in found.items() if n in expected or not n.startswith("function ")}
    for name, text in expected.items():
        if name not in _CONTRACT:
            if name not in PRODUCTS:
                accepted.setdefault(name, text)
        elif name.startswith("function "):
            accepted = _replaced(name)(expected, accepted)
        elif name in accepted:
            accepted[name] = _with_notes_of(text, accepted[name])
    return accepted


def _with_notes_of(expected: str, found: str) -> str:
    """Return `found` with the comments and the replica identity of `expected`."""
    notes = rf"comment (?:\S+ )?{_TEXT}|replica identity \w+"
    ours = re.findall(rf"^(?:{notes})$", expected, re.MULTILINE)
    return "\n".join(sorted([*_without(notes, found).split("\n"), *ours]))


def _without(lines: str, text: str) -> str:
    """Return a table's text without the lines that match."""
    return re.sub(rf"^(?:{lines})$\n?", "", text, flags=re.MULTILINE).rstrip("\n")


def _replaced(name: str) -> Callable[[Catalog, Catalog], Catalog]:
    """Accept another body of a function whose name, parameters and result are the contract's."""

    def accept(expected: Catalog, found: Catalog) -> Catalog:
        same = name in found and found[name].split("\n")[:2] == expected[name].split("\n")[:2]
        return {**found, name: expected[name]} if same else found

    return accept


def _costs(expected: Catalog, found: Catalog) -> Catalog:
    """Accept 213's columns, their comments, and its window."""
    table = "table task_usage_hourly"
    if table in found:
        found = {**found, table: _without(_COST_LINES, found[table])}
    return _replaced(_WINDOW)(expected, found)


def _teardown(expected: Catalog, found: Catalog) -> Catalog:
    """Accept 243's triggers, which stand back while a workspace is deleted."""
    return {
        name: text.replace(_TEARDOWN, "") if name in _REPLACED_BY_243 else text
        for name, text in found.items()
    }


def _nullable_runtime(expected: Catalog, found: Catalog) -> Catalog:
    """Accept 251's tasks and agents without a runtime."""
    column = "column runtime_id uuid"
    named = re.compile(rf"^{column}$", re.MULTILINE)
    return {
        name: named.sub(f"{column} NOT NULL", text)
        if name in ("table agent", "table agent_task_queue")
        else text
        for name, text in found.items()
    }


@dataclass(frozen=True)
class Variant:
    """A known change: how a message names it, when it may be there, and what it explains."""

    name: str
    applies: Callable[[Standing], bool]
    accept: Callable[[Catalog, Catalog], Catalog]


_VARIANTS = (
    Variant("the product's own pipeline (102 of v0.3.5 and later)", lambda s: s.products_pipeline, _pipeline),
    Variant("213 (v0.4.10): cost columns and the product's window", lambda s: s.records("213"), _costs),
    Variant("243 (v0.4.16): triggers with a WHEN clause", lambda s: s.records("243"), _teardown),
    Variant("251 (v0.4.17): tasks without a runtime", lambda s: s.records("251"), _nullable_runtime),
    Variant("272 (v0.4.23): the product's tick", lambda s: s.records("272"), _replaced(_TICK)),
)
