"""What examples/ holds: the compose file's services, the Kubernetes file's pods, the lines of their page."""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

from tests.support.database import ROOT

EXAMPLES = ROOT / "examples"
PAGE = (EXAMPLES / "README.md").read_text("utf-8")

Mapping = dict[str, Any]

SERVICES: dict[str, Mapping] = yaml.safe_load((EXAMPLES / "compose.yaml").read_text("utf-8"))["services"]
RESOURCES: dict[str, Mapping] = {
    resource["kind"]: resource
    for resource in yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text("utf-8"))
}
PODS: dict[str, Mapping] = {
    "Job": RESOURCES["Job"]["spec"]["template"]["spec"],
    "CronJob": RESOURCES["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"],
}


# Where the database stands before each story of the page is told, and after it.
ENDS = {
    "Docker Compose": ("v034", None),
    "Small install, or stuck at 103": ("v034", "104"),
    "Large install, without downtime": ("v034", "104"),
    "Who ticks": ("head", "104"),
    "The way back to v0.3.4": ("head", "102"),
    "Kubernetes": ("v034", "104"),
}
# One that is told by building the image.
BUILDS = "The image"


def stories() -> dict[str, list[list[str]]]:
    """Return the commands of each block of the page that follows a heading, as words, by that heading."""
    found: dict[str, list[list[str]]] = {}
    for section in re.split(r"^#+ ", PAGE, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        found[section.partition("\n")[0]] = [shlex.split(line, comments=True) for line in lines]
    return found
