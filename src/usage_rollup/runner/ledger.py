"""The product's own ledger, schema_migrations: which steps it believes are done.

The product's runner compares file stems, never numbers, and a server is ready only when every stem
it knows is there. So each step of ours writes its stem in the transaction of the step itself. A
database that never had a ledger gets none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script


def stem_of(script: Script) -> str:
    """Return the ledger stem of a revision: the name of its file."""
    return Path(script.path).stem


def add(connection: sa.Connection, stems: Iterable[str]) -> None:
    """Write those `stems` that are missing, in the caller's transaction; the ledger must exist."""
    connection.execute(
        sa.text(
            "INSERT INTO public.schema_migrations (version) SELECT unnest(CAST(:stems AS text[]))"
            " ON CONFLICT DO NOTHING"
        ),
        {"stems": list(stems)},
    )


def record_step(ctx: MigrationContext, step: MigrationInfo, heads: object, run_args: object) -> None:
    """Follow a step in the ledger, where there is one, in the step's own transaction.

    Alembic's on_version_apply callback: runs after the step's SQL and after alembic_version was
    written, before the commit. Stamps are left out: they say nothing about what was done.
    """
    if step.is_stamp:
        return
    assert isinstance(step.up_revision, Script)
    stem = stem_of(step.up_revision)
    change = (
        # A ledger may have lost its key.
        f"INSERT INTO public.schema_migrations (version) SELECT '{stem}' WHERE NOT EXISTS"
        f" (SELECT FROM public.schema_migrations WHERE version = '{stem}') ON CONFLICT DO NOTHING"
        if step.is_upgrade
        else f"DELETE FROM public.schema_migrations WHERE version = '{stem}'"
    )
    # One statement, online and in a script, that does nothing where there is no ledger.
    ctx.execute(
        sa.text(
            "DO $$ BEGIN IF to_regclass('public.schema_migrations') IS NOT NULL THEN"
            f" {change}; END IF; END $$"
        )
    )
