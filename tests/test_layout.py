"""The conventions a newcomer relies on when looking for a file."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.database import ROOT
from tests.support.files import project_files
from tests.support.places import PLACE, REGISTRY
from usage_rollup.contract import STEMS
from usage_rollup.revisions import sql_files

pytestmark = pytest.mark.offline

TRACKED = [ROOT / name for name in project_files()]
VERSIONS = ROOT / "alembic" / "versions"
REVISIONS = sorted(VERSIONS.glob("*.py"))
# What a step runs, in order: a file beside its revision, or the parts in a folder there.
UPS = [sql_files(str(path), "up") for path in REVISIONS]
DOWNS = [sql_files(str(path), "down") for path in REVISIONS]
PARTS = [path for step in (*UPS, *DOWNS) for path in step if path.parent != VERSIONS]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def stem_of(path: Path) -> str:
    return path.relative_to(VERSIONS).parts[0].split(".")[0]


def test_alembic_directory_is_no_package() -> None:
    # It would shadow the library.
    assert list((ROOT / "alembic").rglob("__init__.py")) == []


def test_no_module_is_longer_than_250_lines_and_no_sql_beside_one_than_300() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert len(lengths) > 5
    assert {name: length for name, length in lengths.items() if length > 250} == {}
    sql = {name_of(path): len(path.read_text().splitlines()) for path in (ROOT / "src").rglob("*.sql")}
    assert len(sql) > 5
    assert {name: length for name, length in sql.items() if length > 300} == {}


def test_no_module_is_called_utils() -> None:
    assert [name_of(path) for path in TRACKED if path.stem in {"utils", "util", "helpers", "common"}] == []


def test_a_revision_and_its_two_steps_go_by_one_name() -> None:
    assert [path.stem for path in REVISIONS] == list(STEMS.values())
    assert all(UPS)
    assert all(DOWNS)
    others = {path for path in VERSIONS.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    others -= {path for step in ([*REVISIONS], *UPS, *DOWNS) for path in step}
    assert others == set()


def test_a_step_is_a_file_or_a_folder_and_never_both() -> None:
    # Of the two, only the file would be run.
    assert [name_of(path) for path in VERSIONS.glob("*.sql") if path.with_suffix("").exists()] == []


@pytest.mark.parametrize("path", PARTS, ids=name_of)
def test_part_of_a_step_is_one_idea_and_says_which(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    # The first has the header of the whole step.
    if path != min(path.parent.iterdir()):
        assert lines[0].startswith(f"-- {stem_of(path).split('_')[0]}, part {path.stem}: ")
    # The baseline is what the field has, letter for letter.
    assert len(lines) <= 300 or stem_of(path) == STEMS["097"]


@pytest.mark.parametrize("path", REVISIONS, ids=lambda path: path.stem)
def test_revision_goes_by_its_file_name_everywhere(path: Path) -> None:
    source = path.read_text()
    number = path.stem.split("_")[0]
    assert re.fullmatch(r"\d{3}_[a-z0-9_]+", path.stem)
    assert source.startswith(f'"""{path.stem}: ')
    assert "\nReversed by: " in source
    assert f'\nrevision = "{number}"\n' in source
    assert STEMS[number] == path.stem


@pytest.mark.parametrize("path", [step[0] for step in UPS], ids=stem_of)
def test_header_of_an_up_step_says_what_why_on_what_with_which_locks_and_the_way_back(path: Path) -> None:
    header = header_of(path)
    assert header[0].startswith(f"-- {stem_of(path)}: ")
    for topic in ("Why now", "Assumes", "Locks", "Undone"):
        assert [line for line in header if re.match(rf"-- {topic}\b", line)], topic
    assert f"{stem_of(path)}.down.sql" in "".join(header)


@pytest.mark.parametrize("path", [step[0] for step in DOWNS], ids=stem_of)
def test_header_of_a_down_step_says_what_it_undoes_and_with_which_locks(path: Path) -> None:
    header = header_of(path)
    assert stem_of(path) in header[0]
    assert [line for line in header if re.match(r"-- Locks\b", line)]


def header_of(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return lines[:end]


@pytest.mark.parametrize("path", [path for step in (*UPS, *DOWNS) for path in step], ids=name_of)
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


def test_the_containers_requirements_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[a-z-]+", wanted)[0] for wanted in project["dependencies"]}  # type: ignore[index]
    pinned = re.findall(r"^([a-z-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert names - {*pinned} == set()


# The rooms of src/usage_rollup, and one for whole upgrades.
ROOMS = {"session", "runner", "hourly", "reports", "schema", "commands", "stories"}
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def test_every_test_file_lies_in_a_room_or_on_the_ground() -> None:
    assert len(TEST_FILES) > 30
    places = {path: path.relative_to(ROOT / "tests").parent.as_posix() for path in TEST_FILES}
    assert [name_of(path) for path, place in places.items() if place not in ROOMS | {"."}] == []


@pytest.mark.parametrize("path", [*TEST_FILES, ROOT / "tests" / "conftest.py"], ids=name_of)
def test_a_test_file_imports_no_other_test_file(path: Path) -> None:
    # What two of them need lies in tests/support.
    assert imported_test_files(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "from tests.runner.test_adoption import record",
        "from tests.hourly import test_tick",
        "import tests.test_layout",
        "from tests.conftest import ROOT",
        "from .test_tick import TICK",
        "def later():\n    from tests import conftest",
    ],
)
def test_imports_of_test_files_are_recognised(line: str) -> None:
    allowed = "import pytest\nfrom tests.support import programs\nfrom tests.support.product import event\n"
    assert imported_test_files(allowed) == []
    assert len(imported_test_files(allowed + line)) == 1


def imported_test_files(source: str) -> list[str]:
    """Return the modules that a test file imports from tests/, other than those of tests/support."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            place = "." * node.level + (node.module or "")
            found += [f"{place}.{alias.name}" for alias in node.names]
    return [name for name in found if re.match(r"\.|tests\.(?!support\.)", name)]
