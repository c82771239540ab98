"""What every command shares: --json, a console, exit statuses."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

# Exit statuses a script can rely on.
REFUSED = 1
USAGE = 2
DIFFERENCES = 3
TRY_AGAIN = 75  # sysexits.h EX_TEMPFAIL

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def console() -> Console:
    """Return where a person reads: folded to a terminal's width, as wide as it gets in a pipe."""
    return Console(soft_wrap=not sys.stdout.isatty())


def write_json(result: Any) -> None:
    """Print a dataclass or a mapping as one JSON object; what JSON has no word for becomes text."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        result = dataclasses.asdict(result)
    sys.stdout.write(json.dumps(result, default=str, indent=2) + "\n")
