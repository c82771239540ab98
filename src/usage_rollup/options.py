"""Options of a migration run: `alembic -x name=value upgrade head`, or NAME in the environment.

They travel as settings of the migrating session, where the SQL of a revision reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import sqlalchemy as sa

from .errors import ConfigurationError

# Option to the values it takes. Its variable is the name in capitals, its setting usage_rollup.<name>,
# both with underscores.
OPTIONS = {
    # 103: true keeps the legacy tables in schema legacy_usage, false drops them whatever they hold.
    "keep-legacy": ("true", "false"),
}


def apply(connection: sa.Connection, arguments: Mapping[str, object]) -> None:
    """Put the run's options into the session and commit; `arguments` win over the environment.

    Raises ConfigurationError for a name or value there is not, before anything is changed.
    """
    variables = {name: os.environ.get(name.upper().replace("-", "_"), "") for name in OPTIONS}
    given = {name: value for name, value in variables.items() if value} | dict(arguments)
    for name, value in given.items():
        if name not in OPTIONS or value not in OPTIONS[name]:
            known = "; ".join(f"-x {option}={'|'.join(values)}" for option, values in OPTIONS.items())
            raise ConfigurationError(f"no such option: -x {name}={value}", hint=f"there is: {known}")
        connection.execute(
            sa.text("SELECT set_config(:setting, :value, false)"),
            {"setting": f"usage_rollup.{name.replace('-', '_')}", "value": value},
        )
    connection.commit()
