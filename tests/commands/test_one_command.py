"""`usage-rollup` is one whole command: what `alembic` does, it does too, from wherever it is started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.database import NOWHERE, ROOT, Database, MakeDatabase
from tests.support.ways import ALL_ALONE
from usage_rollup.commands.app import program

pytestmark = pytest.mark.process

COMMANDS = sorted(program.commands)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return another project's directory, with an alembic.ini of its own."""
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_variables_of_the_database_and_can_be_asked_for_by_h(
    command: str, empty: Database
) -> None:
    shown = empty.run("usage-rollup", command, "-h", COLUMNS="200")
    assert shown.returncode == 0
    assert "--database-url" in shown.stdout
    assert "MIGRATION_DATABASE_URL, DATABASE_URL" in shown.stdout
    assert shown.stdout == empty.run("usage-rollup", command, "--help", COLUMNS="200").stdout


def test_help_of_an_upgrade_names_every_variable_of_its_options(empty: Database) -> None:
    shown = empty.run("usage-rollup", "upgrade", "-h", COLUMNS="200").stdout
    for variable in ("JOBS", "SLEEP_BETWEEN_SLICES", "LOCK_TIMEOUT", "KEEP_LEGACY", "VERSION_TABLE"):
        assert f"[env var: {variable}]" in shown


def test_version_is_the_packages_and_the_module_is_the_command(empty: Database) -> None:
    shown = empty.run("usage-rollup", "--version").stdout
    assert shown.startswith("usage-rollup ")
    assert empty.run(sys.executable, "-m", "usage_rollup", "--version").stdout == shown
    assert "python -m usage_rollup" in empty.run(sys.executable, "-m", "usage_rollup", "-h").stdout


def test_shell_completes_commands(empty: Database) -> None:
    completed = empty.run(
        "usage-rollup",
        _USAGE_ROLLUP_COMPLETE="complete_bash",
        COMP_WORDS="usage-rollup down",
        COMP_CWORD="1",
    )
    assert completed.stdout.split() == ["downgrade"]


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_database_url_typed_wins_before_and_behind_the_command(behind: bool, v034: Database) -> None:
    typed = ("--database-url", v034.url)
    done = v034.run(
        "usage-rollup", *(("history", *typed) if behind else (*typed, "history")), DATABASE_URL=NOWHERE
    )
    assert done.returncode == 0, done.stderr
    assert "097_autopilot_project_id" in done.stdout
    assert v034.run("usage-rollup", *typed, "upgrade", "100", MIGRATION_DATABASE_URL=NOWHERE).returncode == 0
    assert v034.revision == "100"


@pytest.mark.parametrize(
    ("url", "said"),
    [("", "--database-url is empty"), ("postgres://u:s3cret@@/x?y@", "--database-url cannot be parsed")],
)
def test_bad_database_url_is_refused_by_the_name_it_was_typed_under(
    url: str, said: str, empty: Database
) -> None:
    refused = empty.run("usage-rollup", "status", "--database-url", url)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert "s3cret" not in refused.stdout + refused.stderr


def test_quiet_leaves_warnings_and_verbose_adds_statements(v034: Database) -> None:
    quiet = v034.run("usage-rollup", "upgrade", "102", "-q")
    assert quiet.returncode == 0
    assert "INFO" not in quiet.stderr
    verbose = v034.run("usage-rollup", "-v", "upgrade", "102")
    assert "SELECT" in verbose.stderr
    assert "already at 102_task_usage_hourly_pipeline" in verbose.stderr


def test_downgrade_goes_back_by_name_and_by_steps(head: Database, v034: Database) -> None:
    assert head.usage_rollup("downgrade", "-1").returncode == 0
    assert head.revision == "103"
    done = head.usage_rollup("downgrade", "097", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["from"], told["to"]) == ("103", "097")
    assert head.revision == "097"


@pytest.mark.parametrize("arguments", [("105",), ("--jsn",), ("097", "-x", "job=2")], ids=" ".join)
def test_downgrade_refuses_what_there_is_not_as_a_usage_error(
    arguments: tuple[str, ...], head: Database
) -> None:
    refused = head.usage_rollup("downgrade", *arguments)
    assert refused.returncode == 2, refused.stderr
    assert "HINT: there is: " in refused.stderr
    assert head.revision == "104"


def test_stamp_writes_what_a_refusal_says(at_102: Database) -> None:
    at_102.execute("INSERT INTO alembic_version VALUES ('100')")
    refused = at_102.usage_rollup("upgrade")
    assert "stamp --purge 102" in refused.stderr
    done = at_102.usage_rollup("stamp", "--purge", "102")
    assert (done.returncode, done.stdout) == (0, "")
    assert at_102.revision == "102"


@pytest.mark.parametrize(("ends", "command"), [("097:head", "upgrade"), ("head:097", "downgrade")])
def test_script_is_what_alembic_writes_either_way(ends: str, command: str, empty: Database) -> None:
    ours = empty.run("usage-rollup", "script", ends, DATABASE_URL=NOWHERE)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == empty.run("alembic", command, ends, "--sql", DATABASE_URL=NOWHERE).stdout
    assert ours.stdout == empty.run("usage-rollup", command, ends, "--sql", DATABASE_URL=NOWHERE).stdout


