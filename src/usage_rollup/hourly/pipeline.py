"""Whose hourly pipeline is installed here, and the reading half of ours for where it is not.

Before 102, and past 104 where the product's own runner installed its pipeline, the functions that
compare, count and plan are missing. They are lent: made in pg_temp from the text of the revision itself,
so that there is one definition of what the rollup should hold; they end with the session.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import sqlalchemy as sa

from .. import revisions
from ..contract import OUR_FUNCTIONS
from ..errors import Refusal, UnsuitableDatabase
from ..queries import beside
from ..session import pinned
from ..session.connection import transaction

_SQL = beside(__file__)

# The parts of 102 that only read, and the private tables that these read: empty where the pipeline is not
# ours. All else that they read is the product's, or one of 101's tables.
PARTS = ("10_tables", "20_expected", "25_differences", "30_clock", "35_slices")

_CREATED = re.compile(r"^CREATE (?:TABLE IF NOT EXISTS|OR REPLACE FUNCTION) public\.(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Pipeline:
    """What is installed: 101's three `tables`, a window and a tick to call, `ours` when the window is 102's.

    `readable` when the functions of our 102 that only read are in public, which they still are where a later
    release has replaced the window.
    """

    tables: bool
    installed: bool
    ours: bool
    readable: bool


class NoHourlyRollup(UnsuitableDatabase):
    """The hourly rollup is not in this database; commands say what its own next step is."""


def find(session: sa.Connection) -> Pipeline:
    """Say what is installed in this database; one look at the catalog."""
    return Pipeline(**session.execute(sa.text(_FIND)).mappings().one())


def require(session: sa.Connection, *, window: bool = True) -> Pipeline:
    """Return find(); raise NoHourlyRollup without tables of 101 or, if needed, without a `window`."""
    found = find(session)
    if not (found.tables and (found.installed or not window)):
        raise NoHourlyRollup(
            "there is no hourly rollup in this database",
            hint="run `alembic upgrade 102` first if it is one of v0.3.4, which may keep running;"
            " `usage-rollup status` says what is next for any other",
        )
    return found


@dataclass(frozen=True)
class Reading:
    """The reading half of 102: in public, or lent to this session."""

    lent: bool

    def sql(self, text: str) -> sa.TextClause:
        """Return a statement that names what 102 makes in public, taken to where it is here."""
        return sa.text(_in_temp(text, _lent_names()) if self.lent else text)


def cannot_lend(session: sa.Connection) -> Refusal | None:
    """Say why the reading half of 102 cannot be lent to this session; None where it can, or is in public."""
    if find(session).readable:
        return None
    asked = session.execute(sa.text(_MAY_LEND)).one()
    if asked.may_lend and not asked.standby:
        return None
    what = "the functions that compare and count usage are not in this database"
    if asked.standby:
        return Refusal(f"{what}, and a standby takes none", hint="ask the primary")
    return Refusal(
        f"{what}, and role {asked.role} may not make temporary ones",
        hint=f"GRANT TEMPORARY ON DATABASE {asked.quoted_database} TO {asked.quoted_role}",
    )


def reading(session: sa.Connection) -> Reading:
    """Return where the reading half of 102 is, after lending it to this session where it is missing.

    Entered and left outside a transaction. Raises UnsuitableDatabase for what cannot_lend() says.
    """
    if find(session).readable:
        return Reading(lent=False)
    if refusal := cannot_lend(session):
        raise UnsuitableDatabase(refusal)
    with transaction(session):
        lend(session, _lent_parts())
    return Reading(lent=True)


def lend(session: sa.Connection, parts: Sequence[str]) -> None:
    """Make in pg_temp all that the SQL texts `parts` make in public, in the caller's transaction.

    Raises AssertionError when a part makes or alters anything else, or in a way that is not recognised: a
    fault of this project, which the end of the transaction undoes.
    """
    names = _created(parts)
    # Whatever the role's default; a body may name what this database has not got, and nobody calls it then.
    session.exec_driver_sql("SET TRANSACTION READ WRITE")
    session.exec_driver_sql("SET LOCAL check_function_bodies = off")
    for part in parts:
        # A parallel worker sees no temporary table.
        text = _in_temp(part, names).replace("PARALLEL SAFE", "PARALLEL RESTRICTED")
        session.exec_driver_sql(text, execution_options={"no_parameters": True})
    if wrong := session.scalars(sa.text(_WRONGLY_LENT), {"names": sorted(names)}).all():
        raise AssertionError(f"the reading half of 102 cannot be lent: {', '.join(wrong)}")


@contextmanager
def in_reach_of_public(session: sa.Connection) -> Iterator[None]:
    """Let the block, a part of the caller's transaction, call functions of the product.

    Those look names up in search_path, so public is on it, behind pg_catalog; when the block raises, the
    end of the transaction takes it off again. Raises UnsuitableDatabase where somebody whom the product
    need not trust has put a function or operator into public that might be called in another's place.
    """
    if planted := session.scalar(sa.text(_SQL["planted"])):
        raise UnsuitableDatabase(
            f"the product's functions look names up in schema public, where others have put: {planted}",
            hint="have a look at these and drop them, or give them to a superuser;"
            " REVOKE CREATE ON SCHEMA public FROM PUBLIC keeps new ones out",
        )
    session.execute(sa.text("SELECT set_config('search_path', 'pg_catalog, public, pg_temp', true)"))
    yield
    session.execute(sa.text(f"SELECT set_config('search_path', '{pinned.SETTINGS['search_path']}', true)"))


@cache
def _lent_parts() -> tuple[str, ...]:
    files = revisions.sql_files(revisions.scripts().get_revision("102").path, "up")
    texts = {file.stem: file.read_text("utf-8") for file in files}
    return tuple(texts[name] for name in PARTS)


@cache
def _lent_names() -> frozenset[str]:
    return _created(_lent_parts())


def _created(parts: Sequence[str]) -> frozenset[str]:
    return frozenset(name for part in parts for name in _CREATED.findall(part))


def _in_temp(text: str, names: Collection[str]) -> str:
    """Return `text` with every public.<name> of `names`, whole names only, as pg_temp.<name>."""
    return re.sub(
        r"\bpublic\.(\w+)", lambda found: f"pg_temp.{found[1]}" if found[1] in names else found[0], text
    )


_MAY_LEND = """
SELECT pg_is_in_recovery() AS standby, has_database_privilege(current_database(), 'TEMPORARY') AS may_lend,
    current_user AS role, quote_ident(current_user) AS quoted_role,
    quote_ident(current_database()) AS quoted_database
