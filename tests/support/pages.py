"""The shell blocks of the project's pages: which there are, what a test changes in them, how to type them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.database import BIN, ROOT, Database
from tests.support.files import project_files


@dataclass(frozen=True)
class Change:
    """What is put in the place of a pattern before a block is typed, and why that is as good."""

    pages: tuple[str, ...]
    pattern: str
    instead: str
    why: str


README, GUIDE, CI = "README.md", "docs/upgrading.md", "docs/ci.md"
MONITORING, CONTRIBUTING, EXAMPLES = "docs/monitoring.md", "CONTRIBUTING.md", "examples/README.md"
MUTANTS = "docs/mutants.md"

CHANGES = (
    Change(
        (README, CONTRIBUTING, MUTANTS),
        r"(^|&& )make\b",
        r"\1make -n",
        "takes minutes; so the targets and their variables are there, and CI runs what they do",
    ),
    Change(
        (README,),
        r"python3 -m venv \.venv\n\.venv/bin/pip install \.\n",
        "",
        "`make build` installs the wheel in an empty environment, and runs it there",
    ),
    Change((README,), r"export DATABASE_URL=.*\n", "", "the server is a test's own"),
    Change(
        (CONTRIBUTING,),
        r"pytest (.*) --pdb",
        r"pytest --collect-only -q \1",
        "is run with the others; so it is there",
    ),
    Change(
        (README,),
        r"(usage-rollup schedule\b).*",
        r"\1 || [ $? = 1 ]",
        "without pg_cron it prints what does the same, and ends with 1",
    ),
    Change(
        (README, GUIDE),
        r"docker compose run --rm --no-deps \w+",
        "./entrypoint.sh",
        "what the image runs, without an engine; `make image-test` runs the image",
    ),
    Change(
        (GUIDE,),
        r"kubectl run .* -- ",
        "./entrypoint.sh ",
        "likewise; test_guide.py has Kubernetes' own schema look at what kubectl is given",
    ),
    Change((MONITORING,), r"/var/lib/node_exporter/", "", "a directory of the test's own"),
)

# Blocks that are tried elsewhere, by page: the file that holds each of them, and what it does with it.
ELSEWHERE = {
    CI: ("tests/stories/test_ci_docs.py", "runs them, and looks at what they find"),
    EXAMPLES: ("tests/stories/image.py", "plays each line in the image: `make image-test`"),
}


@cache
def pages() -> dict[str, dict[str, str]]:
    """Return the shell blocks of every page that has some, by the heading they stand under.

    The second under the same heading is called `<heading> 2`, and so on.
    """
    found: dict[str, dict[str, str]] = {}
    for name in project_files():
        if name.endswith(".md") and (there := _blocks((ROOT / name).read_text("utf-8"))):
            found[name] = there
    return found


def _blocks(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    times: Counter[str] = Counter()
    heading = ""
    for part in re.finditer(
        r"^#+ (?P<heading>[^\n]*)$|^```(?P<kind>\w*)\n(?P<block>.*?)^```$", text, re.M | re.S
    ):
        if part["heading"] is not None:
            heading = part["heading"]
        elif part["kind"] in {"sh", "bash", "shell", "console"}:
            times[heading] += 1
            found[heading if times[heading] == 1 else f"{heading} {times[heading]}"] = part["block"]
    return found


def changed(page: str, text: str) -> str:
    """Return a block as a test types it."""
    for change in CHANGES:
        if page in change.pages:
            text = re.sub(change.pattern, change.instead, text, flags=re.MULTILINE)
    return text


def checkout(directory: Path) -> Path:
    """Make a checkout to type in, with the environment that runs the tests; its remote is beside it.

    One change of it is not committed yet.
    """
    there = directory / "checkout"
    for name in project_files():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, there / name)
    (there / "textfile_collector").mkdir()
    for command in (
        "git init --quiet --bare ../remote.git",
        "git init --quiet",
        "git remote add origin ../remote.git",
        "git config push.autoSetupRemote true",
        "git add --all",
        "git commit --quiet --message begun",
    ):
        done = subprocess.run(
            command.split(),
            cwd=there,
            env={**os.environ, **_environment(there)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    with (there / "CHANGELOG.md").open("a") as changes:
        changes.write("\n")
    (there / ".venv").symlink_to(BIN.parent)
    return there


def typed(
    database: Database, page: str, headings: Sequence[str], there: Path
) -> subprocess.CompletedProcess[str]:
    """Type blocks of a page, one after the other, into a shell that ends at the first failure."""
    script = "\n".join(changed(page, pages()[page][heading]) for heading in headings)
    programs = Path(database.server.program("psql")).parent
    path = os.pathsep.join([str(BIN), str(programs), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=there,
        env=database.environment(PATH=path, **_environment(there)),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=600,
        check=False,
    )


def _environment(there: Path) -> dict[str, str]:
    """Return who commits, for git, and nothing that the machine or a make around the tests has set."""
    who = {"NAME": "A test", "EMAIL": "test@example.invalid"}
    people = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in who.items()}
    return {
        **people,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "MAKEFLAGS": "",
        "PRE_COMMIT_HOME": str(there.parent / "pre-commit"),
    }
