"""Show the main job: a v0.3.4 database with a history goes to head through the real entrypoint.

Or, with --program, through an installed `usage-rollup`, outside the checkout.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from tests.support.oracle import differing_hours
from tests.support.server import open_server
from tests.support.v034 import build_v034, generate_history

ROOT = Path(__file__).resolve().parent.parent
DATABASE = "multica_demo"

console = Console(soft_wrap=True)


def main() -> int:
    """Build, upgrade, show; exit with the upgrade's status, or 3 when the oracle finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="task_usage rows to generate")
    parser.add_argument("--keep", action="store_true", help="keep the server until Ctrl-C")
    parser.add_argument("--program", type=Path, help="an installed usage-rollup, instead of entrypoint.sh")
    options = parser.parse_args()
    command = [options.program.absolute(), "upgrade"] if options.program else [ROOT / "entrypoint.sh"]
    with open_server() as server:
        server.drop_database(DATABASE)
        url = server.create_database(DATABASE)
        console.print(f"PostgreSQL {server.version // 10000}, database {DATABASE}")
        with psycopg.connect(url) as connection:
            build_v034(connection)
            started = time.monotonic()
            history = generate_history(connection, options.rows)
            seconds = time.monotonic() - started
        console.print(
            f"a v0.3.4 database: {history.usage_rows:,} rows of usage by {history.agents} agents,"
            f" {history.since:%Y-%m-%d} to {history.until:%Y-%m-%d}, made in {seconds:.0f} s"
        )
        before = look(url)

        console.rule("usage-rollup upgrade" if options.program else "./entrypoint.sh")
        started = time.monotonic()
        environment = {
            **os.environ,
            "DATABASE_URL": url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for name in ("MIGRATION_DATABASE_URL", "ALEMBIC_CONFIG"):
            environment.pop(name, None)
        sys.stdout.flush()
        with tempfile.TemporaryDirectory() as elsewhere:
            status = subprocess.run(command, env=environment, cwd=elsewhere, check=False).returncode
        seconds = time.monotonic() - started
        console.rule()
        if status != 0:
            console.print(f"the upgrade failed with status {status}", style="red")
            return status

        differing = differing_hours(url)
        show(before, look(url), seconds, history.usage_rows, differing)
        if options.keep:
            console.print(f"\nconnect to it:   {server.program('psql')} '{url}'")
            console.print("Ctrl-C stops the server and removes the database")
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.pause()
        else:
            console.print(f"\nto keep the database and connect to it:   make demo KEEP=1 ROWS={options.rows}")
        return 3 if differing else 0


def look(url: str) -> dict[str, str]:
    """Read what the upgrade changes, in words."""
    with psycopg.connect(url, options="-c TimeZone=UTC -c search_path=public") as connection:

        def value(query: str) -> Any:
            row = connection.execute(query).fetchone()
            return row[0] if row else None

        def table(name: str, query: str) -> str:
            return str(value(query)) if value(f"SELECT to_regclass('{name}') IS NOT NULL") else "-"

        return {
            "alembic revision": table("alembic_version", "SELECT max(version_num) FROM alembic_version"),
            "ledger rows": table("schema_migrations", "SELECT count(*) FROM schema_migrations"),
            "newest in the ledger": table(
                "schema_migrations", 'SELECT max(version COLLATE "C") FROM schema_migrations'
            ),
            "legacy rollup tables": str(
                value(
                    "SELECT count(*) FROM unnest(ARRAY['task_usage_daily', 'task_usage_daily_dirty',"
                    " 'task_usage_rollup_state', 'task_usage_dashboard_daily', 'task_usage_dashboard_dirty',"
                    " 'task_usage_dashboard_rollup_state']) AS t WHERE to_regclass(t) IS NOT NULL"
                )
            ),
            "hourly buckets": table("task_usage_hourly", "SELECT count(*) FROM task_usage_hourly"),
            "usage rows rolled up": table(
                "task_usage_hourly", "SELECT coalesce(sum(event_count), 0) FROM task_usage_hourly"
            ),
            "watermark": table(
                "task_usage_hourly_rollup_state",
                "SELECT date_trunc('second', watermark_at) FROM task_usage_hourly_rollup_state",
            ),
        }


def show(
    before: dict[str, str], after: dict[str, str], seconds: float, rows: int, differing: list[Any]
) -> None:
    """Print before and after side by side, the speed and the oracle's verdict."""
    table = Table("", "before", "after", box=None, padding=(0, 3, 0, 0))
    for name, was in before.items():
        table.add_row(name, was, after[name])
    console.print(table)
    console.print(f"whole upgrade: {seconds:.1f} s, {rows / seconds:,.0f} usage rows per second")
    if differing:
        console.print(f"oracle: {len(differing)} hours differ from raw usage", style="red")
    else:
        console.print("oracle: the hourly rollup equals the aggregate of raw usage")


if __name__ == "__main__":
    sys.exit(main())
