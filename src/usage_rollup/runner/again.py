"""Let a command's work be done again: when its session is lost, it begins anew in another one.

What Alembic hands over as its work function was written to be called once. A target may be relative to where
the database stood, a report is printed while it is made, and what autogenerate finds is collected.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep

from .hooks import Work


def repeatable(work: Work) -> Work:
    """Return `work` so that each further call goes on from wherever the database stands by then.

    An upgrade or downgrade goes to the revision that its first call led to: `+1` is one step, however often
    its session is lost. A command that prints does so once. Every other is as it was.
    """
    name: str = getattr(work, "__name__", "")
    if name in {"upgrade", "downgrade"}:
        return _to_one_revision(work, name)
    if name == "retrieve_migrations":
        return _from_an_empty_revision(work)
    return work if name in {"do_stamp", "do_ensure_version"} else _once(work)


def _to_one_revision(work: Work, name: str) -> Work:
    target: str | None = None

    @functools.wraps(work)
    def to_target(heads: Any, context: MigrationContext) -> Iterable[MigrationStep]:
        nonlocal target
        script = context.script
        assert script is not None
        if target is not None:
            return (
                script._upgrade_revs(target, heads)
                if name == "upgrade"
                else script._downgrade_revs(target, heads)
            )
        steps = [step for step in work(heads, context) if isinstance(step, RevisionStep)]
        reached = steps[-1].to_revisions if steps else heads
        target = max(reached, default="base")
        return steps

    return to_target


def _once(work: Work) -> Work:
    done = False

    @functools.wraps(work)
    def unless_done(heads: Any, context: MigrationContext) -> Iterable[MigrationStep]:
        nonlocal done
        if done:
            return ()
        steps = list(work(heads, context))
        done = True
        return steps

    return unless_done


def _from_an_empty_revision(work: Work) -> Work:
    @functools.wraps(work)
    def collect(heads: Any, context: MigrationContext) -> Iterable[MigrationStep]:
        found = context.opts["revision_context"]
        found.generated_revisions = [found._default_revision()]
        return work(heads, context)

    return collect
