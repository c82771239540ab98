"""Find out where a database stands, also one that the product's own runner has migrated.

adoption.sql decides, by alembic_version, ledger and catalog together; a script embeds the same text. Nothing
here writes, but the step that records an adoption.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationStep

from ..contract import (
    BASELINE,
    BUILT_BY_THE_WALK,
    HOURLY,
    LAST_SHARED,
    LEGACY,
    NEXT_STEM,
    OURS,
    PIPELINE,
    RUNTIME_TIMEZONE,
    STEMS,
    USER_TIMEZONE,
)
from ..errors import AdoptionRefused, Refusal
from ..queries import array, beside, filled, literal
from ..session import blockers
from ..session.options import Options
from . import ledger, table_locks
from .hooks import Work, before_adoption

log = logging.getLogger(__name__)

_SQL = beside(__file__)

# What to do where the table belongs to somebody else.
ANOTHER_TABLE = (
    "keep the revision in a table of its own name: VERSION_TABLE=usage_rollup_version in the environment,"
    " or alembic -x version-table=usage_rollup_version"
)

# The catalog, one name a row, in the words of contract.py.
OBJECTS = _SQL["objects"]


@dataclass(frozen=True)
class Adoption:
    """The revision a database is taken over at, ledger stems to complete, and why, in one line."""

    revision: str
    missing_stems: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Standing:
    """Where a database stands: what alembic_version says, and where an upgrade goes on from (None: nothing).

    `reason` is the line that tells why those two differ, when they do; `shown` the revision that ledger and
    catalog show; `has_pipeline` whether the hourly tick is there. What was refused is raised by who asks.
    """

    version: str | None
    start: str | None
    missing_stems: tuple[str, ...]
    reason: str | None
    shown: str
    has_pipeline: bool
    stems: frozenset[str] | None
    refusals: tuple[tuple[str, Refusal], ...]

    def adoption(self) -> Adoption | None:
        """Return where to take the database over, None when alembic_version stands as it is.

        An empty database and one without a ledger that this chain has already migrated stand as they are.
        Raises AdoptionRefused, naming what is missing, when the chain cannot go on from here.
        """
        if refusal := self._refusal("upgrade"):
            raise AdoptionRefused(refusal)
        if self.start is None or self.reason is None:
            return None
        return Adoption(self.start, self.missing_stems, self.reason)

    def ledger(self) -> frozenset[str] | None:
        """Return the stems in schema_migrations, None where there is no such table.

        Raises AdoptionRefused for a table of that name which another tool made.
        """
        if refusal := self._refusal("ledger"):
            raise AdoptionRefused(refusal)
        return self.stems

    def refused(self, about: str) -> list[Refusal]:
        """Return why an `upgrade`, a `downgrade` or the way to `base` is refused: of several, the first."""
        return [refusal for what, refusal in self.refusals if what == about][:1]

    def _refusal(self, about: str) -> Refusal | None:
        return next(iter(self.refused(about)), None)


def look(connection: sa.Connection, *, to_nothing: bool = False) -> Standing:
    """Read where the database stands: two statements in the caller's transaction, or each by itself.

    They only read, and take no lock a server could notice. `to_nothing` looks at the rows of the product's
    tables besides, for require_way_back().
    """
    connection.exec_driver_sql(statement(to_nothing=to_nothing), execution_options={"no_parameters": True})
    found = connection.scalar(sa.text("SELECT current_setting('usage_rollup.standing')"))
    return standing(json.loads(found))


def with_adoption(work: Work, adoption: Adoption | None, connection: sa.Connection, options: Options) -> Work:
    """Return `work` preceded by the step that records `adoption`, in one transaction of its own.

    Before it go the hooks of the revisions that are skipped by it.
    """
    if adoption is None:
        return work
    log.info("%s", adoption.reason)

    def adopt(**_: Any) -> None:
        table_locks.lock_tables(connection, {}, table_locks.ledgers(options.version_table))
        if adoption.missing_stems:
            ledger.add(connection, adoption.missing_stems)

    def adopted_work(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        script = context.script
        assert script is not None
        before_adoption(script, adoption.revision, heads, connection, options)
        # Alembic's own `stamp` is made of it; tests/runner/test_alembic.py holds what is relied on.
        for step in script._stamp_revs(adoption.revision, heads):
            step.migration_fn = adopt
            yield step
        yield from work((adoption.revision,), context)

    return adopted_work


def statement(*, to_nothing: bool) -> str:
    """Return the statement that leaves its answer in the setting usage_rollup.standing."""
    return filled(
        _SQL["standing"],
        product=array(BASELINE.columns),
        objects=OBJECTS,
        to_nothing="true" if to_nothing else "false",
        decision=decision(),
        name_the_holder=blockers.in_script("'begin again'"),
    )


@cache
def decision() -> str:
    """Return the query that decides, by what was seen: v_version, v_ledger, v_objects and two more."""
    return filled(
        _SQL["decision"],
        head=literal(LAST_SHARED),
        head_stem=literal(STEMS[LAST_SHARED]),
        next_stem=literal(NEXT_STEM),
        stems=array(stem for revision, stem in STEMS.items() if revision <= LAST_SHARED),
        baseline=array(sorted(BASELINE.names())),
        baseline_tables=array(sorted(BASELINE.tables())),
        hourly=array(sorted(HOURLY.names())),
        built_by_the_walk=array(f"index {name}" for name in BUILT_BY_THE_WALK.split()),
        legacy=array(sorted(LEGACY.names())),
        legacy_tables=array(sorted(LEGACY.tables())),
        pipeline=literal(PIPELINE),
        pipeline_stem=literal(STEMS["102"]),
        user_timezone=literal(USER_TIMEZONE),
        runtime_timezone=literal(RUNTIME_TIMEZONE),
        our_functions=literal(OURS),
        another_table=ANOTHER_TABLE,
    )


def standing(row: dict[str, Any]) -> Standing:
    """Return a row of the decision as a value."""
    return Standing(
        version=row["version"],
        start=row["start"],
        missing_stems=tuple(row["missing_stems"]),
        reason=row["reason"],
        shown=row["shown"],
        has_pipeline=row["has_pipeline"],
        stems=None if row["ledger"] is None else frozenset(row["ledger"]),
        refusals=tuple((r["about"], Refusal(r["message"], hint=r["hint"])) for r in row["refusals"]),
    )
