"""Databases to measure on: a history at revision 102, and two of an unusual kind."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from alembic.config import Config

from alembic import command
from benchmarks.demo import ROOT
from tests.support.server import Server
from tests.support.v034 import build_v034, generate_history

# fsync on: a slice's commit is part of what the walk costs. A quarter of the memory for buffers, as usual.
SETTINGS = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "6GB", "max_wal_size": "8GB"}

# The days after it are empty, so that a tick meets as many rows an hour whatever the size.
QUIET = timedelta(days=3)

KINDS = {
    "usual": "",
    # About ten rows a bucket, as bursts of agents make them that use few models in few projects.
    "dense": """
        UPDATE issue SET project_id = NULL;
        UPDATE task_usage AS tu SET provider = 'claude', model = 'model-' || numbered.n,
            created_at = hours + (created_at - hours) / 3
        FROM (
            SELECT id, date_bin('3 hours', created_at, 'epoch') AS hours,
                row_number() OVER (PARTITION BY task_id ORDER BY created_at) AS n
            FROM task_usage) AS numbered
        WHERE numbered.id = tu.id
    """,
    # Nearly one bucket a row: the rollup is as long as the history.
    "low aggregation": "UPDATE task_usage SET model = model || '-' || left(md5(id::text), 3)",
    # Somebody corrected everything on one day.
    "mass correction": "UPDATE task_usage SET updated_at = %(until)s - random() * interval '1 day'",
}


@dataclass(frozen=True)
class History:
    """A database at revision 102 that holds `rows` usage rows and nothing rolled up."""

    url: str
    name: str
    rows: int
    kind: str


def build(server: Server, rows: int, kind: str) -> History:
    """Build it anew, vacuumed and analysed; DATABASE_URL names it from here on."""
    name = f"bench_{rows}_{kind.replace(' ', '_')}"
    server.drop_database(name)
    url = server.create_database(name)
    until = datetime.now(UTC) - QUIET
    with psycopg.connect(url) as connection:
        build_v034(connection)
        generate_history(connection, rows, until=until)
        if KINDS[kind]:
            connection.execute(KINDS[kind].replace("%(until)s", f"'{until}'::timestamptz"))
    with psycopg.connect(url, autocommit=True) as connection:
        # A table that was updated throughout is compact again and in the order of time, as others are.
        connection.execute("CLUSTER task_usage USING idx_task_usage_created_at" if KINDS[kind] else "SELECT")
        connection.execute("VACUUM ANALYZE")
    use(url)
    command.upgrade(alembic(), "102")
    return History(url, name, rows, kind)


def use(url: str) -> None:
    """Point this process and its children at `url`."""
    os.environ["DATABASE_URL"] = url
    os.environ.pop("MIGRATION_DATABASE_URL", None)


def alembic() -> Config:
    """Return the project's own configuration, silent."""
    config = Config(ROOT / "alembic.ini")
    config.attributes["quiet"] = True
    return config
