"""Released revisions never change: databases in the field already stand on them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.database import ROOT
from tests.support.freeze import RELEASED, complaints, digests, freeze

pytestmark = pytest.mark.offline


def project(directory: Path) -> Path:
    """Copy what is frozen, with its digests as they would be now; return where they are."""
    shutil.copytree(ROOT / "alembic" / "versions", directory / "alembic" / "versions")
    freeze(directory, directory / "released")
    return directory / "released"


def test_sql_of_released_revisions_is_as_released() -> None:
    assert len(digests(ROOT)) >= 12
    assert any(name.endswith(".up/20_expected.sql") for name in digests(ROOT))
    assert "\n".join(complaints(ROOT, RELEASED)) == ""


def test_a_changed_file_is_named_with_what_to_do_and_freezing_again_changes_nothing(tmp_path: Path) -> None:
    released = project(tmp_path)
    assert complaints(tmp_path, released) == []
    path = tmp_path / "alembic" / "versions" / "100_user_timezone.up.sql"
    path.write_bytes(path.read_bytes() + b"\n")
    (complaint,) = complaints(tmp_path, released)
    assert complaint.startswith("alembic/versions/100_user_timezone.up.sql changed")
    assert "alembic revision -m" in complaint
    freeze(tmp_path, released)
    assert complaints(tmp_path, released) == [complaint]
    path.unlink()
    assert complaints(tmp_path, released) == [complaint]


def test_a_new_revision_is_named_until_it_is_frozen(tmp_path: Path) -> None:
    released = project(tmp_path)
    versions = tmp_path / "alembic" / "versions"
    (versions / "110_something.up.sql").write_text("SELECT 1;\n")
    (versions / "111_in_parts.up").mkdir()
    (versions / "111_in_parts.up" / "10_one.sql").write_text("SELECT 1;\n")
    file, part = complaints(tmp_path, released)
    assert file.startswith("alembic/versions/110_something.up.sql has no digest")
    assert part.startswith("alembic/versions/111_in_parts.up/10_one.sql has no digest")
    freeze(tmp_path, released)
    assert complaints(tmp_path, released) == []


def test_a_checkout_with_autocrlf_has_the_same_digests(tmp_path: Path) -> None:
    project(tmp_path)
    before = digests(tmp_path)

    def check_out() -> None:
        shutil.rmtree(tmp_path / "alembic")
        git("checkout", "--", "alembic")

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("config", "core.autocrlf", "true")
    git("add", "alembic")
    # The trap.
    check_out()
    assert digests(tmp_path) != before
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    check_out()
    assert digests(tmp_path) == before
