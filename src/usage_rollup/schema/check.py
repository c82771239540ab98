"""Compare a database at head with what the revisions make; the half that autogenerate does not see."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from ..contract import HEAD, STEMS
from ..errors import UnsuitableDatabase
from ..hourly import unseen
from ..hourly.unseen import Unseen
from ..runner import adoption
from ..session.connection import snapshot
from . import catalog, later_releases
from .catalog import Catalog

MISSING, UNEXPECTED, CHANGED = "missing", "unexpected", "changed"


@dataclass(frozen=True)
class Difference:
    """One object that is not as the revisions make it; `-` lines are theirs, `+` lines the database's."""

    object: str
    kind: str
    diff: list[str]


@dataclass(frozen=True)
class Check:
    """How the database compares: known variants of later releases are named and are no differences.

    `objects` counts those that are on both sides. What is `unseen` is no difference by itself.
    """

    revision: str
    equal: bool
    objects: int
    variants: list[str]
    not_compared: list[str]
    unseen: list[Unseen]
    differences: list[Difference]


def check(connection: sa.Connection) -> Check:
    """Compare the live catalog with catalog.txt in one REPEATABLE READ, READ ONLY transaction.

    Entered and left outside a transaction. Takes no lock a server could notice; every role that may read
    alembic_version and schema_migrations may run it. Raises UnsuitableDatabase when the database does not
    stand at head, and AdoptionRefused when ledger and schema contradict each other.
    """
    with snapshot(connection):
        _require_head(connection)
        standing = later_releases.find(connection)
        past_triggers = unseen.find(connection)
        expected, found = catalog.expected(), catalog.read(connection)
    compared = expected.keys() & found.keys()
    found, named = later_releases.accept(standing, expected, found)
    not_compared = []
    if standing.products_pipeline:
        not_compared.append("function bodies and comments: they are the product's")
    if standing.beyond:
        not_compared.append(f"the product's tables: its ledger stands at {standing.beyond}")
        expected, found = (
            {name: text for name, text in side.items() if name not in later_releases.PRODUCTS}
            for side in (expected, found)
        )
        compared -= later_releases.PRODUCTS
    differences = list(compare(expected, found))
    return Check(HEAD, not differences, len(compared), named, not_compared, past_triggers, differences)


def compare(expected: Catalog, found: Catalog) -> Iterator[Difference]:
    """Yield the objects that differ, by name; of a missing one only its first line."""
    for name in sorted(expected.keys() | found.keys()):
        before, after = expected.get(name), found.get(name)
        if before == after:
            continue
        if before is None:
            yield Difference(name, UNEXPECTED, [f"+{line}" for line in (after or "").split("\n")])
        elif after is None:
            yield Difference(name, MISSING, [f"-{before.split(chr(10))[0]}"])
        else:
            # The lines of a table are a set: those around a difference say nothing.
            around = 2 if name.startswith("function ") else 0
            lines = difflib.unified_diff(before.split("\n"), after.split("\n"), n=around, lineterm="")
            diff = [line for line in list(lines)[2:] if around or not line.startswith("@@")]
            yield Difference(name, CHANGED, diff)


def _require_head(connection: sa.Connection) -> None:
    found = adoption.look(connection)
    if found.version == HEAD:
        return
    adopted = found.adoption()
    if found.version is None:
        stands = "has no alembic_version" if adopted else "is empty"
    else:
        stands = f"stands at {STEMS[adopted.revision if adopted else found.version]}"
    raise UnsuitableDatabase(
        f"only a database at head, {STEMS[HEAD]}, can be checked; this one {stands}"
        + (f" and would be taken over at {STEMS[adopted.revision]}" if adopted and not found.version else ""),
        hint="alembic upgrade head",
    )
