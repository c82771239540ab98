"""Refuse a downgrade that could not be finished, or that others stand on, before anything is undone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep

from ..contract import BASELINE, NEXT_STEM, OUR_FUNCTIONS
from ..errors import DowngradeRefused
from . import ledger
from .hooks import Work


def with_refusals(work: Work, connection: sa.Connection) -> Work:
    """Return a downgrade's `work` preceded by require_possible(), when there is anything to undo.

    That reads in the transaction in which Alembic read alembic_version, which the first step goes on with.
    """

    def checked_work(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        steps = list(work(heads, context))
        if steps:
            to_nothing = any(isinstance(s, RevisionStep) and s.revision.down_revision is None for s in steps)
            require_possible(connection, to_nothing=to_nothing)
        yield from steps

    return checked_work


def require_possible(connection: sa.Connection, *, to_nothing: bool) -> None:
    """Refuse a way back, `to_nothing` or to a revision, that could not or must not be finished.

    Reads in the caller's transaction, holding the migration-run lock. Raises DowngradeRefused.
    """
    stems = ledger.read(connection)
    newest = max(stems or [""])
    if newest > NEXT_STEM:
        raise DowngradeRefused(
            f"refusing to downgrade: the product's own runner has gone on to {newest}, and its later steps"
            " stand on this schema",
            hint="to go back, restore a backup taken before the upgrade; to stay, alembic upgrade head",
        )
    if connection.scalar(sa.text(_PIPED)) and not connection.scalar(sa.text(f"SELECT {OUR_FUNCTIONS}")):
        raise DowngradeRefused(
            "refusing to downgrade: the functions of the hourly rollup here are the product's own, not those"
            " of this chain",
            hint="at 101, `alembic upgrade 102` replaces them with some that can be undone; later, restore a"
            " backup taken before the upgrade",
        )
    if not to_nothing:
        return
    refusal = "refusing to remove the v0.3.4 baseline:"
    hint = "v0.3.4 itself is `alembic downgrade 097`; to discard the data, drop the whole database instead"
    if stems is not None:
        raise DowngradeRefused(
            f"{refusal} the product's own runner made this database, its ledger schema_migrations exists",
            hint=hint,
        )
    if filled := _filled(connection):
        raise DowngradeRefused(f"{refusal} these tables hold rows: {', '.join(filled)}", hint=hint)


def _filled(connection: sa.Connection) -> list[str]:
    """Return the product tables that hold a row."""
    existing = connection.scalars(
        sa.text(
            "SELECT t FROM unnest(CAST(:tables AS text[])) AS t"
            " WHERE to_regclass(format('public.%I', t)) IS NOT NULL"
        ),
        {"tables": list(BASELINE.columns)},
    ).all()
    return [
        table
        for table in existing
        if connection.scalar(sa.text(f'SELECT EXISTS (SELECT FROM public."{table}")'))
    ]


_PIPED = "SELECT to_regprocedure('public.rollup_task_usage_hourly()') IS NOT NULL"
