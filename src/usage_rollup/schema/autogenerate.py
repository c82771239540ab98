"""What `alembic check` compares: the tables this project makes; `usage-rollup check` compares everything."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa

from ..contract import HOURLY, LEGACY
from . import later_releases
from .metadata import METADATA

OWNED = frozenset(table.name for table in METADATA.tables.values())

# The tables of our 102, which the product's own has not got.
PRIVATE = OWNED - HOURLY.columns.keys()


def options(connection: sa.Connection) -> dict[str, Any]:
    """Return the arguments of context.configure() that autogenerate needs; reads nothing by itself.

    The filters read the ledger when autogenerate first asks them, in its own transaction.
    """

    @cache
    def standing() -> later_releases.Standing:
        return later_releases.find(connection)

    def include_object(item: Any, name: str | None, kind: str, reflected: bool, other: object) -> bool:
        if other is not None:
            return True
        if reflected and kind == "column" and name in later_releases.COST_COLUMNS:
            return not standing().records("213")
        if not reflected and name in PRIVATE:
            return not standing().products_pipeline
        return True

    return {
        "target_metadata": METADATA,
        # The schema has to be named: a pinned session does not look in public by itself.
        "include_schemas": True,
        "include_name": _include_name,
        "include_object": include_object,
        "compare_server_default": True,
        # Comments are the check command's: where the pipeline is the product's, they are its own.
        "autogenerate_plugins": [
            "alembic.autogenerate.*",
            "~alembic.autogenerate.comments",
            "alembic.ext.checkconstraint_byname",
        ],
    }


def _include_name(name: str | None, kind: str, parents: Mapping[Any, Any]) -> bool:
    """Leave other schemas and the product's tables alone, unread."""
    if kind == "schema":
        return name == "public"
    if kind != "table" or name is None:
        return True
    return name in OWNED or name in LEGACY.columns or name.startswith("task_usage_hourly")
