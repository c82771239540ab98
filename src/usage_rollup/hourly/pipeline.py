"""Whose hourly pipeline is installed here, and the reading half of ours for where it is not.

Before 102, and past 104 where the product's own runner installed its pipeline, the functions that
compare, count and plan are missing. They are lent: made in pg_temp from the text of the revision itself,
so that there is one definition of what the rollup should hold; they end with the session.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import sqlalchemy as sa

from .. import revisions
from ..contract import OUR_FUNCTIONS
from ..errors import UnsuitableDatabase
from ..session.connection import transaction

# What any of these reads is the product's, or one of the contract's tables of 101.
FUNCTIONS = (
    "task_usage_hour_bucket",
    "task_usage_hourly_dated",
    "task_usage_hourly_sum",
    "task_usage_hourly_expected",
    "rollup_task_usage_hourly_aggregate",
    "task_usage_hourly_invalidated_hours",
    "task_usage_hourly_differences",
    "task_usage_hourly_pending_hours",
    "task_usage_hourly_undated",
    "task_usage_hourly_legacy_excess",
    "task_usage_hourly_horizon",
    "task_usage_hourly_latest_event",
    "task_usage_hourly_rollup_lag_seconds",
    "task_usage_hourly_unwalked",
    "task_usage_hourly_slices",
)

# Private tables that these read, empty where the pipeline is not ours.
TABLES = ("task_usage_hourly_invalidation", "task_usage_hourly_set_aside")


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


def find(session: sa.Connection) -> Pipeline:
    """Say what is installed in this database; one look at the catalog."""
    return Pipeline(**session.execute(sa.text(_FIND)).mappings().one())


def require(session: sa.Connection, *, window: bool = True) -> Pipeline:
    """Return find(); raise UnsuitableDatabase without 101's tables, or without a `window` if one is needed."""
    found = find(session)
    if not (found.tables and (found.installed or not window)):
        raise UnsuitableDatabase(
            "there is no hourly rollup in this database: it stands before 102_task_usage_hourly_pipeline",
            hint="run `alembic upgrade 102` first; a v0.3.4 server may keep running",
        )
    return found


@dataclass(frozen=True)
class Reading:
    """The reading half of 102: in public, or lent to this session."""

    lent: bool

    def sql(self, text: str) -> sa.TextClause:
        """Return a statement that names what 102 makes in public, taken to where it is here."""
        return sa.text(_in_temp(text) if self.lent else text)


def reading(session: sa.Connection) -> Reading:
    """Return where the reading half of 102 is, after lending it to this session where it is missing.

    Entered and left outside a transaction. Lending needs the right to make temporary objects, and a server
    that is no standby.
    """
    if find(session).readable:
        return Reading(lent=False)
    text = revisions.sql("102")
    pieces = [
        *re.findall(rf"CREATE TABLE IF NOT EXISTS public\.(?:{'|'.join(TABLES)}) .*?\n\);", text, re.DOTALL),
        *re.findall(
            rf"CREATE OR REPLACE FUNCTION public\.(?:{'|'.join(FUNCTIONS)})\(.*?\$\$\n.*?\$\$;",
            text,
            re.DOTALL,
        ),
    ]
    with transaction(session):
        # Whatever the role's default; a body may name what this database has not got, and nobody calls it
        # then; a parallel worker sees no temporary table.
        session.exec_driver_sql("SET TRANSACTION READ WRITE")
        session.exec_driver_sql("SET LOCAL check_function_bodies = off")
        for piece in pieces:
            session.exec_driver_sql(
                _in_temp(piece).replace("PARALLEL SAFE", "PARALLEL RESTRICTED"),
                execution_options={"no_parameters": True},
            )
    return Reading(lent=True)


def _in_temp(text: str) -> str:
    return re.sub(rf"public\.({'|'.join((*FUNCTIONS, *TABLES))})\b", r"pg_temp.\1", text)


# Only our window drains a queue of its own.
_FIND = f"""
SELECT
    num_nulls(to_regclass('public.task_usage_hourly'), to_regclass('public.task_usage_hourly_dirty'),
        to_regclass('public.task_usage_hourly_rollup_state')) = 0 AS tables,
    num_nulls(w.oid, to_regprocedure('public.rollup_task_usage_hourly()')) = 0 AS installed,
    {OUR_FUNCTIONS} AND COALESCE(p.prosrc LIKE '%rollup_task_usage_hourly_drain%', false) AS ours,
    {OUR_FUNCTIONS} AS readable
FROM (SELECT to_regprocedure('public.rollup_task_usage_hourly_window(timestamptz,timestamptz)') AS oid) AS w
LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = w.oid
"""
