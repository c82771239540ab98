"""What preflight says a backfill takes, where the window is the product's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from tests.support.database import Database
from tests.support.shapes import make_products
from tests.support.v034 import generate_history
from usage_rollup.hourly import pipeline
from usage_rollup.reports import estimate
from usage_rollup.reports.estimate import Estimate, Walk
from usage_rollup.session.connection import snapshot

WALK = Walk(has_state=True, unfinished=False, ours=False)


@pytest.fixture(params=[False, True], ids=["D", "E"])
def products(v034: Database, request: pytest.FixtureRequest) -> Database:
    """Return a database of the product's own runner that has a history and was never scheduled."""
    with v034.connect() as connection:
        generate_history(connection, 6_000, agents=1)
    v034.upgrade()
    v034.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    make_products(v034, later=request.param)
    v034.execute("TRUNCATE task_usage_hourly")
    return v034


ROWS_READ = """
    SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables
    WHERE relid = 'public.task_usage'::regclass
"""


def estimated(database: Database, walk: Walk) -> tuple[Estimate, int]:
    """Return an estimate, and how many rows of usage it has read."""
    with database.migration_connection() as connection:
        reading = pipeline.reading(connection)
        with snapshot(connection):
            return estimate.estimate(connection, reading, walk), connection.execute(
                sa.text(ROWS_READ)
            ).scalar_one()


def test_the_products_window_is_timed_as_it_reads_all_tasks_of_an_agent_for_every_key(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both samples, however long they take; and what the window takes counts, where it is the product's.
    monkeypatch.setattr(estimate, "LONG_S", float("inf"))
    monkeypatch.setattr(estimate, "TIMES_WINDOW", 1e9)
    ours, read_by_ours = estimated(products, replace(WALK, ours=True))
    theirs, read_by_theirs = estimated(products, WALK)
    # The trap: a slice's aggregate reads a row once.
    assert read_by_theirs - read_by_ours > 10 * sum(estimate.WINDOW_SAMPLES)
    assert (theirs.rows, theirs.months) == (ours.rows, ours.months)
    assert theirs.rows == 6_000
    assert theirs.seconds > 1e6 > ours.seconds
    assert "not by the upgrade, but by `usage-rollup backfill`" in products.usage_rollup("preflight").stdout


def test_a_sample_that_takes_too_long_tells_how_long_at_least(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "WINDOW_DEADLINE_S", 0.001)
    found, _ = estimated(products, WALK)
    assert found.seconds > 0
    assert found.rollup_bytes > 0
