"""What the server of programs.py has imported before it forks: all that a command would import by and by."""

from __future__ import annotations

import gc
import importlib
import pkgutil
from contextlib import suppress

import usage_rollup

_LIBRARIES = (
    "alembic.config",
    "sqlalchemy.dialects.postgresql.psycopg",
    # Typer's own, which it puts off; another release of it may have others.
    "typer._adapters",
    "typer.rich_utils",
    "encodings.idna",
)
_OURS = (module.name for module in pkgutil.walk_packages(usage_rollup.__path__, "usage_rollup."))

for _name in (*_LIBRARIES, *_OURS):
    if not _name.endswith("__main__"):
        with suppress(ModuleNotFoundError):
            importlib.import_module(_name)

# Else every process copies the pages of what is there, only to look for garbage in it.
gc.collect()
gc.freeze()
