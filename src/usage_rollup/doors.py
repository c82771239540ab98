"""Say which of the two doors a message names: `alembic`, or `usage-rollup`.

Messages are written for `alembic`, which finds these revisions only where their alembic.ini lies, or where
ALEMBIC_CONFIG names it. There they stay as they are. Everywhere else they name `usage-rollup`, which carries
the revisions with it and takes the same words.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

# The first words of what both take; %s is one that SQL fills in. `alembic revision` is for who changes this
# project, in its checkout.
_SHARED = re.compile(r"\balembic(?= (?:-x\b|upgrade\b|downgrade\b|stamp\b|%s))")


def ini() -> Path:
    """Return the alembic.ini that came with this package: beside it in a wheel, above it in a checkout.

    Never one in the current directory, which may be another project's.
    """
    package = Path(__file__).resolve().parent
    installed = package / "alembic.ini"
    return installed if installed.is_file() else package.parents[1] / "alembic.ini"


@cache
def alembic_is_open() -> bool:
    """Say whether `alembic`, typed where this process runs, finds the revisions of this package."""
    with suppress(OSError):
        return os.path.samefile(os.environ.get("ALEMBIC_CONFIG") or "alembic.ini", ini())
    return False


def named(text: str) -> str:
    """Return `text` with commands that work where the reader stands."""
    return text if alembic_is_open() else _SHARED.sub("usage-rollup", text)
