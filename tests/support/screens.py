"""Write docs/screens.md, what the commands print on a terminal of 80 columns: `make screens`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.figures import UPGRADE
from tests.support.database import ROOT, Database
from tests.support.server import Server, open_server
from tests.support.terminal import displayed, on_a_terminal
from tests.support.v034 import build_v034, generate_history

PAGE = ROOT / "docs" / "screens.md"
COLUMNS = 80
ROWS = 200_000
# What README shows: on a terminal wide enough for every line.
WIDE = 160

HEAD = f"""# Screens

Written by `make screens`: captured on a terminal of {COLUMNS} columns, on a generated history of
{ROWS:,} usage rows; the last one on one of {WIDE}. In a pipe the same facts come without colours, bars
and folding; `--json` gives them as one object.
"""


def main() -> None:
    """Tell the story of one database, from v0.3.4 to a schema that somebody has changed."""
    with open_server() as server:
        server.drop_database("multica")
        server.create_database("multica")
        database = Database(server, "multica")
        with database.connect() as connection:
            build_v034(connection)
            generate_history(connection, ROWS)
        PAGE.write_text(HEAD + "".join(story(database)) + all_at_once(server), "utf-8")
        database.end_sessions()
        server.drop_database("multica")


def all_at_once(server: Server) -> str:
    """Return the section of an upgrade without a stop, which README quotes."""
    server.drop_database("multica_at_once")
    server.create_database("multica_at_once")
    database = Database(server, "multica_at_once")
    with database.connect() as connection:
        build_v034(connection)
        generate_history(connection, ROWS)
    told = section(database, UPGRADE, "alembic upgrade head", columns=WIDE)
    server.drop_database("multica_at_once")
    return told


def story(database: Database) -> Iterator[str]:
    """Yield the sections of the page, in the order of their headings."""
    yield section(database, "Before the upgrade", "usage-rollup preflight")
    yield section(database, "Beside a running v0.3.4 server", "alembic upgrade 102")
    yield section(database, "What a backfill would walk", "usage-rollup backfill --dry-run")
    yield section(database, "The upgrade", "alembic upgrade head")
    yield section(database, "Once more", "alembic upgrade head")
    yield section(database, "What has been applied", "usage-rollup history")
    day = database.value("SELECT (current_date - 40)::text")
    database.execute("DELETE FROM task_usage_hourly WHERE bucket_hour::date IN (%s, %s::date - 1)", day, day)
    yield section(database, "Two days missing", "usage-rollup status")
    yield section(database, "As a probe", "usage-rollup status --max-lag 30m")
    yield section(database, "Which hours differ", f"usage-rollup verify --since {day}T18:00:00")
    yield section(database, "Mended", "usage-rollup backfill --repair")
    with busy(database):
        yield section(database, "Somebody else is writing", "usage-rollup backfill --lock-timeout 1s")
    database.execute("ALTER TABLE task_usage_hourly ADD note text")
    database.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly_write")
    yield section(database, "The schema is not what the revisions make", "usage-rollup check")


def section(database: Database, heading: str, command: str, *, columns: int = COLUMNS) -> str:
    """Run `command` and return its section."""
    program, *arguments = command.split()
    printed = on_a_terminal(database, *arguments, program=program, columns=columns, colours=True, JOBS="auto")
    lines = "\n".join(displayed(printed, columns))
    return f"\n## {heading}\n\n```\n$ {command}\n{lines}\n```\n"


@contextmanager
def busy(database: Database) -> Iterator[None]:
    """Have somebody else hold advisory lock 4246."""
    with database.connect(autocommit=True, application_name="somebody else") as holder:
        holder.execute("SELECT pg_advisory_lock(4246)")
        yield


if __name__ == "__main__":
    main()
