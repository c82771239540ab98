"""Find the revisions and their SQL files."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from .errors import ConfigurationError


def config() -> Config:
    """Return the project's Alembic configuration: ALEMBIC_CONFIG, ./alembic.ini, or the checkout's.

    Raises ConfigurationError when there is none.
    """
    named = os.environ.get("ALEMBIC_CONFIG")
    places = [Path(named)] if named else [Path("alembic.ini"), Path(__file__).parents[2] / "alembic.ini"]
    for place in places:
        if place.is_file():
            return Config(place)
    raise ConfigurationError(
        f"no Alembic configuration at {' or '.join(map(str, places))}",
        hint="run it where alembic.ini lies, or name that file in ALEMBIC_CONFIG",
    )


@cache
def scripts() -> ScriptDirectory:
    """Return the chain of revisions that config() names."""
    return ScriptDirectory.from_config(config())


def sql(revision: str, direction: str = "up") -> str:
    """Return the text of a revision's SQL file."""
    return Path(scripts().get_revision(revision).path).with_suffix(f".{direction}.sql").read_text("utf-8")
