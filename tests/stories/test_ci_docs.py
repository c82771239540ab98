"""docs/ci.md: every command it shows is run, on real databases, and catches what it says it catches."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.database import BIN, ROOT, Database, MakeDatabase
from tests.support.pages import CI, pages
from tests.support.v034 import generate_history

pytestmark = pytest.mark.process

TEXT = (ROOT / CI).read_text("utf-8")
WORKFLOWS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
UPGRADE, COPY = pages()[CI].values()


def steps(workflow: str) -> list[str]:
    """Return the shell commands of a workflow, as GitHub or GitLab runs them."""
    runs = re.findall(r"^ +- run: (.*)$", workflow, re.MULTILINE)
    script = workflow.partition("  script:\n")[2]
    return runs + re.findall(r"^ +- (.*)$", script, re.MULTILINE)


def run(database: Database, script: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a checkout, with the client programs of the server's release at hand."""
    clients = str(Path(database.server.program("psql")).parent)
    path = os.pathsep.join([str(BIN), clients, os.environ["PATH"]])
    return database.run("sh", "-c", script, PATH=path, **extra)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=["GitHub", "GitLab"])
def test_steps_of_a_workflow_pass_on_an_empty_database(empty: Database, workflow: str) -> None:
    install, *commands = steps(workflow)
    assert install == "pip install ."
    assert commands == ["alembic upgrade head", "alembic check && usage-rollup check"]
    for command in commands:
        result = run(empty, command)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=["GitHub", "GitLab"])
def test_workflow_starts_a_server_and_names_it(workflow: str) -> None:
    assert "postgres:17" in workflow
    assert "DATABASE_URL: postgres://postgres:ci@" in workflow


def test_upgrade_from_v034_passes_and_rolls_everything_up(empty: Database) -> None:
    result = run(empty, UPGRADE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert empty.value("SELECT sum(event_count) FROM task_usage_hourly") == 1000
    assert empty.value("SELECT count(*) FROM task_usage WHERE updated_at IS NULL") == 334
    assert empty.value("SELECT min(created_at) < now() - interval '360 days' FROM task_usage")
    assert empty.value("SELECT max(created_at) > now() - interval '1 hour' FROM task_usage")


@pytest.fixture
def lossy_chain(tmp_path: Path) -> str:
    """Return the configuration of a copy of the chain whose 103 has lost its backfill."""
    shutil.copytree(ROOT / "alembic", tmp_path / "alembic")
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    revision = tmp_path / "alembic" / "versions" / "103_drop_legacy_daily_rollups.py"
    source = revision.read_text()
    broken = source.replace("before_upgrade = ", "not_called = ")
    assert broken != source
    revision.write_text(broken)
    return str(tmp_path / "alembic.ini")


def test_chain_without_its_backfill_passes_on_an_empty_database_and_not_after_the_upgrade_from_v034(
    make_database: MakeDatabase, lossy_chain: str
) -> None:
    on_empty = make_database("empty")
    for command in steps(WORKFLOWS[0])[1:]:
        assert run(on_empty, command, ALEMBIC_CONFIG=lossy_chain).returncode == 0
    result = run(make_database("empty"), UPGRADE, ALEMBIC_CONFIG=lossy_chain)
    assert result.returncode == 255
    assert "refusing to drop legacy daily rollups" in result.stdout + result.stderr


def test_copy_of_production_is_upgraded_and_checked_and_production_left_alone(
    make_database: MakeDatabase,
) -> None:
    production, copy = make_database("v034"), make_database("empty")
    with production.connect() as connection:
        history = generate_history(connection, 400)
    before = production.catalog()
    result = run(copy, COPY, PRODUCTION_URL=production.url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert copy.value("SELECT sum(event_count) FROM task_usage_hourly") == history.usage_rows
    assert production.catalog() == before


def test_failure_that_is_shown_is_what_the_command_prints(head: Database) -> None:
    shown = TEXT.rpartition("```\n")[0].rpartition("```\n")[2]
    head.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly_write")
    assert head.usage_rollup("check").stdout == shown
