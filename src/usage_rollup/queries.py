"""Read the SQL that lies beside a module: `-- name: <statement>` lines begin its statements."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def beside(module_file: str) -> dict[str, str]:
    """Return the statements of the .sql file of the same name as `module_file`, by name, without their `;`.

    Comments between a name and its statement belong to the statement.
    """
    _, *parts = _NAME.split(Path(module_file).with_suffix(".sql").read_text("utf-8"))
    return {name: text.strip().removesuffix(";") for name, text in zip(parts[::2], parts[1::2], strict=True)}
