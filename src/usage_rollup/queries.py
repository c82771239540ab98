"""Read the SQL that lies beside a module: `-- name: <statement>` lines begin its statements.

A text may have gaps, written `:name` as bind parameters are. filled() closes them before the text is sent
or written into a script: inside a DO block there are no bind parameters.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
# A cast is no gap, nor is a time of day.
_GAP = re.compile(r"(?P<indent>^ +)?(?<![:\w]):(?P<name>[a-z]\w*)\b", re.MULTILINE)


def beside(module_file: str) -> dict[str, str]:
    """Return the statements of the .sql file of the same name as `module_file`, by name, without their `;`.

    Comments between a name and its statement belong to the statement.
    """
    _, *parts = _NAME.split(Path(module_file).with_suffix(".sql").read_text("utf-8"))
    return {name: text.strip().removesuffix(";") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def filled(text: str, **values: str) -> str:
    """Return `text` with each gap `:name` closed by the SQL in `values`; other gaps stay.

    What is put in a line of its own is indented as the gap was.
    """

    def close(gap: re.Match[str]) -> str:
        if gap["name"] not in values:
            return gap[0]
        value, indent = values[gap["name"]], gap["indent"] or ""
        return indent + textwrap.indent(value, indent).lstrip() if indent else value

    return _GAP.sub(close, text)


def literal(text: str) -> str:
    """Return `text` as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def array(names: Iterable[str]) -> str:
    """Return an SQL expression for an array of names in their order, in lines somebody may want to read."""
    # A name's own blanks are no place to break a line.
    items = ", ".join(literal(name).replace(" ", "\0") for name in names)
    lines = textwrap.fill(items, 110, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return f"ARRAY[\n{lines}]::text[]".replace("\0", " ")
