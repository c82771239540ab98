"""Times as text: RFC 3339 in JSON, `2026-01-31 10:00:00 UTC` for people, as the SQL of our messages has it.

Text, because a watermark may be infinite, which no datetime is. To the second: nobody reads on.
"""

from __future__ import annotations

from typing import overload


@overload
def rfc3339(text: str) -> str: ...
@overload
def rfc3339(text: None) -> None: ...


def rfc3339(text: str | None) -> str | None:
    """Return a time that PostgreSQL wrote in UTC as RFC 3339 has it, to the second: 2026-01-31T10:00:00Z.

    What is no point in time (`infinity`, a word of ours) stays as it is.
    """
    if text is None or not text.endswith("+00"):
        return text
    return text.removesuffix("+00").replace(" ", "T", 1).partition(".")[0] + "Z"


# For strftime, of a time in UTC.
PEOPLE = "%Y-%m-%d %H:%M:%S UTC"


def for_people(text: str) -> str:
    """Return what rfc3339() returned as people read it: 2026-01-31 10:00:00 UTC; a word stays as it is."""
    return text.removesuffix("Z").replace("T", " ", 1) + " UTC" if text.endswith("Z") else text