def test_script_made_elsewhere_goes_to_the_same_end(elsewhere: Path, v034: Database, head: Database) -> None:
    made = v034.run("usage-rollup", "script", "097:head", cwd=elsewhere, DATABASE_URL=NOWHERE)
    assert "`usage-rollup upgrade head`" in made.stdout
    assert "`alembic " not in made.stdout
    subprocess.run(
        [v034.server.program("psql"), *ALL_ALONE, v034.url],
        input=made.stdout,
        text=True,
        check=True,
        capture_output=True,
    )
    assert v034.schema() == head.schema()


@pytest.mark.parametrize(
    "ends",
    ["", "head", "097:", ":head", "097:105", "105:097", "+1:head", "097+1:head", "097:105-1", "097:104+1"],
)
def test_script_refuses_ends_that_are_none(ends: str, empty: Database) -> None:
    refused = empty.run("usage-rollup", "script", ends, DATABASE_URL=NOWHERE)
    assert refused.returncode == 2, refused.stderr
    assert "HINT: " in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    ("ends", "same"), [("097:+1", "097:100"), ("097:103-1", "097:102"), ("104:-1", "104:103")]
)
def test_script_ends_so_many_steps_from_a_revision(ends: str, same: str, empty: Database) -> None:
    made = empty.usage_rollup("script", ends, DATABASE_URL=NOWHERE)
    assert made.returncode == 0, made.stderr
    assert made.stdout == empty.usage_rollup("script", same, DATABASE_URL=NOWHERE).stdout


@pytest.mark.parametrize("command", ["status", "upgrade", "script 097:head"])
def test_what_alembic_refuses_is_a_sentence(command: str, elsewhere: Path, v034: Database) -> None:
    # Another project's, where its revisions would be.
    refused = v034.usage_rollup(*command.split(), "--json", ALEMBIC_CONFIG=str(elsewhere / "alembic.ini"))
    assert refused.returncode in {1, 2}
    assert "Traceback" not in refused.stderr
    assert refused.stderr.startswith("usage-rollup: ")
    assert json.loads(refused.stdout)["error"]


def test_x_is_taken_where_alembic_wants_it_and_refused_where_nothing_reads_it(v034: Database) -> None:
    done = v034.usage_rollup("-x", "keep-legacy=true", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert v034.value("SELECT to_regclass('legacy_usage.task_usage_daily') IS NOT NULL")
    refused = v034.usage_rollup("-x", "jobs=2", "tick")
    assert refused.returncode == 2
    assert "not with tick" in refused.stderr


def test_options_of_an_upgrade_may_be_typed_as_such(v034: Database) -> None:
    refused = v034.usage_rollup("upgrade", "--jobs", "0")
    assert refused.returncode == 2
    assert "--jobs is not auto or 1..99" in refused.stderr
    done = v034.usage_rollup("upgrade", "--keep-legacy", "true", KEEP_LEGACY="false")
    assert done.returncode == 0, done.stderr
    assert v034.value("SELECT to_regclass('legacy_usage.task_usage_daily') IS NOT NULL")


def test_hint_names_the_door_that_is_open_where_the_reader_stands(
    elsewhere: Path, make_database: MakeDatabase
) -> None:
    database = make_database("v034")
    here = database.run("usage-rollup", "tick")
    assert "HINT: run `alembic upgrade 102` first" in here.stderr
    there = database.run("usage-rollup", "tick", cwd=elsewhere)
    assert "HINT: run `usage-rollup upgrade 102` first" in there.stderr
    logged = database.run("usage-rollup", "tick", "--json", cwd=elsewhere, LOG_FORMAT="json")
    assert "`usage-rollup upgrade 102`" in json.loads(logged.stdout)["hint"]
    assert "`usage-rollup upgrade 102`" in json.loads(logged.stderr.splitlines()[-1])["hint"]
    assert (
        "`usage-rollup upgrade head` would go through"
        in database.run("usage-rollup", "preflight", cwd=elsewhere).stdout
    )
    # And what the hint says works there.
    assert database.run("usage-rollup", "upgrade", "102", cwd=elsewhere).returncode == 0
    assert database.run("usage-rollup", "tick", cwd=elsewhere).returncode == 0


def test_hint_of_sql_that_was_released_names_it_as_well(elsewhere: Path, at_102: Database) -> None:
    at_102.execute("INSERT INTO alembic_version VALUES ('100')")
    assert "HINT: put it right, then run this again: alembic stamp --purge 102" in at_102.refused()
    refused = at_102.run("usage-rollup", "upgrade", cwd=elsewhere)
    assert "HINT: put it right, then run this again: usage-rollup stamp --purge 102" in refused.stderr


def test_hint_of_alembic_led_here_from_elsewhere_names_the_command_that_works_there(
    elsewhere: Path, at_102: Database
) -> None:
    at_102.execute("INSERT INTO alembic_version VALUES ('100')")
    refused = at_102.run("alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head", cwd=elsewhere)
    assert "usage-rollup stamp --purge 102" in refused.stdout
    ini = str(ROOT / "alembic.ini")
    refused = at_102.run("alembic", "upgrade", "head", cwd=elsewhere, ALEMBIC_CONFIG=ini)
    assert "alembic stamp --purge 102" in refused.stdout
    fixed = at_102.run("alembic", "stamp", "--purge", "102", cwd=elsewhere, ALEMBIC_CONFIG=ini)
    assert fixed.returncode == 0
