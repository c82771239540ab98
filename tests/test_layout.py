"""The conventions a newcomer relies on when looking for a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from usage_rollup.contract import STEMS

TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    # Deleted in the working tree and not committed yet.
    if name and (ROOT / name).is_file()
]
VERSIONS = ROOT / "alembic" / "versions"
REVISIONS = sorted(VERSIONS.glob("*.py"))
UPS = sorted(VERSIONS.glob("*.up.sql"))
DOWNS = sorted(VERSIONS.glob("*.down.sql"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def stem_of(path: Path) -> str:
    return path.name.split(".")[0]


def test_alembic_directory_is_no_package() -> None:
    # It would shadow the library.
    assert list((ROOT / "alembic").rglob("__init__.py")) == []


def test_no_module_is_longer_than_300_lines() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert len(lengths) > 5
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_no_module_is_called_utils() -> None:
    assert [name_of(path) for path in TRACKED if path.stem in {"utils", "util", "helpers", "common"}] == []


def test_a_revision_is_three_files_of_one_name() -> None:
    stems = [path.stem for path in REVISIONS]
    assert len(stems) >= 6
    assert [stem_of(path) for path in UPS] == stems
    assert [stem_of(path) for path in DOWNS] == stems
    others = {path.name for path in VERSIONS.iterdir() if path.is_file()}
    others -= {path.name for path in (*REVISIONS, *UPS, *DOWNS)}
    assert others == set()


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_revision_goes_by_its_file_name_everywhere(path: Path) -> None:
    source = path.read_text()
    number = path.stem.split("_")[0]
    assert re.fullmatch(r"\d{3}_[a-z0-9_]+", path.stem)
    assert source.startswith(f'"""{path.stem}: ')
    assert "\nReversed by: " in source
    assert f'\nrevision = "{number}"\n' in source
    assert STEMS[number] == path.stem


@pytest.mark.parametrize("path", UPS, ids=lambda path: path.name)
def test_header_of_an_up_file_says_what_why_on_what_with_which_locks_and_the_way_back(path: Path) -> None:
    header = header_of(path)
    assert header[0].startswith(f"-- {stem_of(path)}: ")
    for topic in ("Why now", "Assumes", "Locks", "Undone"):
        assert [line for line in header if re.match(rf"-- {topic}\b", line)], topic
    assert f"{stem_of(path)}.down.sql" in "".join(header)


@pytest.mark.parametrize("path", DOWNS, ids=lambda path: path.name)
def test_header_of_a_down_file_says_what_it_undoes_and_with_which_locks(path: Path) -> None:
    header = header_of(path)
    assert stem_of(path) in header[0]
    assert [line for line in header if re.match(r"-- Locks\b", line)]


def header_of(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return lines[:end]


@pytest.mark.parametrize("path", UPS + DOWNS, ids=lambda path: path.name)
def test_sql_of_a_revision_leaves_transactions_and_psql_alone(path: Path) -> None:
    # PL/pgSQL's BEGIN has no semicolon.
    control = re.compile(
        r"^\s*((BEGIN|COMMIT|ROLLBACK|END|ABORT)(\s+(WORK|TRANSACTION))?\s*;|START\s+TRANSACTION|SAVEPOINT)",
        re.IGNORECASE,
    )
    psql = re.compile(r"^\s*\\")
    lines = outside_functions(path.read_text()).splitlines()
    assert [line for line in lines if control.match(line) or psql.match(line)] == []


def outside_functions(sql: str) -> str:
    """Return `sql` without dollar-quoted bodies, whose END; ends no transaction."""
    return re.sub(r"(\$\w*\$).*?\1", "$body$", sql, flags=re.DOTALL)


def test_the_rules_above_would_be_broken_by_what_they_forbid() -> None:
    sql = "BEGIN;\nDO $$\nBEGIN\n  NULL;\nEND;\n$$;\nCOMMIT;\n"
    assert outside_functions(sql).splitlines() == ["BEGIN;", "DO $body$;", "COMMIT;"]


# Split, because this file is tracked, too.
HOSTS = ("pypi" + ".org", "python" + "hosted.org", "npm" + "js.", "crates" + ".io", "golang" + ".org")
REGISTRY = re.compile("|".join(map(re.escape, (*HOSTS, "/simple" + "/"))), re.IGNORECASE)

HERE = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local", "/app"}
PLACE = re.compile(
    "|".join(
        (
            *(re.escape(place) + r"(?![\w.-])" for place in sorted(HERE)),
            r"(?<![\w.}])/(?:work|root|Users|home)/\w",
            r"\b[A-Z]:\\\\?\w",
            r"(?<!\w)/tmp/\w",
        )
    )
)


def test_no_tracked_file_names_a_package_registry() -> None:
    assert mentions(REGISTRY) == []


def test_no_tracked_file_names_a_place_on_a_machine() -> None:
    assert mentions(PLACE) == []


def test_places_and_registries_are_recognised() -> None:
    for place in (str(ROOT / "src"), "see /" + "home/me/x", "C:" + "\\temp", '"/' + 'tmp/pg"'):
        assert PLACE.search(place), place
    for harmless in ("https://example.com/work/x", 'dir="/tmp"', "$HOME/work", "/var/run/postgresql"):
        assert not PLACE.search(harmless), harmless
    assert REGISTRY.search("index-url = https://mirror.example" + "/simple" + "/")


def mentions(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in TRACKED:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()}")
    return found


@pytest.mark.parametrize("name", ["entrypoint.sh", ".ci/run"])
def test_script_is_executable_and_says_what_runs_it(name: str) -> None:
    path = ROOT / name
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/")
