"""Nine releases as they really are: the stand-ins, and what every command says of them."""

from __future__ import annotations

import re

import pytest

from tests.support import releases
from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import taken_by_go_to
from tests.support.later_release import apply_later_release, later_tick
from tests.support.product import event, small_world
from tests.support.releases import PAST_104, RELEASES, Facts, facts
from usage_rollup.contract import HOURLY


def found(database: Database, release: str) -> Facts:
    """Read from a database what the release's file tells."""
    with database.connect() as connection:
        return releases.read(connection, facts(release)["tables"])


def lines(told: Facts) -> list[str]:
    """Write facts as sorted lines, so that a difference is short to read."""
    flat = [f"{kind} {name}" for kind in ("stems", "all_tables", "referenced_by") for name in told[kind]]
    flat += [f"function {function}" for function in told["functions"]]
    for table, known in told["tables"].items():
        flat += [f"{table} column {n}: {column}" for n, column in enumerate(known["columns"])]
        for kind in ("constraints", "indexes", "triggers"):
            flat += [f"{table} {kind} {name}: {text}" for name, text in (known[kind] or {}).items()]
        flat.append(f"{table} replica identity {known['replica_identity']}")
    return sorted(flat)


# The stand-ins


@pytest.mark.parametrize("release", RELEASES)
def test_the_stand_in_of_a_release_is_what_its_catalog_says(
    make_database: MakeDatabase, release: str
) -> None:
    assert lines(found(make_database(release), release)) == lines(facts(release))


@pytest.mark.parametrize("release", PAST_104)
def test_ours_taken_on_to_a_release_has_all_that_its_catalog_says(
    make_database: MakeDatabase, release: str
) -> None:
    known, told = facts(release), found(make_database(f"ours at {release}"), release)
    ours = [name for name in told["all_tables"] if name not in known["all_tables"]]
    assert {*ours} > {"alembic_version", "task_usage_hourly_invalidation"}
    assert [name for name in ours if not name.startswith(("alembic_version", "task_usage_hourly_"))] == []
    # Besides come triggers and functions of ours; its comments, replica identities and settings are its own.
    assert contract(told, known) == contract(known, known)


def contract(told: Facts, known: Facts) -> list[str]:
    """Write the lines of what the product's runner would find of `known`, in no order of columns."""
    names = {function["signature"] for function in known["functions"]}
    kept = {
        "stems": told["stems"],
        "all_tables": [name for name in told["all_tables"] if name in known["all_tables"]],
        "referenced_by": told["referenced_by"],
        "functions": [
            {part: function[part] for part in ("signature", "arguments", "result")}
            for function in told["functions"]
            if function["signature"] in names
        ],
        "tables": {},
    }
    for table, told_of in told["tables"].items():
        triggers = known["tables"][table]["triggers"] or {}
        columns = sorted(told_of["columns"], key=lambda column: column["name"])
        is_ours = table in HOURLY.columns
        kept["tables"][table] = {
            **told_of,
            "columns": [{**column, "has_comment": is_ours or column["has_comment"]} for column in columns],
            "triggers": {n: text for n, text in (told_of["triggers"] or {}).items() if n in triggers},
            "replica_identity": is_ours or told_of["replica_identity"],
        }
    return [re.sub(r" column \d+", " column", line) for line in lines(kept)]


def test_steps_of_later_releases_do_to_ours_what_their_catalogs_say(make_database: MakeDatabase) -> None:
    """As if these four were all that lies between v0.3.5 and v0.4.23."""
    database = apply_later_release(make_database("ours at v0.3.5"))
    told, known, before = found(database, "v0.4.23"), facts("v0.4.23"), facts("v0.3.5")
    # What any other step does is left as it was; what is new by these four must be the catalog's.
    changed = set(contract(told, known)) - set(contract(before, known))
    assert changed <= set(contract(known, known))
    assert len([line for line in changed if "column" in line]) > 6
    for table in HOURLY.columns:
        assert {c["name"] for c in told["tables"][table]["columns"]} == {
            c["name"] for c in known["tables"][table]["columns"]
        }
    assert (
        told["tables"]["task_usage"]["triggers"].items() >= known["tables"]["task_usage"]["triggers"].items()
    )


def test_what_the_go_runner_leaves_is_the_contract_of_v035(make_database: MakeDatabase) -> None:
    told, known = found(taken_by_go_to(make_database, "104"), "v0.3.5"), facts("v0.3.5")
    assert told["functions"] == known["functions"]
    for table, known_of in known["tables"].items():
        assert told["tables"][table]["triggers"] == known_of["triggers"], table


# What the commands say


def runs(database: Database, *arguments: str, program: str = "usage-rollup", status: int = 0) -> str:
    """Run a command, which must end with `status` and without a traceback; return what it printed."""
    run = database.alembic if program == "alembic" else database.usage_rollup
    result = run(*arguments)
    printed = result.stdout + (result.stderr or "")
    assert "Traceback" not in printed
    assert result.returncode == status, f"{program} {arguments}: {printed}"
    return printed


def with_usage(database: Database) -> None:
    """Write a little usage of last spring, some of it from before updated_at."""
    world = small_world(database.url)
    for hour, updated in ((10, "2025-03-01 12:00+00"), (11, None), (23, "2025-04-01 00:00+00")):
        event(database.url, world, f"2025-03-01 {hour}:20+00", updated)
    event(database.url, world, "2025-03-02 00:05+00", agent=2, issue=3)


def at_head_all_is_well(database: Database) -> None:
    assert "the schema equals revision" in runs(database, "check")
    assert "No new upgrade operations" in runs(database, "check", program="alembic")
    assert "would go through" in runs(database, "preflight")
    runs(database, "backfill")
    runs(database, "tick")
    # Our queue goes through the product's tick by way of its own queue, which it drains after five minutes.
    later_tick(database)
    assert "the hourly rollup equals raw usage" in runs(database, "verify")
    assert "2 of 2 days with usage complete; holes: none" in runs(database, "status")
    runs(database, "upgrade", "head", program="alembic")


@pytest.mark.parametrize("release", RELEASES)
def test_every_command_is_right_on_a_release(make_database: MakeDatabase, release: str) -> None:
    database = make_database(release)
    with_usage(database)
    assert "would go through" in runs(database, "preflight")
    assert "HINT: alembic upgrade head" in runs(database, "check", status=1)
    runs(database, "check", program="alembic", status=255)
    runs(database, "status")
    runs(database, "upgrade", "head", program="alembic")
    at_head_all_is_well(database)


@pytest.mark.parametrize("release", PAST_104)
def test_every_command_is_right_on_ours_taken_on_to_a_release(
    make_database: MakeDatabase, release: str
) -> None:
    database = make_database(f"ours at {release}")
    with_usage(database)
    at_head_all_is_well(database)
