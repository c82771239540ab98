"""Locks that others hold, and those a run takes: what is waited for has an end and a name, and nothing is half done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.database import Database, MakeDatabase
from tests.support.walks import write_history
from usage_rollup import revisions
from usage_rollup.contract import STEMS

pytestmark = pytest.mark.server

# Weaker ones keep nobody from reading or writing, and wait for nobody who does.
STRONG = [
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]

# What a step holds when it is recorded, and a transaction of the hook when it commits.
LOOK = f"""
CREATE SCHEMA looking;
CREATE TABLE looking.relations AS SELECT oid, relname::text AS name FROM pg_class LIMIT 0;
CREATE TABLE looking.held (told_by text, operation text, stem text, name text, mode text);
CREATE FUNCTION looking.look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO looking.held
    SELECT TG_TABLE_NAME, TG_OP, to_jsonb(COALESCE(NEW, OLD)) ->> 'version', r.name, l.mode
    FROM pg_locks l JOIN looking.relations r ON r.oid = l.relation
    WHERE l.pid = pg_backend_pid() AND l.mode = ANY ('{{{",".join(STRONG)}}}'::text[]);
    RETURN NULL;
END $$;
"""


def look_at(database: Database, *tables: str) -> None:
    """Have each commit of a transaction that wrote one of `tables` write down its strong locks."""
    with database.connect() as connection:
        connection.execute(LOOK.encode())
        for table in tables:
            connection.execute(
                f"CREATE CONSTRAINT TRIGGER z_look AFTER INSERT OR UPDATE OR DELETE ON {table}"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION looking.look()".encode()
            )


def remember_relations(database: Database) -> None:
    """What is made from here on is locked by nobody else."""
    database.execute(
        "WITH gone AS (DELETE FROM looking.relations)"
        " INSERT INTO looking.relations SELECT oid, relname FROM pg_class"
        " WHERE relnamespace <> 'looking'::regnamespace AND relkind IN ('r', 'p')"
    )


def held(database: Database) -> set[tuple[Any, ...]]:
    return set(database.execute("SELECT name, mode FROM looking.held"))


def named(revision: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the tables that a step names, the ledgers besides."""
    module = revisions.scripts().get_revision(revision).module
    locks: list[dict[str, list[str]]] = []
    monkeypatch.setattr(module, "apply_sql", lambda *_, lock=None, **__: locks.append(lock or {}))
    getattr(module, direction)()
    tables = [table for table_list in locks[0].values() for table in table_list]
    return {"alembic_version", "schema_migrations", *(table.split(".")[-1] for table in tables)}


@pytest.mark.parametrize("keep_legacy", ["true", "false"])
def test_every_strong_lock_of_a_step_is_asked_for_before_anything_is_changed(
    v034: Database, monkeypatch: pytest.MonkeyPatch, keep_legacy: str
) -> None:
    write_history(v034, 50, months=1)
    look_at(v034, "schema_migrations")
    steps = [r for r in STEMS if r > "097"]
    for direction, targets in (("upgrade", steps), ("downgrade", ["097", *steps[:-1]][::-1])):
        for step, target in zip(steps if direction == "upgrade" else steps[::-1], targets, strict=True):
            remember_relations(v034)
            v034.execute("TRUNCATE looking.held")
            getattr(v034, direction)(target, KEEP_LEGACY=keep_legacy)
            tables = {name for name, _ in held(v034)}
            assert tables, f"nothing seen of {direction} {step}"
            assert tables <= named(step, direction, monkeypatch), f"{direction} {step}"
