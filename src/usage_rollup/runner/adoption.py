"""Find out where a database stands that the product's own runner has migrated.

Ledger and catalog are read together, because the Go runner writes its ledger row in a transaction
after the step's: a crash leaves the schema one step ahead. Nothing here writes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationStep

from ..contract import (
    BASELINE,
    HEAD,
    HOURLY,
    LEGACY,
    PIPELINE,
    RUNTIME_TIMEZONE,
    STEMS,
    USER_TIMEZONE,
)
from ..errors import AdoptionRefused
from . import ledger
from .hooks import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adoption:
    """The revision a database is taken over at, ledger stems to complete, and why, in one line."""

    revision: str
    missing_stems: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Found:
    """What was read: our revision, ledger stems (None: no ledger), the catalog as `<kind> <name>`."""

    current: str | None
    stems: frozenset[str] | None
    objects: frozenset[str]


def find(connection: sa.Connection) -> Adoption | None:
    """Decide where an upgrade starts, say so in one line if that is news, and change nothing.

    Call it while holding the migration-run lock. Raises AdoptionRefused.
    """
    adoption = decide(read(connection))
    if adoption is not None:
        log.info("%s", adoption.reason)
    return adoption


def read(connection: sa.Connection) -> Found:
    """Read alembic_version, ledger and catalog; at the newest revision there is nothing to look for."""
    current = None
    if connection.scalar(sa.text("SELECT to_regclass('public.alembic_version') IS NOT NULL")):
        current = connection.scalar(sa.text("SELECT max(version_num) FROM public.alembic_version"))
    if current == HEAD:
        return Found(current, None, frozenset())
    return Found(current, ledger.read(connection), frozenset(connection.scalars(sa.text(OBJECTS))))


def decide(found: Found) -> Adoption | None:
    """Return where to take the database over, None when alembic_version stands as it is.

    An empty database and one without a ledger that this chain has already migrated stand as they
    are. Raises AdoptionRefused, naming what is missing, when the chain cannot go on from here.
    """
    if found.stems is None:
        has_tables = any(name.startswith("table ") for name in found.objects)
        if found.current is not None or not has_tables:
            return None
        raise AdoptionRefused(
            "this database holds tables but no ledger (schema_migrations) and no alembic_version,"
            " so nothing says which product release made it",
            hint="start the product's release v0.3.4 on it once, or point DATABASE_URL at the right database",
        )
    try:
        position = _position(found.stems, found.objects)
    except AdoptionRefused:
        if found.current is None:
            raise
        # Nothing to skip: the chain's own steps and 103's guard say what is wrong.
        return None
    if found.current is None:
        _require_objects(found.objects, position)
    elif position <= found.current:
        return None
    missing = tuple(
        stem for revision, stem in STEMS.items() if revision <= position and stem not in found.stems
    )
    ahead = f"; the schema is ahead of it by {missing[0]}" if missing else ""
    return Adoption(
        position,
        missing,
        f"adopting a database of the product's own runner at {STEMS[position]}"
        f" ({len(found.stems)} rows in its ledger{ahead})",
    )


def with_adoption(work: Work, adoption: Adoption | None, connection: sa.Connection) -> Work:
    """Return `work` preceded by the step that records `adoption`, in one transaction of its own."""
    if adoption is None:
        return work

    def adopt(**_: Any) -> None:
        if adoption.missing_stems:
            ledger.add(connection, adoption.missing_stems)

    def adopted_work(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        script = context.script
        assert script is not None
        for step in script._stamp_revs(adoption.revision, heads):
            step.migration_fn = adopt
            yield step
        yield from work((adoption.revision,), context)

    return adopted_work


def _position(stems: frozenset[str], objects: frozenset[str]) -> str:
    """Return the revision to go on from, by ledger and catalog; refuse what contradicts itself."""
    recorded = [revision for revision, stem in STEMS.items() if stem in stems]
    if not BASELINE.tables() & objects:
        raise AdoptionRefused(
            "this is not the product's database: it holds a schema_migrations table and none of the"
            " product's tables",
            hint="point DATABASE_URL at the right database",
        )
    if "097" not in recorded:
        _refuse_older(objects)
    newest = max(stems)
    if newest >= STEMS["104"]:
        # Later releases changed more of the schema than this chain knows; only the ledger counts.
        _refuse_gap([r for r in STEMS if r not in recorded], newest)
        return "104"

    piped = "102" in recorded or PIPELINE in objects
    dropped = piped and not LEGACY.tables() & objects
    done = {
        "097": True,
        "100": USER_TIMEZONE in objects,
        "101": HOURLY.names() <= objects,
        "102": piped,
        "103": dropped,
        "104": dropped and RUNTIME_TIMEZONE not in objects,
    }
    position = [revision for revision in STEMS if done[revision]][-1]
    _refuse_gap([r for r in STEMS if r < position and not done[r]], STEMS[position])
    if undone := [revision for revision in recorded if not done[revision]]:
        raise AdoptionRefused(
            f"the ledger records {STEMS[undone[0]]}, but the schema does not show it:"
            f" {_evidence(undone[0], objects)}",
            hint="restore what is named above, or, if the step was undone on purpose, delete its"
            " row from schema_migrations",
        )
    # A crash of the Go runner leaves its last step unrecorded, and no other.
    _refuse_gap([r for r in STEMS if r < position and r not in recorded], STEMS[position])
    # The functions of the Go release's 102 count for nothing: ours replace them.
    return "101" if position == "102" else position


def _require_objects(objects: frozenset[str], position: str) -> None:
    """Refuse a database in which something of the v0.3.4 baseline is missing, and name it."""
    if position == "104":
        return
    required = BASELINE.names() | (LEGACY.names() if position < "103" else frozenset())
    if missing := sorted(required - objects):
        raise AdoptionRefused(
            f"this database is not a complete v0.3.4: missing {_some(missing)}",
            hint="upgrade the product to v0.3.4 first, then run this again",
        )


def _refuse_older(objects: frozenset[str]) -> NoReturn:
    missing = sorted((BASELINE.names() | LEGACY.names()) - objects)
    raise AdoptionRefused(
        f"this database is older than v0.3.4: its ledger lacks {STEMS['097']}"
        + (f", its schema {_some(missing)}" if missing else ""),
        hint="upgrade the product to v0.3.4 first, then run this again",
    )


def _refuse_gap(revisions: list[str], although: str) -> None:
    if revisions:
        raise AdoptionRefused(
            f"a step is missing in the middle: {', '.join(STEMS[r] for r in revisions)}"
            f" is not recorded or not done, although {although} is",
            hint="restore the database from a backup taken before the steps were mixed up",
        )


def _evidence(revision: str, objects: frozenset[str]) -> str:
    if revision == "100":
        return f"missing {USER_TIMEZONE}"
    if revision == "101":
        return f"missing {_some(sorted(HOURLY.names() - objects))}"
    return f"still there: {_some(sorted(LEGACY.tables() & objects))}"


def _some(names: list[str], limit: int = 8) -> str:
    # A missing table says enough about its columns.
    tables = [name for name in names if name.startswith("table ")]
    columns = tuple(f"column {name.removeprefix('table ')}." for name in tables)
    rest = [n for n in names if n not in tables and not (columns and n.startswith(columns))]
    names = tables + rest
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


# The catalog, one name a row, in the words of inventory.py. Objects of extensions are not the product's.
OBJECTS = """
WITH relations AS (
    SELECT c.oid, c.relname FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
        AND c.relname <> 'alembic_version'
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
)
SELECT 'table ' || relname FROM relations
UNION ALL
SELECT 'column ' || r.relname || '.' || a.attname FROM relations r
JOIN pg_attribute a ON a.attrelid = r.oid WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'trigger ' || r.relname || '.' || t.tgname FROM relations r
JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL
SELECT 'index ' || i.relname FROM relations r
JOIN pg_index x ON x.indrelid = r.oid JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indisvalid
UNION ALL
SELECT DISTINCT 'function ' || p.proname FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace
"""
