"""Write a script instead of running the steps: what `alembic upgrade --sql` puts around their SQL.

A script is run later, by psql, on a database nobody has looked at. So it pins its session as the runner
pins its own, holds the migration-run lock, checks where the database stands before anything is changed,
and at every step that the step before it was done: it fails closed, also in a client that goes on
after an error.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from alembic.runtime.migration import MigrationContext, MigrationInfo, MigrationStep, RevisionStep

from .. import doors
from ..contract import HEAD, HOURLY_ROLLUP, MIGRATION_RUN
from ..errors import ConfigurationError, UsageRollupError
from ..queries import beside, filled, literal
from ..session import advisory_lock, pinned
from ..session.opening import MINIMUM_VERSION
from ..session.options import Options
from . import adoption, checks, ledger, table_locks
from .course import Course
from .hooks import Hook, Work, before_upgrade

_SQL = beside(__file__)

# Where an empty database stands.
NOTHING = "base"

# Progress is told as INFO, which this lets through.
_QUIET = {"client_min_messages": "warning"}


def output(out: TextIO) -> TextIO:
    """Return where to write a script to `out`: the commands it names are those that work where it is made."""
    return cast("TextIO", _Named(out))


class _Named(io.TextIOBase):
    def __init__(self, out: TextIO) -> None:
        self.out = out

    def write(self, text: str, /) -> int:
        return self.out.write(doors.named(text))

    def flush(self) -> None:
        self.out.flush()


def with_script(work: Work, options: Options) -> Work:
    """Return an upgrade's or downgrade's `work` with what its script needs before and after the steps.

    A hook is the SQL beside it, outside the step's transaction. A script without steps stays empty. Raises
    ConfigurationError for several jobs, which one session of psql has not got.
    """
    if (options.jobs or 1) > 1:
        raise ConfigurationError(
            f"a script has one session and cannot walk with {options.jobs} jobs",
            hint="leave -x jobs, or JOBS in the environment, out",
        )

    def scripted_work(heads: Any, context: MigrationContext) -> Iterator[MigrationStep]:
        steps = [step for step in work(heads, context) if isinstance(step, RevisionStep)]
        if not steps:
            return
        hooks = [before_upgrade(step) for step in steps]
        before = [hook_sql(hook) if hook else None for hook in hooks]
        write = context.impl.static_output
        start = max(heads, default=NOTHING)
        write(_session(options))
        command = "upgrade" if steps[0].is_upgrade else "downgrade"
        target = "head" if steps[0].is_upgrade else max(steps[-1].to_revisions, default=NOTHING)
        taken = tuple(step.revision.revision for step in steps)
        write(
            _begin(
                start,
                target,
                Course(command, taken, options.keep_legacy, version_table=options.version_table),
            )
        )
        for text, step in zip(before, steps, strict=True):
            if text:
                write(text)
            yield step
        write(filled(_SQL["end"], run=str(MIGRATION_RUN), rollup=str(HOURLY_ROLLUP)) + ";")

    return scripted_work


def record_step(ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], run_args: object) -> None:
    """Follow a step in the ledger, then insist that alembic_version shows it; in the step's transaction.

    Alembic's UPDATE of a row that is not there changes nothing and fails nothing.
    """
    ledger.record_step(ctx, step, heads, run_args)
    if not step.is_stamp:
        version = literal(max(heads)) if heads else "NULL"
        assert ctx.impl is not None
        ctx.impl.static_output(
            filled(_SQL["step_done"], version=version, version_table=ctx.version_table) + ";"
        )


def hook_sql(hook: Hook) -> str:
    """Return what does in a script what `hook` does: the .sql file of the same name beside its module.

    The module's IN_SCRIPT closes the gaps of that text. Raises UsageRollupError when there is no such file:
    a script without its hook would be another upgrade.
    """
    source = Path(inspect.getsourcefile(hook) or "")
    file = source.with_suffix(".sql")
    if not file.is_file():
        raise UsageRollupError(
            f"no script can be written: {source.name} has a hook, and no {file.name} beside it does the same",
            hint="run `alembic upgrade head` connected to the database",
        )
    gaps: dict[str, str] = getattr(inspect.getmodule(hook), "IN_SCRIPT", {})
    return filled(file.read_text("utf-8").rstrip(), **gaps)


def _session(options: Options) -> str:
    """Return statements that pin a session as the runner pins its own, and take the migration-run lock.

    To be run outside a transaction.
    """
    settings = {**pinned.SETTINGS, **_QUIET, **options.settings()}
    text = filled(
        _SQL["session"],
        minimum0000=f"{MINIMUM_VERSION}0000",
        minimum=str(MINIMUM_VERSION),
        settings=",\n".join(f"({literal(name)}, {literal(value)})" for name, value in settings.items()),
        take_lock=advisory_lock.in_script(MIGRATION_RUN),
    )
    return f"{text};"


def _begin(start: str, target: str, course: Course) -> str:
    """Return a transaction that fails unless the database stands at revision `start`, and adopts it there.

    What the runner refuses for `course`, which goes to `target`, is refused in the same words.
    """
    gaps = {
        "start": literal(start),
        "command": literal(course.command),
        "target": literal(target),
        "head": literal(HEAD),
        "ground": checks.query(course, *checks.GROUND),
        "checks": checks.query(course, *checks.CONCERNS),
        "refuse": f"{_SQL['refuse']};",
        "version_table": course.version_table,
        "constraint": f"{course.version_table}_pkc",
    }
    statements = [
        filled(_SQL["ground"], **gaps),
        # Alembic makes its table with the first step.
        *([] if start == NOTHING else [filled(_SQL["version_table"], **gaps)]),
        adoption.statement(to_nothing=course.command == "downgrade" and target == NOTHING),
        filled(_SQL["begin"], **gaps),
        *([] if course.command != "upgrade" else _adopt(gaps, course.version_table)),
    ]
    return "\n\n".join(f"{statement};" for statement in ("BEGIN", *statements, "COMMIT"))


def _adopt(gaps: dict[str, str], version_table: str) -> list[str]:
    lock_tables = table_locks.statement({}, table_locks.ledgers(version_table))
    return [lock_tables, filled(_SQL["adopt"], **gaps)]
