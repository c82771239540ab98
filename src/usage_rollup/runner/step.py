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
    session's own role is back afterwards. First of all come the table locks `lock`, under lock_tables()'s
    terms. A part is one multi-statement string: nothing in it is a bind parameter. Raises LockBusy, or
    StatementFailed with PostgreSQL's message, detail, hint and, where it gives a position, the line.
    """
    versions = Path(revision_file).parent
    files = [*(versions / name for name in first), *revisions.sql_files(revision_file, direction)]
    if op.get_context().as_sql:
        _write_script(files, lock or {})
        return
    connection = op.get_bind()
    connection.exec_driver_sql(_BECOME_OWNER)
    if lock:
        table_locks.lock_tables(connection, lock)
    for file in files:
        sql = file.read_text("utf-8")
        try:
            connection.exec_driver_sql(sql, execution_options={"no_parameters": True})
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.Error):
                name = str(file.relative_to(versions))
                raise StatementFailed.of(error.orig, doing=name, sql=sql) from error
            raise
    connection.exec_driver_sql("RESET ROLE")


def _write_script(files: Sequence[Path], lock: Locks) -> None:
    # Past SQLAlchemy's compiler, to which a colon is a bind parameter.
    impl = op.get_context().impl
    for statement in (
        f"{_BECOME_OWNER};",
        *([f"{table_locks.statement(lock)};"] if lock else []),
        *(file.read_text("utf-8").rstrip() for file in files),
        "RESET ROLE;",
    ):
        impl.static_output(statement)


# NULL, on an empty database, resets the role to the session's own.
_BECOME_OWNER = (
    "SELECT set_config('role', (SELECT pg_get_userbyid(relowner) FROM pg_class"
    " WHERE oid = to_regclass('public.task_usage')), true)"
)
