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


def estimated(database: Database, walk: Walk) -> Estimate:
    with database.migration_connection() as connection:
        reading = pipeline.reading(connection)
        with snapshot(connection):
            return estimate.estimate(connection, reading, walk)


def read_by_estimate(database: Database, walk: Walk) -> int:
    """Return how many rows of usage an estimate reads."""
    with database.migration_connection() as connection:
        reading = pipeline.reading(connection)
        with snapshot(connection):
            estimate.estimate(connection, reading, walk)
            read = connection.scalar(sa.text(ROWS_READ))
            assert isinstance(read, int)
            return read


ROWS_READ = """
    SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables
    WHERE relid = 'public.task_usage'::regclass
"""


def test_the_products_window_is_timed_as_it_reads_all_tasks_of_an_agent_for_every_key(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long they take: both samples.
    monkeypatch.setattr(estimate, "LONG_S", float("inf"))
    # The trap: a slice's aggregate reads a row once.
    more = read_by_estimate(products, WALK) - read_by_estimate(products, replace(WALK, ours=True))
    assert more > 10 * sum(estimate.WINDOW_SAMPLES)
    # What the window takes counts, and only where it is the product's.
    monkeypatch.setattr(estimate, "TIMES_WINDOW", 1e9)
    ours, theirs = estimated(products, replace(WALK, ours=True)), estimated(products, WALK)
    assert (theirs.rows, theirs.months) == (ours.rows, ours.months)
    assert theirs.rows == 6_000
    assert theirs.seconds > 1e6 > ours.seconds
    assert "not by the upgrade, but by `usage-rollup backfill`" in products.usage_rollup("preflight").stdout


def test_a_sample_that_takes_too_long_tells_how_long_at_least(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "WINDOW_DEADLINE_S", 0.001)
    found = estimated(products, WALK)
    assert found.seconds > 0
    assert found.rollup_bytes > 0
