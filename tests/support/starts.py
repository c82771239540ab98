"""Databases that meet the upgrade, before anything else was done to them: stuck, half-way, and further on."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import taken_by_go_to
from tests.support.hostile import Change
from tests.support.later_release import apply_later_release
from tests.support.legacy import lose_raw_rows, roll_up_as_v034
from tests.support.product import event, small_world
from tests.support.shapes import make_products
from tests.support.v034 import build_v034
from tests.support.walks import write_history

BEFORE_100 = frozenset({"legacy", "timezone", "before_100", "no_hourly", "no_pipe", "not_ours", "no_version"})

# What is on a start, and is not, for a change to ask for.
START_TRAITS: dict[str, frozenset[str]] = {
    "v034": BEFORE_100,
    "v034_with_losses": BEFORE_100,
    "v034_without_usage": BEFORE_100,
    "stuck_at_103": frozenset(
        {"legacy", "timezone", "hourly", "piped", "go", "not_ours", "no_version", "not_later"}
    ),
    "ours_at_100": frozenset({"legacy", "timezone", "no_hourly", "no_pipe", "not_ours", "version"}),
    "ours_at_101": frozenset({"legacy", "timezone", "hourly", "no_pipe", "not_ours", "version", "not_later"}),
    "half_way": frozenset({"legacy", "timezone", "hourly", "piped", "ours", "version", "not_later"}),
    "head": frozenset({"hourly", "piped", "ours", "version", "not_later"}),
    "later_release": frozenset({"hourly", "piped", "ours", "version"}),
    "go_104": frozenset({"hourly", "piped", "not_ours", "no_version", "not_later"}),
    "go_later": frozenset({"hourly", "piped", "not_ours", "no_version"}),
    "v034_in_sql_ascii": BEFORE_100,
    "v034_in_latin1": BEFORE_100,
}


def _with_usage(database: Database) -> Database:
    write_history(database, 200, months=3)
    roll_up_as_v034(database)
    return database


def _with_losses(database: Database) -> Database:
    lose_raw_rows(
        _with_usage(database), "created_at < (SELECT min(created_at) + interval '9 days' FROM task_usage)"
    )
    return database


def _half_way(database: Database) -> Database:
    with _with_usage(database).connect() as connection:
        connection.execute(
            "SELECT rollup_task_usage_hourly_plan(task_usage_hourly_horizon(), 30, '-infinity')"
        )
        connection.execute("SELECT rollup_task_usage_hourly_slice()")
    assert database.value("SELECT count(*) FROM task_usage_hourly_backfill WHERE walked_at IS NULL") > 0
    return database


def _at_head(make: MakeDatabase) -> Database:
    database = _with_usage(make("v034"))
    database.upgrade()
    return database


def _in_encoding(make: MakeDatabase, encoding: str) -> Database:
    database = make(f"encoding {encoding}")
    with database.connect(client_encoding="UTF8") as connection:
        build_v034(connection)
    world = small_world(database.url)
    for day in range(1, 9):
        event(database.url, world, f"2026-0{day}-05 10:15+00")
    bytes_of_no_utf8 = (
        r"convert_from('\x636166e9'::bytea, 'LATIN1')" if encoding == "LATIN1" else r"E'caf\xe9'"
    )
    database.execute(
        "INSERT INTO task_usage (task_id, provider, model, created_at)"
        f" SELECT task_id, provider, {bytes_of_no_utf8}, created_at FROM task_usage"
    )
    roll_up_as_v034(database)
    return database


STARTS: dict[str, Callable[[MakeDatabase], Database]] = {
    "v034": lambda make: _with_usage(make("v034")),
    "v034_with_losses": lambda make: _with_losses(make("v034")),
    "v034_without_usage": lambda make: make("v034"),
    "stuck_at_103": lambda make: _with_usage(taken_by_go_to(make, "102")),
    "ours_at_100": lambda make: _with_usage(make("100")),
    "ours_at_101": lambda make: _with_usage(make("101")),
    "half_way": lambda make: _half_way(make("102")),
    "head": _at_head,
    "later_release": lambda make: apply_later_release(_at_head(make)),
    "go_104": lambda make: make_products(_at_head(make), later=False),
    "go_later": lambda make: make_products(_at_head(make), later=True),
    "v034_in_sql_ascii": lambda make: _in_encoding(make, "SQL_ASCII"),
    "v034_in_latin1": lambda make: _in_encoding(make, "LATIN1"),
}


def fits(change: Change, start: str) -> bool:
    """Say whether all that a change asks for is on a start."""
    return change.on <= START_TRAITS[start]
