"""`alembic revision -m`, by the real command, in a copy of the chain."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.database import ROOT, Database

Alembic = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """Return versions/ of a copy of the chain."""
    shutil.copytree(ROOT / "alembic", tmp_path / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    return tmp_path / "alembic" / "versions"


@pytest.fixture
def alembic(versions: Path, empty: Database) -> Alembic:
    """Return a function that runs `alembic` on the copy, with no database to reach."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        environment = empty.environment(**{"DATABASE_URL": "", **extra})
        return programs.run(
            "alembic", arguments, cwd=versions.parents[1], env=environment, timeout_s=60, merge=True
        )

    return run


def files(versions: Path) -> set[str]:
    return {path.name for path in versions.iterdir() if path.name != "__pycache__"}


@pytest.mark.parametrize("place", [("--head", "103", "--splice"), ("--head", "103")])
def test_a_second_head_is_refused(alembic: Alembic, versions: Path, place: tuple[str, ...]) -> None:
    before = files(versions)
    made = alembic("revision", "-m", "add x", *place)
    assert made.returncode != 0
    assert "Traceback" not in made.stdout
    assert files(versions) == before


def test_a_new_revision_has_the_next_number_and_its_sql_beside_it(alembic: Alembic, versions: Path) -> None:
    before = files(versions)
    for number, message, stem in (
        ("105", "add x", "105_add_x"),
        ("106", "Drop: old-Index, for good!", "106_drop_old_index_for_good"),
    ):
        made = alembic("revision", "-m", message)
        assert made.returncode == 0, made.stdout
        before |= {f"{stem}.py", f"{stem}.up.sql", f"{stem}.down.sql"}
        assert files(versions) == before
        # What tests/test_layout.py asks of a revision.
        source = (versions / f"{stem}.py").read_text()
        assert source.startswith(f'"""{stem}: ')
        assert f'\nrevision = "{number}"\ndown_revision = "{int(number) - 1}"\n' in source
        assert "\nReversed by: " in source
        # Preflight reads it.
        assert "\nLOCK: " in source
        for topic in ("Why now", "Assumes", "Locks", "Undone"):
            assert re.search(rf"^-- {topic}\b", (versions / f"{stem}.up.sql").read_text(), re.MULTILINE)
    heads = alembic("heads")
    assert "106 (head)" in heads.stdout


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (
            ["revision", "--rev-id", "1a2b", "-m", "add x"],
            "revisions are numbered in one line: after 104 comes 105, not 1a2b\n"
            'HINT: leave --rev-id out: alembic revision -m "add x"',
        ),
        (["revision", "--rev-id", "097", "-m", "add x"], "after 104 comes 105, not 097"),
        (["revision"], "a revision needs a name, for its file and for the ledger\nHINT: alembic revision -m"),
        (["revision", "-m", "…"], "a revision needs a name"),
        (["merge", "heads", "-m", "one"], "the chain is one line: there is nothing to merge"),
    ],
    ids=["letters", "taken", "no message", "no name", "merge"],
)
def test_what_would_break_the_line_of_numbers_is_refused(
    alembic: Alembic, versions: Path, arguments: list[str], refusal: str
) -> None:
    before = files(versions)
    refused = alembic(*arguments)
    assert refused.returncode == 255, refused.stdout
    assert f"FAILED: {refusal}" in refused.stdout or refusal in refused.stdout
    assert "Traceback" not in refused.stdout
    assert files(versions) == before


def test_history_is_shown_without_a_database_unless_it_is_to_show_where_that_stands(
    alembic: Alembic, head: Database
) -> None:
    shown = alembic("history")
    assert shown.returncode == 0, shown.stdout
    assert "103 -> 104 (head), 104_drop_runtime_timezone: " in shown.stdout
    assert "103 -> 104 (head) (current)" in alembic("history", "-i", DATABASE_URL=head.url).stdout
    assert "101 -> 102" not in alembic("history", "-r", "103:current", DATABASE_URL=head.url).stdout


def test_a_number_that_is_the_next_one_may_be_given(alembic: Alembic, versions: Path) -> None:
    assert alembic("revision", "--rev-id", "105", "-m", "add x").returncode == 0
    assert "105_add_x.py" in files(versions)


def test_autogenerate_asks_the_database_and_names_its_revision_alike(
    alembic: Alembic, versions: Path, head: Database
) -> None:
    made = alembic("revision", "--autogenerate", "-m", "add x", DATABASE_URL=head.url)
    assert made.returncode == 0, made.stdout
    assert {"105_add_x.py", "105_add_x.up.sql", "105_add_x.down.sql"} <= files(versions)
