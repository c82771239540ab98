"""Databases of nine real releases, built from the facts in field/catalog-<release>.json.

The product's own runner made the databases that these files tell of. What a catalog does not tell is
stood in for: the bodies of functions (097's, naive_pipeline.sql, later_release.sql), the columns of the other
tables, which get an id and one for each table referred to, and which indexes are unique without a constraint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psycopg

from tests.support import later_release
from usage_rollup import revisions
from usage_rollup.queries import beside

Facts = dict[str, Any]

_FIELD = Path(__file__).parent / "field"
_SQL = beside(__file__)
_NAIVE = (Path(__file__).parent / "naive_pipeline.sql").read_text("utf-8")

RELEASES = (
    *("v0.3.4", "v0.3.5", "v0.3.17", "v0.4.9", "v0.4.10"),
    *("v0.4.16", "v0.4.17", "v0.4.23", "v0.4.32"),
)
# Past 104, where the pipeline is the product's.
PAST_104 = RELEASES[1:]

_STATE = "task_usage_hourly_rollup_state"

# By what they are called, and what the server relies on.
_UNIQUE = (
    "_key",
    "_unique",
    "idx_one_pending_task_per_issue_agent",
    "idx_one_pending_task_per_issue_agent_v2",
)


def facts(release: str) -> Facts:
    """Return what is known of a release."""
    known: Facts = json.loads((_FIELD / f"catalog-{release}.json").read_text("utf-8"))
    return known


def read(connection: psycopg.Connection[Any], tables: Iterable[str]) -> Facts:
    """Tell of a database what the files tell; of `tables` in full, in the caller's transaction."""
    connection.execute("SET LOCAL search_path = public")
    named = {"tables": list(tables)}

    def rows(name: str) -> list[Any]:
        cursor = connection.execute(_SQL[name].encode(), named if "%(" in _SQL[name] else {})
        return cursor.fetchall()

    stems = []
    if connection.execute("SELECT to_regclass('public.schema_migrations')").fetchone() != (None,):
        ordered = 'SELECT version FROM public.schema_migrations ORDER BY version COLLATE "C"'
        stems = [row[0] for row in connection.execute(ordered)]
    return {
        "stems": stems,
        "tables": dict(rows("tables")),
        **{name: [row[0] for row in rows(name)] for name in ("functions", "all_tables", "referenced_by")},
    }


def build(connection: psycopg.Connection[Any], release: str) -> None:
    """Make an empty database one of `release`, as the product's runner leaves it, in one transaction."""
    with connection.transaction():
        take_on(connection, release)
        # The product's functions carry no settings.
        for function in facts(release)["functions"]:
            _run(connection, f"ALTER FUNCTION public.{function['signature']} RESET ALL")


def take_on(connection: psycopg.Connection[Any], release: str, *, others: bool = True) -> None:
    """Do to a database what the product's runner does up to `release`, in one transaction.

    To an empty one, one of an older release, or one of ours: there it leaves alone what it does not know, and
    replaces what the product's own steps replace. Without `others` it makes of the other tables only those
    that the known ones refer to, which is quicker.
    """
    goal = facts(release)
    if not others:
        goal["all_tables"] = [*goal["tables"], *("autopilot_run", "chat_session", "comment")]
        goal["referenced_by"] = []
    with connection.transaction():
        connection.execute("SET LOCAL check_function_bodies = off")
        now = read(connection, goal["tables"])
        _tables(connection, goal, now)
        _run(connection, *_columns(goal["tables"], now["tables"]))
        _run(connection, *_constraints_and_indexes(goal["tables"], now["tables"]))
        _references(connection, goal)
        _functions(connection, goal, now)
        _triggers(connection, goal)
        for table in goal["tables"]:
            if table.endswith("rollup_state"):
                connection.execute(
                    f"INSERT INTO public.{table} DEFAULT VALUES ON CONFLICT DO NOTHING".encode()
                )
        record = "INSERT INTO public.schema_migrations SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"
        connection.execute(record, [goal["stems"]])
        connection.execute("SET LOCAL search_path = public, pg_temp")


def _run(connection: psycopg.Connection[Any], *statements: str) -> None:
    if statements:
        connection.execute(";\n".join(statements).encode())


def _tables(connection: psycopg.Connection[Any], goal: Facts, now: Facts) -> None:
    here = set(now["all_tables"])
    _run(connection, "CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public")
    _run(
        connection,
        *(
            f'CREATE TABLE public."{name}" ({"" if name in goal["tables"] else "id uuid PRIMARY KEY"})'
            for name in goal["all_tables"]
            if name not in here
        ),
    )


