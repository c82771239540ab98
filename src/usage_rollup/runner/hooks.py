"""Run what a revision asks for before its upgrade, or before it is adopted: Alembic has no such hooks.

A revision module declares `before_upgrade = <function of a session and the run's options>`, and
`before_adoption` likewise for a database that another runner took past it. Alembic iterates its work
function lazily and runs each step in a transaction of its own (transaction_per_migration), so code between
two steps runs after the previous one has committed and before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory

from .. import account
from ..session import advisory_lock, outages
from ..session.connection import alone
from ..session.options import Options

Work = Callable[[Any, MigrationContext], Iterable[MigrationStep]]
Hook = Callable[[sa.Connection, Options], object]


def with_hooks(work: Work, session: sa.Connection, options: Options) -> Work:
    """Return `work` with every revision's before_upgrade run just before its upgrade.

    Only for upgrade steps, every time one is about to be applied. The hook gets the migrating session
    outside a transaction, each of its statements commits by itself, and when it raises, the revision is
    not applied. Every step, up, down or stamp, begins by making sure that the session holds its locks.
    """

    def work_with_hooks(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        outages.reached(session, tuple(heads))
        for step in work(heads, context):
            if hook := before_upgrade(step):
                _run(hook, session, options)
            step.migration_fn = _locked(step, session)
            yield step

    return work_with_hooks


def _locked(step: MigrationStep, session: sa.Connection) -> Callable[..., Any]:
    migrate = step.migration_fn

    # Alembic logs a step by the name of its function.
    @wraps(migrate)
    def migrate_locked(**arguments: Any) -> None:
        advisory_lock.require_held(session)
        with account.phase(step.revision.revision) if isinstance(step, RevisionStep) else nullcontext():
            migrate(**arguments)

    return migrate_locked


def before_upgrade(step: MigrationStep) -> Hook | None:
    """Return the hook that `step` must wait for: a revision's own, and only on its upgrade."""
    if not isinstance(step, RevisionStep) or not step.is_upgrade:
        return None
    hook: Hook | None = getattr(step.revision.module, "before_upgrade", None)
    return hook


def before_adoption(
    script: ScriptDirectory, revision: str, heads: Sequence[str], session: sa.Connection, options: Options
) -> None:
    """Run the before_adoption of every revision above `heads` that somebody else applied, up to `revision`.

    On the terms of before_upgrade. What they do comes before the adoption is recorded: a run that is killed
    meanwhile is followed by one that adopts, and does it, again.
    """
    adopted = [*script.iterate_revisions(revision, tuple(heads) or "base")]
    for step in reversed(adopted):
        if hook := getattr(step.module, "before_adoption", None):
            _run(hook, session, options)


def _run(hook: Hook, session: sa.Connection, options: Options) -> None:
    # Reading alembic_version opened a transaction when nothing has been applied yet.
    with alone(session):
        hook(session, options)
