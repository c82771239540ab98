"""Rows that no daemon should send, before, during and after the upgrade: they stop and blind nobody."""

from __future__ import annotations

import pytest

from tests.support.database import Database
from tests.support.go_runner import GO_102, record, run_sql
from tests.support.product import LONG_MODEL, event, small_world
from tests.support.rollup import TICK, WATERMARK, queued, wrong_hours

UNREADABLE = ("-infinity", "0044-03-15 10:00+00 BC", "20250-01-01 00:00+00", "infinity")

# Two labels that read the same with a slash between provider and model, both too long to be stored.
SAME_LABEL = (("a", f"b/{LONG_MODEL}"), ("a/b", LONG_MODEL))


def set_aside(database: Database) -> int:
    count: int = database.value("SELECT count(*) FROM task_usage_hourly_set_aside")
    return count


def test_two_buckets_whose_labels_read_the_same_are_both_set_aside(v034: Database) -> None:
    world = small_world(v034.url)
    for provider, model in SAME_LABEL:
        event(v034.url, world, "2025-03-01 10:15+00", provider=provider, model=model)
    event(v034.url, world, "2025-03-01 10:15+00")
    v034.upgrade()
    assert set_aside(v034) == 2
    assert v034.value("SELECT count(*) FROM task_usage_hourly") == 1

    # A tick meets them again, and one of them is mended.
    v034.execute("UPDATE task_usage SET model = 'short' WHERE provider = 'a'")
    v034.execute(TICK)
    assert set_aside(v034) == 1
    assert v034.value("SELECT count(*) FROM task_usage_hourly") == 2
    assert v034.usage_rollup("verify").returncode == 0


@pytest.mark.parametrize("dated", ["2099-01-01 10:15+00", "infinity"])
@pytest.mark.parametrize("column", ["updated_at", "created_at"])
def test_row_dated_in_the_future_hides_nothing_that_is_missing(
    at_102: Database, dated: str, column: str
) -> None:
    world = small_world(at_102.url)
    for number in range(3):
        event(at_102.url, world, "2025-03-01 10:15+00", model=f"m{number}")
    if column == "updated_at":
        event(at_102.url, world, "2025-03-01 10:30+00", dated)
    else:
        event(at_102.url, world, dated, None)
    at_102.execute(TICK)
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp()")
    at_102.execute("DELETE FROM task_usage_hourly WHERE model = 'm1'")

    verified = at_102.usage_rollup("verify")
    assert verified.returncode == 3, verified.stdout
    at_102.upgrade()
    assert at_102.value("SELECT count(*) FROM task_usage_hourly WHERE model = 'm1'") == 1
    assert at_102.value(f"SELECT ({WATERMARK}) <= clock_timestamp()")


def test_buckets_that_go_s_window_filed_outside_readable_years_are_removed_and_stop_nothing(
    v034: Database,
) -> None:
    world = small_world(v034.url)
    event(v034.url, world, "2025-03-01 10:15+00")
    for dated in UNREADABLE[:3]:
        event(v034.url, world, dated, None)
    v034.upgrade("101")
    v034.execute("DROP TABLE alembic_version")
    run_sql(v034, GO_102)
    record(v034, "102_task_usage_hourly_pipeline")
    for table in ("task_usage_hourly", "task_usage_hourly_dirty"):
        v034.execute(
            f"INSERT INTO {table} (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
            " SELECT dated, w.id, r.id, a.id, 'claude', 'm'"
            " FROM unnest(%s::timestamptz[]) AS dated, workspace w, agent_runtime r, agent a LIMIT 4",
            list(UNREADABLE),
        )
    unreadable = (
        "SELECT count(*) FROM task_usage_hourly WHERE bucket_hour NOT BETWEEN '0001-01-01' AND '9999-01-01'"
    )
    assert v034.value(unreadable) == 4

    for command in ("preflight", "status", "verify"):
        asked = v034.usage_rollup(command)
        assert "Traceback" not in asked.stderr, asked.stderr
        assert asked.returncode in {0, 2, 3}, (command, asked.stderr)
    printed = v034.upgrade()
    assert "4 buckets dated outside years 1-9998 are removed" in printed
    assert v034.value(unreadable) == 0
    assert queued(v034) == 0
    assert wrong_hours(v034) == []
    for command in ("status", "verify", "check"):
        asked = v034.usage_rollup(command)
        assert asked.returncode == 0, (command, asked.stdout, asked.stderr)