"""

# Of what this transaction has made or altered, all must be temporary.
_WRONGLY_LENT = """
SELECT name || ' is missing' FROM unnest(CAST(:names AS text[])) AS name
WHERE num_nulls(to_regclass('pg_temp.' || name), to_regproc('pg_temp.' || name)) = 2
UNION ALL
SELECT oid::regclass || ' is not temporary' FROM pg_catalog.pg_class
WHERE xmin = pg_current_xact_id()::xid AND relpersistence <> 't'
UNION ALL
SELECT oid::regprocedure || ' is not temporary' FROM pg_catalog.pg_proc
WHERE xmin = pg_current_xact_id()::xid AND pronamespace <> pg_my_temp_schema()
"""


# Only our window drains a queue of its own. The product's own 102.down takes the contract's functions away
# and leaves ours.
_FIND = f"""
SELECT
    num_nulls(to_regclass('public.task_usage_hourly'), to_regclass('public.task_usage_hourly_dirty'),
        to_regclass('public.task_usage_hourly_rollup_state')) = 0 AS tables,
    num_nulls(w.oid, to_regprocedure('public.rollup_task_usage_hourly()')) = 0 AS installed,
    {OUR_FUNCTIONS} AND COALESCE(p.prosrc LIKE '%rollup_task_usage_hourly_settle%', false) AS ours,
    {OUR_FUNCTIONS} AND num_nulls(to_regprocedure('public.task_usage_hour_bucket(timestamptz)'),
        to_regprocedure('public.task_usage_hourly_rollup_lag_seconds()')) = 0 AS readable
FROM (SELECT to_regprocedure('public.rollup_task_usage_hourly_window(timestamptz,timestamptz)') AS oid) AS w
LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = w.oid
"""
