"""Refuse a downgrade that could not be finished, or that others stand on, before anything is undone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep

from . import adoption
from .hooks import Work


def with_refusals(work: Work, connection: sa.Connection) -> Work:
    """Return a downgrade's `work` preceded by a look at the database, when there is anything to undo.

    That reads in the transaction in which Alembic read alembic_version, which the first step goes on with.
    Raises DowngradeRefused.
    """

    def checked_work(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        steps = list(work(heads, context))
        if steps:
            to_nothing = any(isinstance(s, RevisionStep) and s.revision.down_revision is None for s in steps)
            adoption.look(connection, to_nothing=to_nothing).require_way_back(to_nothing=to_nothing)
        yield from steps

    return checked_work
