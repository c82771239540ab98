"""Lend the reading half of 102 to a session whose database has not got it.

Before 102, and past 104 where the product's own runner installed its pipeline, the functions that
compare, count and plan are missing. They are made in pg_temp from the text of the revision itself,
so that there is one definition of what the rollup should hold; they end with the session.
"""

from __future__ import annotations

import re

import sqlalchemy as sa

from .. import revisions

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


# Whether this database has our functions of 102, in SQL.
INSTALLED = "to_regprocedure('public.task_usage_hourly_slices(tstzmultirange,bigint)') IS NOT NULL"


def installed(connection: sa.Connection) -> bool:
    """Say whether this database has our functions of 102."""
    return bool(connection.scalar(sa.text(f"SELECT {INSTALLED}")))


def schema(connection: sa.Connection) -> str:
    """Return the schema that has the functions: public, or pg_temp after lending them; commits.

    Entered and left outside a transaction. Needs the right to make temporary objects, and a server that
    is no standby.
    """
    ours = installed(connection)
    connection.commit()
    if ours:
        return "public"
    text = revisions.sql("102")
    names = "|".join((*FUNCTIONS, *TABLES))
    pieces = [
        *re.findall(rf"CREATE TABLE IF NOT EXISTS public\.(?:{'|'.join(TABLES)}) .*?\n\);", text, re.DOTALL),
        *re.findall(
            rf"CREATE OR REPLACE FUNCTION public\.(?:{'|'.join(FUNCTIONS)})\(.*?\$\$\n.*?\$\$;",
            text,
            re.DOTALL,
        ),
    ]
    # Whatever the role's default; a body may name what this database has not got, and nobody calls it
    # then; a parallel worker sees no temporary table.
    connection.exec_driver_sql("SET TRANSACTION READ WRITE")
    connection.exec_driver_sql("SET LOCAL check_function_bodies = off")
    for piece in pieces:
        lent_piece = re.sub(rf"public\.({names})\b", r"pg_temp.\1", piece)
        connection.exec_driver_sql(
            lent_piece.replace("PARALLEL SAFE", "PARALLEL RESTRICTED"),
            execution_options={"no_parameters": True},
        )
    connection.commit()
    return "pg_temp"
