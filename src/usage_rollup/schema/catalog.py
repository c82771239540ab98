"""Describe what this project makes in a database, as text: one object after another, good to diff.

A table's text is its sorted lines: columns, constraints, indexes, comments. Of the product's tables it
holds the columns and named indexes of v0.3.4, and nothing else. Owners and privileges are left out.
catalog.txt is the description of head, reviewed like code; `make snapshot` writes it.
"""

from __future__ import annotations

from collections import defaultdict
from importlib.resources import files

import sqlalchemy as sa

from ..contract import BASELINE, LEGACY, RUNTIME_TIMEZONE, USER_TIMEZONE
from ..queries import beside

_SQL = beside(__file__)

# Text by object, `<kind> <name>`.
Catalog = dict[str, str]

SNAPSHOT = "catalog.txt"

_INDENT = "    "


def read(connection: sa.Connection) -> Catalog:
    """Describe the database; the same on every PostgreSQL from 15 on, whatever role and database set.

    Reads the system catalog only, which every role may, and takes no lock. Joins the caller's
    transaction, on a session pinned by opening.connect(): the names of types depend on search_path.
    """
    lines = defaultdict(list)
    parameters = {
        "products": list(BASELINE.columns),
        "columns": [
            name.removeprefix("column ")
            for name in (BASELINE.names() | {USER_TIMEZONE, RUNTIME_TIMEZONE})
            if name.startswith("column ")
        ],
        "indexes": BASELINE.indexes.split(),
        "legacy_tables": list(LEGACY.columns),
        "legacy_functions": LEGACY.functions.split(),
        "legacy_triggers": " ".join(LEGACY.triggers.values()).split(),
    }
    for name, line in connection.execute(sa.text(_SQL["catalog"]), parameters):
        lines[name].append(line)
    return {name: "\n".join(sorted(lines[name])) for name in sorted(lines)}


def expected() -> Catalog:
    """Return what the revisions make at head, from the snapshot in the package."""
    return parse(files(__package__).joinpath(SNAPSHOT).read_text("utf-8"))


def render(catalog: Catalog) -> str:
    """Write a catalog as the text of the snapshot file."""
    return "\n".join(f"{name}\n{_indented(text)}\n" for name, text in sorted(catalog.items()))


def parse(text: str) -> Catalog:
    """Return the catalog that render() wrote."""
    lines: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if line and not line.startswith(_INDENT):
            body = lines[line] = []
        else:
            body.append(line.removeprefix(_INDENT))
    return {name: "\n".join(body).rstrip("\n") for name, body in lines.items()}


def _indented(text: str) -> str:
    return "\n".join(_INDENT + line if line else line for line in text.split("\n"))
