"""The main job: one command takes a v0.3.4 database with a history to 104."""

from __future__ import annotations

import pytest

from tests.support.database import Database
from tests.support.v034 import V034_STEMS, generate_history
from usage_rollup.contract import STEMS

pytestmark = pytest.mark.server


def test_one_command_takes_a_v034_database_with_a_history_to_104(v034: Database) -> None:
    with v034.connect() as connection:
        history = generate_history(connection, 20_000)
    v034.upgrade()
    assert v034.revision == "104"
    assert v034.ledger == {*V034_STEMS, *STEMS.values()}
    assert v034.value("SELECT sum(event_count) FROM task_usage_hourly") == history.usage_rows
    assert v034.value("SELECT to_regclass('public.task_usage_daily') IS NULL")
    assert v034.value("SELECT task_usage_hourly_rollup_lag_seconds()") < 3600