def _columns(goal: Facts, now: Facts) -> Iterable[str]:
    for table, wanted in goal.items():
        before = {c["name"]: c for c in now.get(table, {}).get("columns", [])}
        alter = f'ALTER TABLE public."{table}"'
        for column in wanted["columns"]:
            name, kind = f'"{column["name"]}"', column["type"]
            was = before.get(column["name"])
            if was is None:
                yield f"{alter} ADD COLUMN {name} {kind}"
            elif was["type"] != kind:
                yield f"{alter} ALTER COLUMN {name} TYPE {kind} USING {name}::{kind}"
            if (was or {}).get("default") != column["default"]:
                yield (
                    f"{alter} ALTER COLUMN {name}"
                    + (f" SET DEFAULT {column['default']}" if column["default"] else " DROP DEFAULT")
                )
            if (was or {}).get("not_null", False) != column["not_null"]:
                if column["not_null"] and column["default"]:
                    yield f'UPDATE public."{table}" SET {name} = {column["default"]} WHERE {name} IS NULL'
                yield f"{alter} ALTER COLUMN {name} {'SET' if column['not_null'] else 'DROP'} NOT NULL"
            if column["has_comment"] and not (was or {}).get("has_comment"):
                yield f"COMMENT ON COLUMN public.\"{table}\".{name} IS 'The product''s own\nwords.'"


def _constraints_and_indexes(goal: Facts, now: Facts) -> Iterable[str]:
    later = []
    for table, wanted in goal.items():
        was = now.get(table, {})
        before, indexes = was.get("constraints") or {}, was.get("indexes") or {}
        alter = f'ALTER TABLE public."{table}"'
        for name, definition in before.items():
            if (wanted["constraints"] or {}).get(name) != definition:
                yield f'{alter} DROP CONSTRAINT "{name}"'
        for name, definition in indexes.items():
            if name not in before and wanted["indexes"].get(name) != definition:
                yield f'DROP INDEX public."{name}"'
        for name, definition in (wanted["constraints"] or {}).items():
            if before.get(name) != definition:
                # What it refers to needs its key first.
                later.append(f'{alter} ADD CONSTRAINT "{name}" {definition}')
        for name, definition in wanted["indexes"].items():
            if name not in (wanted["constraints"] or {}) and indexes.get(name) != definition:
                unique = "UNIQUE " if name.endswith(_UNIQUE) else ""
                yield f'CREATE {unique}INDEX "{name}" ON public."{table}" USING {definition}'
    yield from sorted(later, key=lambda statement: " FOREIGN KEY " in statement)


def _references(connection: psycopg.Connection[Any], goal: Facts) -> None:
    """Let the other tables refer to what they refer to, each by a column named after it."""
    missing = set(goal["referenced_by"]) - set(read(connection, goal["tables"])["referenced_by"])
    for reference in sorted(missing):
        table, referred = reference.split(" -> ")
        column = referred.strip('"') + "_id"
        _run(connection, f"ALTER TABLE public.{table} ADD COLUMN {column} uuid REFERENCES public.{referred}")


def _functions(connection: psycopg.Connection[Any], goal: Facts, now: Facts) -> None:
    here = {function["signature"] for function in now["functions"]}
    if _STATE in goal["tables"] and "rollup_task_usage_hourly()" not in here:
        _run(connection, _NAIVE)
    if "task_usage_rollup_state" in goal["tables"]:
        _run(connection, *re.findall(r"^CREATE FUNCTION .*?^\$\$;$", revisions.sql("097"), re.M | re.S))
    # Of the steps of later releases what is no table's business: the text of functions.
    for stem in later_release.REPLACED & (set(goal["stems"]) - set(now["stems"])):
        _run(connection, later_release.function_of(stem))
    overlay = "public.clear_runtime_mcp_overlay_on_terminal_state()"
    _run(
        connection,
        f"CREATE OR REPLACE FUNCTION {overlay} RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    )


def _triggers(connection: psycopg.Connection[Any], goal: Facts) -> None:
    now = read(connection, goal["tables"])["tables"]
    for table, wanted in goal["tables"].items():
        before = now[table]["triggers"] or {}
        for name, definition in (wanted["triggers"] or {}).items():
            if before.get(name) != definition:
                _run(
                    connection,
                    f'DROP TRIGGER IF EXISTS "{name}" ON public."{table}"',
                    f'CREATE TRIGGER "{name}" {definition}',
                )
