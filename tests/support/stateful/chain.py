"""Steps of the chain, down and up again, while others go on: the SQL of the revisions, under their locks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from usage_rollup import revisions

# Where a database may stand in a schedule. Below 102 nothing keeps the rollup.
AT_101, AT_102, HEAD = "101", "102", "104"

Locks = Mapping[str, Sequence[str]]

# What 103 has kept, out of the way of the next schedule.
FORGET_KEPT = """
DO $$
DECLARE
    v_schema text;
BEGIN
    FOR v_schema IN SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'legacy_usage') LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', v_schema);
    END LOOP;
END
$$
"""


@cache
def up(number: str) -> str:
    """Return a step up, for an open transaction: its table locks, then its SQL."""
    return _locked(_module(number).LOCK) + revisions.sql(number)


@cache
def down(number: str) -> str:
    """Return a step down likewise."""
    module = _module(number)
    if number == "102":
        return _locked(module.LOCK) + _locked({"ACCESS EXCLUSIVE": module.PRIVATE}) + _down(number)
    if number == "103":
        legacy: str = (Path(module.__file__).parent / module.LEGACY).read_text("utf-8")
        return _locked({"ACCESS EXCLUSIVE": module.TABLES[:3]}) + legacy + _down(number)
    return _locked(module.LOCK) + _down(number)


def _down(number: str) -> str:
    return revisions.sql(number, "down")


def _module(number: str) -> Any:
    return revisions.scripts().get_revision(number).module


def _locked(locks: Locks) -> str:
    return "".join(
        f"LOCK TABLE {', '.join(f'public.{table}' for table in tables)} IN {mode} MODE;\n"
        for mode, tables in locks.items()
    )
