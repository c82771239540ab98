"""Wheel and sdist: what they hold, and that what they install works far from the checkout."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_bytes
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement

from tests.support.database import ROOT, Database
from tests.support.deadline import DEADLINE_S
from tests.support.files import project_files
from tests.support.places import PLACE
from tests.support.v034 import generate_history
from usage_rollup.commands.app import app

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("package")]

# Other arguments than none.
ARGUMENTS = {
    "upgrade": ["head"],
    "downgrade": ["head"],
    "stamp": ["head"],
    "script": ["097:head"],
    "schedule": ["--help"],
}
COMMANDS = sorted(typer.main.get_group(app).commands)


@dataclass(frozen=True)
class Environment:
    """A virtual environment far from the checkout."""

    directory: Path

    def program(self, name: str) -> str:
        return str(self.directory / "bin" / name)

    def ini(self) -> str:
        """Return what an operator would put in ALEMBIC_CONFIG."""
        return output(self.program("python"), "-m", "usage_rollup.revisions", cwd=self.directory).strip()

    def install(self, wheel: Path) -> None:
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        here = ("--python", self.program("python"))
        output(*pip, *here, "install", "--no-index", "--no-deps", str(wheel), cwd=self.directory)

    def lend(self, needed: Requirement) -> None:
        """Link what is installed here of a requirement, and of all that it requires in turn."""
        installed = distribution(needed.name)
        assert needed.specifier.contains(installed.version), f"{needed}, and here is {installed.version}"
        (site_packages,) = self.directory.glob("lib/python*/site-packages")
        for name in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            if not (site_packages / name).exists():
                (site_packages / name).symlink_to(Path(str(installed.locate_file(name))))
        for script in installed.entry_points.select(group="console_scripts"):
            text = Path(sys.executable).with_name(script.name).read_text("utf-8")
            program = Path(self.program(script.name))
            program.write_text(text.replace(sys.executable, self.program("python"), 1), "utf-8")
            program.chmod(0o755)
        for requirement in requirements(installed.requires or [], needed.extras or {""}):
            self.lend(requirement)


def requirements(texts: Iterable[str], extras: set[str]) -> list[Requirement]:
    """Return those that hold here with any of the extras."""
    found = map(Requirement, texts)
    return [r for r in found if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)]


def output(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_environment(directory: Path) -> Environment:
    output(sys.executable, "-m", "venv", "--without-pip", str(directory), cwd=directory.parent)
    return Environment(directory)


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a sdist lies, and the wheel that was built from it by the backend that is installed."""
    directory = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT))
    output(*command, cwd=directory)
    return directory


@pytest.fixture(scope="session")
def bare(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with the wheel and what it requires; `make build` has pip fetch that."""
    environment = make_environment(tmp_path_factory.mktemp("bare") / "venv")
    environment.install(next(dist.glob("*.whl")))
    described = next(content for name, content in wheel(dist).items() if name.endswith("/METADATA"))
    for requirement in requirements(message_from_bytes(described).get_all("Requires-Dist") or [], {""}):
        environment.lend(requirement)
    return environment


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return another project's directory, with an alembic.ini that leads nowhere."""
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    return tmp_path


@pytest.fixture
def with_history(v034: Database) -> Database:
    with v034.connect() as connection:
        generate_history(connection, 200)
    return v034


def tracked(*under: str) -> dict[str, bytes]:
    """Return the files that git has or would add, by name."""
    return {name: (ROOT / name).read_bytes() for name in project_files(*under)}


def wheel(dist: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_is_the_package_with_the_revisions_inside(dist: Path) -> None:
    files = tracked("src/usage_rollup", "alembic", "alembic.ini")
    expected = {
        name.removeprefix("src/") if name.startswith("src/") else f"usage_rollup/{name}": content
        for name, content in files.items()
    }
    found = {name: content for name, content in wheel(dist).items() if ".dist-info/" not in name}
    assert found == expected
    assert {
        "usage_rollup/py.typed",
        "usage_rollup/alembic.ini",
        "usage_rollup/alembic/versions/103_drop_legacy_daily_rollups.up.sql",
        "usage_rollup/alembic/versions/102_task_usage_hourly_pipeline.up/10_tables.sql",
    } <= set(found)


def test_sdist_is_what_is_tracked(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names - {"PKG-INFO"} == set(tracked())


def test_release_under_another_tag_than_the_versions_is_refused_in_one_sentence() -> None:
    command = [sys.executable, "-m", "tests.support.release", "--tag", "v0.0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    expected = f"the tag v0.0 is not v{version('usage-rollup')}, the version in pyproject.toml\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_nothing_in_the_wheel_names_a_place_on_a_machine(dist: Path) -> None:
    assert [name for name, content in wheel(dist).items() if PLACE.search(content.decode())] == []


def test_wheel_upgrades_as_the_checkout_does_whatever_lies_in_the_current_directory(
    bare: Environment, elsewhere: Path, v034: Database, head: Database
) -> None:
    # The trap: alembic by itself takes the other project's.
    lost = v034.run(bare.program("alembic"), "upgrade", "head", cwd=elsewhere)
    assert "Path doesn't exist" in lost.stdout
    ini = bare.ini()
    assert Path(ini).is_relative_to(bare.directory)
    done = v034.run(bare.program("alembic"), "-c", ini, "upgrade", "102", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    done = v034.run(bare.program("alembic"), "upgrade", "head", cwd=elsewhere, ALEMBIC_CONFIG=ini)
    assert done.returncode == 0, done.stdout + done.stderr
    assert v034.schema() == head.schema()


def test_command_upgrades_to_the_same_catalog_as_the_checkout(
    bare: Environment, elsewhere: Path, with_history: Database, head: Database
) -> None:
    done = with_history.run(bare.program("usage-rollup"), "upgrade", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert with_history.schema() == head.schema()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_wheel_runs_on_a_real_database(
    command: str, bare: Environment, elsewhere: Path, head: Database
) -> None:
    done = head.run(bare.program("usage-rollup"), command, *ARGUMENTS.get(command, []), cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr != ""
