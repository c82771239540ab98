"""The operator's guide and `--help` name the same commands and flags."""

from __future__ import annotations

import re

import pytest
import typer.main

from tests.support.database import ROOT
from usage_rollup.commands.app import app
from usage_rollup.session.options import KNOWN

pytestmark = pytest.mark.offline

GUIDE = (ROOT / "docs" / "upgrading.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")

COMMANDS = typer.main.get_group(app).commands
FLAGS = sorted(
    (name, flag)
    for name, command in COMMANDS.items()
    for parameter in command.params
    for flag in parameter.opts
    if flag.startswith("-") and flag != "--help"
)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_command_is_in_the_guide(name: str) -> None:
    assert f"| `usage-rollup {name}` |" in GUIDE


@pytest.mark.parametrize(("name", "flag"), FLAGS, ids=" ".join)
def test_flag_is_in_the_guide(name: str, flag: str) -> None:
    assert re.search(rf"^\| `{flag}[ `]", GUIDE, re.MULTILINE), f"usage-rollup {name} {flag}"


def test_guide_names_no_command_and_no_flag_that_is_not_there() -> None:
    named = set(re.findall(r"usage-rollup ([a-z]+)", GUIDE + README))
    assert named <= set(COMMANDS)
    flags = {
        flag
        for line in (GUIDE + README).splitlines()
        if "usage-rollup " in line or line.startswith("| `--")
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
    }
    others = {"--rm", "--no-deps", "--restart", "--image", "--override-type", "--overrides"}
    assert flags - others <= {flag for _, flag in FLAGS}


@pytest.mark.parametrize("option", sorted(KNOWN))
def test_option_of_a_run_is_in_the_readme_with_its_variable(option: str) -> None:
    assert f"`{option.upper().replace('-', '_')}`, or `alembic -x {option}=…`" in README


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_command_takes_json(name: str) -> None:
    assert (name, "--json") in FLAGS
