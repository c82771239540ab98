"""The proof in parallel: disjoint ranges, whole hours, one snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import sqlalchemy as sa

from tests.support.database import Database
from tests.support.product import event, small_world, utc, wait_until
from tests.support.rollup import corrupt
from usage_rollup.hourly.proof import differing_hours
from usage_rollup.session import outages

pytestmark = pytest.mark.server

HOURS = [utc(2025, 1, day, 10) for day in range(1, 21)]


@pytest.fixture
def proven(at_102: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Lend a database with a bucket in each of HOURS, right and analysed; DATABASE_URL names it."""
    world = small_world(at_102.url)
    for hour in HOURS:
        event(at_102.url, world, f"{hour:%Y-%m-%d %H}:20+00")
    at_102.usage_rollup("backfill")
    at_102.execute("ANALYZE task_usage_hourly")
    monkeypatch.setenv("DATABASE_URL", at_102.url)
    yield at_102
    assert at_102.usage_rollup("backfill", "--repair").returncode == 0


def differing(sessions: int) -> list[datetime]:
    return outages.in_session(lambda session: [*differing_hours(session, sessions)])


@pytest.mark.parametrize("sessions", [1, 2, 3, 7])
def test_every_session_finds_what_differs_in_its_range(proven: Database, sessions: int) -> None:
    assert differing(sessions) == []
    wrong = [HOURS[n] for n in (0, 7, 9, 10, 12, 19)]
    # Another measure in each.
    corrupt(proven, f"bucket_hour = ANY ('{{{','.join(map(str, wrong))}}}')")
    proven.execute("DELETE FROM task_usage_hourly WHERE bucket_hour = %s", HOURS[5])
    assert differing(sessions) == sorted([*wrong, HOURS[5]])


@pytest.mark.parametrize("minutes", [1, 30, 59])
def test_hours_are_not_cut_in_two_by_a_bucket_that_begins_within_one(proven: Database, minutes: int) -> None:
    proven.execute(
        "INSERT INTO task_usage_hourly (bucket_hour, workspace_id, runtime_id, agent_id, provider, model)"
        " SELECT bucket_hour + %s * interval '1 minute', workspace_id, runtime_id, agent_id, '', 'odd'"
        " FROM task_usage_hourly",
        minutes,
    )
    proven.execute("ANALYZE task_usage_hourly")
    alone = differing(1)
    assert len(alone) == len(HOURS)
    assert differing(2) == differing(3) == alone


def test_all_compare_what_was_there_when_the_first_began(proven: Database) -> None:
    blocked = (
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'pg_db_role_setting'::regclass AND NOT granted)"
    )

    def change_meanwhile() -> None:
        wait_until(lambda: obstacle.execute(blocked).fetchone() == (True,), "a session waits")
        obstacle.execute("UPDATE task_usage_hourly SET input_tokens = input_tokens + 1")
        obstacle.commit()

    with ThreadPoolExecutor(1) as pool, proven.connect() as obstacle:

        def compare(session: sa.Connection) -> list[datetime]:
            # Every session that opens from now on reads this catalog.
            obstacle.execute("LOCK TABLE pg_catalog.pg_db_role_setting")
            changed = pool.submit(change_meanwhile)
            found = [*differing_hours(session, 3)]
            changed.result()
            return found

        assert outages.in_session(compare) == []
    assert differing(3) == HOURS
