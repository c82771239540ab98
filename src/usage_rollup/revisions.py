"""Find the revisions and their SQL files. `python -m usage_rollup.revisions` prints where alembic.ini is."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from . import streams
from .doors import ini
from .errors import ConfigurationError


def config() -> Config:
    """Return the Alembic configuration that ALEMBIC_CONFIG names, else this package's own.

    Raises ConfigurationError when that file is not there.
    """
    place = Path(os.environ.get("ALEMBIC_CONFIG") or ini())
    if not place.is_file():
        raise ConfigurationError(
            f"no Alembic configuration at {place}",
            hint="unset ALEMBIC_CONFIG, or put in it what `python -m usage_rollup.revisions` prints",
        )
    return Config(place)


@cache
def scripts() -> ScriptDirectory:
    """Return the chain of revisions that config() names."""
    return ScriptDirectory.from_config(config())


def sql_files(revision_file: str, direction: str) -> list[Path]:
    """Return what a step of a revision runs, in order: the SQL file beside it, or the parts in a folder.

    `direction` is up or down; the folder has the file's name without `.sql`, and its parts go by their names.
    """
    file = Path(revision_file).with_suffix(f".{direction}.sql")
    return [file] if file.is_file() else sorted(file.with_suffix("").glob("*.sql"))


def sql(revision: str, direction: str = "up") -> str:
    """Return the whole SQL text of a revision's step."""
    files = sql_files(scripts().get_revision(revision).path, direction)
    return "\n".join(file.read_text("utf-8") for file in files)


if __name__ == "__main__":
    streams.guard()
    sys.stdout.write(f"{ini()}\n")
    sys.exit(streams.unwritten())
