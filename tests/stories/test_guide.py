"""The operator's guide and `--help` name the same commands and flags."""

from __future__ import annotations

import json
import re
import shlex

import kubernetes_validate
import pytest
import typer.main

from tests.support.database import ROOT
from tests.support.examples import RESOURCES
from tests.support.pages import pages
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


def test_pod_that_kubectl_is_told_to_run_is_one_and_finds_its_secret() -> None:
    (line,) = (
        line for line in pages()["docs/upgrading.md"]["Operator's guide"].splitlines() if "kubectl" in line
    )
    words = shlex.split(line)
    name = words[2]
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("--")}
    pod = json.loads(given["--overrides"])
    (container,) = pod["spec"]["containers"]
    # A strategic merge goes by the names of containers, and kubectl names its own after the pod.
    assert (given["--override-type"], container["name"]) == ("strategic", name)
    assert container["envFrom"] == [{"secretRef": {"name": RESOURCES["Secret"]["metadata"]["name"]}}]
    container["image"] = given["--image"]
    pod["spec"]["restartPolicy"] = given["--restart"]
    kubernetes_validate.validate({**pod, "kind": "Pod", "metadata": {"name": name}}, "1.34", strict=True)
