"""What preflight says of a database and what the upgrade then does: the two must agree."""

from __future__ import annotations

import re

from tests.support.catalog_snapshot import snapshot
from tests.support.database import Database
from usage_rollup.errors import Refusal
from usage_rollup.reports.preflight import preflight
from usage_rollup.session.options import Options


def refusals(database: Database, url: str | None = None, options: Options | None = None) -> list[Refusal]:
    """Return why preflight says that the upgrade would be refused."""
    options = options or Options()
    with database.migration_connection(url) as session:
        for name, value in options.settings().items():
            session.exec_driver_sql("SELECT set_config(%s, %s, false)", (name, value))
        return preflight(session, options).refusals


def both_refuse(
    database: Database, *command: str, url: str | None = None, options: Options | None = None, **extra: str
) -> list[Refusal]:
    """Return why preflight refuses, after an upgrade that refused in the same words and changed nothing."""
    found = refusals(database, url, options)
    before = snapshot(database)
    said = database.refused(*command, "upgrade", "head", DATABASE_URL=url or database.url, **extra)
    assert snapshot(database) == before
    assert said == f"FAILED: {Refusal.of(found)}\n"
    return found


def mend(database: Database, *reasons: Refusal) -> None:
    """Do what each reason's hint says first, as a superuser."""
    for reason in reasons:
        assert reason.hint is not None
        first = reason.hint.removeprefix("if nobody needs it: ").split("; or ")[0].split(", or drop")[0]
        for statement in first.split("; "):
            database.execute(statement)


def goes_through(database: Database, url: str | None = None) -> None:
    """Upgrade a database of which preflight says that it would go through; it must stand at head then."""
    assert refusals(database, url) == []
    database.upgrade(DATABASE_URL=url or database.url)
    assert database.revision == "104"


def messages(found: list[Refusal]) -> str:
    """Return what was refused, a line each."""
    return "\n".join(re.sub(r"test_[0-9a-f]+", "DATABASE", reason.message) for reason in found)
