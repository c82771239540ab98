"""What preflight says a backfill takes, where the window is the product's."""

from __future__ import annotations

from dataclasses import replace

import pytest

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


def test_the_products_window_takes_many_times_as_long_as_ours(products: Database) -> None:
    # The trap: a slice's aggregate reads a row once, its window all tasks of an agent for every key.
    # A machine may stall in one sample, hardly in each of three.
    ours = min((estimated(products, replace(WALK, ours=True)) for _ in range(3)), key=lambda e: e.seconds)
    theirs = estimated(products, WALK)
    assert (theirs.rows, theirs.months) == (ours.rows, ours.months)
    assert theirs.rows == 6_000
    assert theirs.seconds > 2 * ours.seconds
    assert "not by the upgrade, but by `usage-rollup backfill`" in products.usage_rollup("preflight").stdout


def test_a_sample_that_takes_too_long_tells_how_long_at_least(
    products: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "WINDOW_DEADLINE_S", 0.001)
    found = estimated(products, WALK)
    assert found.seconds > 0
    assert found.rollup_bytes > 0
