"""Times as text: RFC 3339 in JSON. Text, because a watermark may be infinite, which no datetime is."""

from __future__ import annotations

from typing import overload


@overload
def rfc3339(text: str) -> str: ...
@overload
def rfc3339(text: None) -> None: ...


def rfc3339(text: str | None) -> str | None:
    """Return a time that PostgreSQL wrote in UTC as RFC 3339 has it: 2026-01-31T10:00:00Z.

    What is no point in time (`infinity`, a word of ours) stays as it is.
    """
    if text is None or not text.endswith("+00"):
        return text
    return text.removesuffix("+00").replace(" ", "T", 1) + "Z"
