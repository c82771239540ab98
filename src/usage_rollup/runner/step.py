"""What a revision's upgrade() and downgrade() are made of: table locks, then its SQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psycopg
from sqlalchemy.exc import DBAPIError

from alembic import op

from .. import revisions
from ..errors import StatementFailed
from . import table_locks
from .table_locks import Locks


def apply_sql(
    revision_file: str, direction: str, *, lock: Locks | None = None, first: Sequence[str] = ()
) -> None:
    """Run what revisions.sql_files() finds beside `revision_file` in the step's transaction, part after part.

    `first` are other revisions' parts that come before, by their paths from versions/. All run as the owner
    of task_usage, where there is one, so that new objects belong to the product's role whoever migrates; the
    session's own role is back afterwards. First of all come the table locks `lock` and those of the two
    ledgers, under lock_tables()'s terms. A part is one multi-statement string: nothing in it is a bind
    parameter. Raises LockBusy, or StatementFailed with PostgreSQL's message, detail, hint and, where it gives
    a position, the line.
    """
    versions = Path(revision_file).parent
    files = [*(versions / name for name in first), *revisions.sql_files(revision_file, direction)]
    context = op.get_context()
    # By the session's own role, who writes the ledgers and has every right of the owner.
    recorded_in = table_locks.ledgers(context.version_table)
    if context.as_sql:
        _write_script(files, table_locks.statement(lock or {}, recorded_in))
        return
    connection = op.get_bind()
    table_locks.lock_tables(connection, lock or {}, recorded_in)
    connection.exec_driver_sql(_BECOME_OWNER)
    for file in files:
        sql = file.read_text("utf-8")
        try:
            connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
        except DBAPIError as error:
            # Who held a lock can be asked only when this transaction is over.
            if isinstance(error.orig, psycopg.Error) and not isinstance(
                error.orig, psycopg.errors.LockNotAvailable
            ):
                name = str(file.relative_to(versions))
                raise StatementFailed.of(error.orig, doing=name, sql=sql) from error
            raise
    connection.exec_driver_sql(_BECOME_ONESELF)


def _write_script(files: Sequence[Path], lock_tables: str) -> None:
    # Past SQLAlchemy's compiler, to which a colon is a bind parameter.
    impl = op.get_context().impl
    for statement in (
        f"{lock_tables};",
        f"{_BECOME_OWNER};",
        *(file.read_text("utf-8").rstrip() for file in files),
        f"{_BECOME_ONESELF};",
    ):
        impl.static_output(statement)


# A login may have switched its role at once (ALTER ROLE ... SET role), so it is remembered who began.
_BECOME_OWNER = """\
SELECT pg_catalog.set_config('usage_rollup.began_as', current_user, true),
    pg_catalog.set_config('role', COALESCE((
        SELECT pg_catalog.pg_get_userbyid(c.relowner) FROM pg_catalog.pg_class AS c
        WHERE c.oid = pg_catalog.to_regclass('public.task_usage')), current_user), true)"""
_BECOME_ONESELF = (
    "SELECT pg_catalog.set_config('role', pg_catalog.current_setting('usage_rollup.began_as'), true)"
)
