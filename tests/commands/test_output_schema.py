"""docs/output.schema.json describes what the commands really print, on databases of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.database import NOWHERE, ROOT, Database, MakeDatabase
from tests.support.horizon import stuck_writer
from tests.support.pg_cron import PG_CRON
from tests.support.product import event, small_world
from tests.support.rollup import TICK, heal
from tests.support.starts import STARTS
from tests.support.walks import write_history

SCHEMA: dict[str, Any] = json.loads((ROOT / "docs" / "output.schema.json").read_text("utf-8"))

COMMANDS = {
    "status": ["status"],
    "preflight": ["preflight"],
    "verify": ["verify"],
    "check": ["check"],
    "tick": ["tick"],
    "backfill_dry_run": ["backfill", "--dry-run"],
    "backfill": ["backfill"],
    "backfill_repair": ["backfill", "--repair"],
    "schedule": ["schedule"],
    "unschedule": ["unschedule"],
    "history": ["history"],
    # Last, because it leaves nothing to tell of where the database stood.
    "upgrade": ["upgrade"],
    "downgrade": ["downgrade", "102"],
    "stamp": ["stamp", "102"],
}


def wrong(report: Any, name: str) -> list[str]:
    """Return what of a report is not as the schema says."""
    schema = {**SCHEMA, "$ref": f"#/$defs/{name}"}
    checker = Draft202012Validator.FORMAT_CHECKER
    errors = Draft202012Validator(schema, format_checker=checker).iter_errors(report)
    return [f"{name}: {error.json_path}: {error.message}" for error in errors]


def reports(database: Database, *names: str) -> Iterator[tuple[str, Any]]:
    """Run commands on a database, all or some; yield what each prints, by its name in the schema."""
    for name in names or COMMANDS:
        command = COMMANDS[name]
        result = database.usage_rollup(*command, "--json", LOCK_TIMEOUT="1")
        report = json.loads(result.stdout)
        yield ("failure" if "error" in report else name), report


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield key
            yield from keys(below)
    elif isinstance(value, list):
        for below in value:
            yield from keys(below)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    # What is not described, or has another name or kind, would be found.
    tick = {"rows_changed": 0, "watermark_before": None, "lag_seconds": 0, "held_back": None}
    assert wrong({**tick, "watermark_after": None, "hours": 0}, "tick")
    assert wrong({**tick, "watermark_after": None, "lag_seconds": "none"}, "tick")
    assert wrong(tick, "tick")
    for time in ("2026-01-31 10:00:00+00", "2026-01-31T10:00:00", "yesterday"):
        assert wrong({**tick, "watermark_after": time}, "tick"), time
    for time in ("2026-01-31T10:00:00Z", "infinity", "missing", "20250-01-01T00:00:00Z"):
        assert wrong({**tick, "watermark_after": time}, "tick") == [], time


@pytest.mark.parametrize(
    "start", ["v034_with_losses", "stuck_at_103", "half_way", "head", "go_104", "go_later"]
)
def test_every_command_prints_what_the_schema_says(make_database: MakeDatabase, start: str) -> None:
    database = STARTS[start](make_database)
    for name, report in reports(database):
        assert wrong(report, name) == []


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE task_usage_hourly_rollup_state SET watermark_at = 'infinity'",
        "DELETE FROM task_usage_hourly_rollup_state",
        "UPDATE task_usage_hourly_rollup_state SET watermark_at = '-infinity', last_error = 'no space left';"
        " UPDATE issue SET project_id = NULL; ALTER TABLE task_usage DISABLE TRIGGER USER;"
        f" {PG_CRON}; SELECT cron.schedule('rollup_task_usage_hourly', '*/5 * * * *', '{TICK}')",
        "DELETE FROM task_usage_hourly;"
        " INSERT INTO task_usage_hourly_left_out (before_hour) VALUES ('2025-03-01 00:00+00');"
        " UPDATE task_usage SET created_at = 'infinity' WHERE id = (SELECT id FROM task_usage LIMIT 1)",
    ],
)
def test_whatever_is_the_matter_is_said_as_the_schema_says(make_database: MakeDatabase, change: str) -> None:
    database = STARTS["head"](make_database)
    database.execute(change)
    with stuck_writer(database):
        for name, report in reports(database, "status", "preflight", "verify", "tick"):
            assert wrong(report, name) == []
    heal(database)


def test_a_half_walked_history_is_said_as_the_schema_says(at_102: Database) -> None:
    write_history(at_102)
    world = small_world(at_102.url)
    event(at_102.url, world, "2199-01-01 10:15+00")
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now(), 20)")
    at_102.execute("SELECT rollup_task_usage_hourly_slice()")
    seen = dict(reports(at_102))
    assert [fault for name, report in seen.items() for fault in wrong(report, name)] == []
    assert seen["status"]["backfill"]["state"] == "interrupted"
    assert seen["backfill"]["from_hour"].endswith(":00:00Z")


def test_a_failure_is_one_object_too(head: Database) -> None:
    for name, command in COMMANDS.items():
        result = head.usage_rollup(*command, "--json", DATABASE_URL=NOWHERE, DATABASE_STARTUP_TIMEOUT="0")
        assert wrong(json.loads(result.stdout), "failure") == [], name
        assert result.returncode == 75


def test_a_script_is_one_object_where_it_is_asked_for_as_such(empty: Database) -> None:
    report = json.loads(empty.usage_rollup("script", "097:head", "--json", DATABASE_URL=NOWHERE).stdout)
    assert wrong(report, "script") == []
    assert report["sql"] == empty.usage_rollup("script", "097:head", DATABASE_URL=NOWHERE).stdout
    refused = empty.usage_rollup("upgrade", "097:head", "--sql", "--json", DATABASE_URL=NOWHERE)
    assert (refused.returncode, wrong(json.loads(refused.stdout), "failure")) == (2, [])


def test_one_thing_has_one_name(head: Database) -> None:
    names = {key for _, report in reports(head) for key in keys(report)}
    # Seconds are seconds, times end in _at or _hour, and rows of usage are usage rows.
    assert {name for name in names if name.endswith(("_s", "_secs", "_ts", "_"))} == set()
    assert {"lag_seconds", "watermark", "ticks", "usage_rows"} <= names
