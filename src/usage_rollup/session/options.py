"""Options of a migration run: `alembic -x name=value upgrade head`, or NAME in the environment.

They travel as settings of the migrating session, where the SQL of a revision reads them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from ..errors import ConfigurationError
from . import durations


@dataclass(frozen=True)
class Option:
    """What an option may be: a pattern, and how a message shows it."""

    pattern: str
    shown: str


# Its variable is the name in capitals, its setting usage_rollup.<name>, both with underscores.
OPTIONS = {
    # 103: true keeps the legacy tables in schema legacy_usage, false drops them whatever they hold.
    "keep-legacy": Option("true|false", "true|false"),
    # The walk: sessions at once, and a rest for the server between two slices.
    "jobs": Option("[1-9][0-9]?", "1..99"),
    "sleep-between-slices": Option(durations.PATTERN, "2s"),
    # How long to wait for advisory locks and for a step's table locks.
    "lock-timeout": Option(durations.PATTERN, "30s"),
}


def settings(arguments: Mapping[str, object]) -> dict[str, str]:
    """Return the run's options as settings of a session; `arguments` win over the environment.

    Raises ConfigurationError for a name or value there is not.
    """
    variables = {name: os.environ.get(name.upper().replace("-", "_"), "") for name in OPTIONS}
    given = {name: value for name, value in variables.items() if value} | dict(arguments)
    for name, value in given.items():
        if name not in OPTIONS or not re.fullmatch(OPTIONS[name].pattern, str(value)):
            known = "; ".join(f"-x {name}={option.shown}" for name, option in OPTIONS.items())
            raise ConfigurationError(f"no such option: -x {name}={value}", hint=f"there is: {known}")
    return {_setting(name): str(value) for name, value in given.items()}


def apply(connection: sa.Connection, arguments: Mapping[str, object]) -> None:
    """Put settings() into the session and commit; raises before anything is changed."""
    for name, value in settings(arguments).items():
        connection.execute(
            sa.text("SELECT set_config(:setting, :value, false)"), {"setting": name, "value": value}
        )
    connection.commit()


def read(connection: sa.Connection, name: str) -> str | None:
    """Return what apply() put into this session, None when the option was not given."""
    value = connection.scalar(sa.text("SELECT current_setting(:setting, true)"), {"setting": _setting(name)})
    return value or None


def read_seconds(connection: sa.Connection, name: str, default_s: float) -> float:
    """Return an option that is a duration in seconds, `default_s` when it was not given."""
    value = read(connection, name)
    return default_s if value is None else durations.seconds(value, name)


def _setting(name: str) -> str:
    return f"usage_rollup.{name.replace('-', '_')}"
