"""Run what a revision asks for before its upgrade: Alembic has no such hook of its own.

A revision module declares `before_upgrade = <function of a session and the run's options>`. Alembic
iterates its work function lazily and runs each step in a transaction of its own
(transaction_per_migration), so code between two steps runs after the previous one has committed and before
the next begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep

from ..session.connection import alone
from ..session.options import Options

Work = Callable[[Any, MigrationContext], Iterable[MigrationStep]]
Hook = Callable[[sa.Connection, Options], object]


def with_hooks(work: Work, session: sa.Connection, options: Options) -> Work:
    """Return `work` with every revision's before_upgrade run just before its upgrade.

    Only for upgrade steps, every time one is about to be applied. The hook gets the migrating session
    outside a transaction, each of its statements commits by itself, and when it raises, the revision is
    not applied.
    """

    def work_with_hooks(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        for step in work(heads, context):
            hook = before_upgrade(step)
            if hook is not None:
                # Reading alembic_version opened a transaction when this is the first step.
                with alone(session):
                    hook(session, options)
            yield step

    return work_with_hooks


def before_upgrade(step: MigrationStep) -> Hook | None:
    """Return the hook that `step` must wait for: a revision's own, and only on its upgrade."""
    if not isinstance(step, RevisionStep) or not step.is_upgrade:
        return None
    hook: Hook | None = getattr(step.revision.module, "before_upgrade", None)
    return hook
