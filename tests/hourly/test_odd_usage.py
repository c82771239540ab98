"""Absurd usage stops nobody: whatever one daemon reports, everybody else's buckets are right.

`make test` draws the same hundred worlds every time; HYPOTHESIS_PROFILE=long draws 1,000 other ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.database import Connection, Database
from tests.support.later_release import apply_later_release, later_tick
from tests.support.oracle import wrong_buckets
from tests.support.product import LONG_MODEL, World, counts, event, small_world
from tests.support.rollup import TICK, corrupt, queued, run_hook
from tests.support.shapes import make_products
from usage_rollup.errors import BackfillRefused
from usage_rollup.hourly.catch_up import repair
from usage_rollup.session.options import Options

pytestmark = pytest.mark.long

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"

# Names that any separator between them confuses, and names that no index holds.
LABELS = [
    *[("a", "b/x"), ("a/b", "x"), ("", "\u2028'\\")],
    *[("a", f"b/{LONG_MODEL[4:]}"), ("a/b", LONG_MODEL[4:]), (LONG_MODEL[:1400], LONG_MODEL[1400:])],
]
TOKENS = [0, 1, -1, 2**62, 2**63 - 1, -(2**63)]
HOUR = "2025-03-01 10:15+00"
TIMES = [
    *[HOUR, HOUR, HOUR, "2025-03-01 11:45+00"],
    *["-infinity", "infinity", "0044-03-15 10:15+00 BC", "20250-03-01 10:15+00", "2099-01-01 10:30+00"],
    *["0001-01-01 00:00+00", "9998-12-31 23:30+00"],
]


@dataclass(frozen=True)
class Row:
    """One usage row, on a task of its own."""

    label: tuple[str, str]
    tokens: int
    created_at: str
    updated_at: str | None
    agent: int
    issue: int | None


rows = st.builds(
    Row,
    st.sampled_from(LABELS),
    st.sampled_from(TOKENS),
    st.sampled_from(TIMES),
    st.sampled_from([None, *TIMES]),
    st.integers(0, 2),
    st.sampled_from([0, 1, 2, None]),
)

# What happens to the rows that are there: each takes one of them, a time, a number and a place.
CHANGES: dict[str, Callable[[UUID, str, int, World], tuple[str, list[Any]]]] = {
    "count": lambda row, at, n, w: (
        f"UPDATE task_usage SET {[*counts(0)][n % 4]} = %s WHERE id = %s",
        [TOKENS[n], row],
    ),
    "date": lambda row, at, n, w: ("UPDATE task_usage SET created_at = %s WHERE id = %s", [at, row]),
    "correct": lambda row, at, n, w: ("UPDATE task_usage SET updated_at = %s WHERE id = %s", [at, row]),
    "name": lambda row, at, n, w: (
        "UPDATE task_usage SET provider = %s, model = %s WHERE id = %s",
        [*LABELS[n], row],
    ),
    "move": lambda row, at, n, w: (
        "UPDATE agent_task_queue SET agent_id = %s WHERE id = (SELECT task_id FROM task_usage WHERE id = %s)",
        [w.agents[n % 3], row],
    ),
    "move issue": lambda row, at, n, w: (
        "UPDATE issue SET project_id = CASE WHEN project_id IS NULL THEN %s END WHERE id = %s",
        [w.projects[0], w.issues[n % 3]],
    ),
    "touch": lambda row, at, n, w: ("INSERT INTO task_usage_hourly_invalidation DEFAULT VALUES", []),
    "delete": lambda row, at, n, w: ("DELETE FROM task_usage WHERE id = %s", [row]),
}
changes = st.tuples(
    st.sampled_from(sorted(CHANGES)), st.integers(0, 20), st.sampled_from(TIMES), st.integers(0, 5)
)
worlds = st.tuples(
    st.lists(rows, min_size=1, max_size=6), st.lists(rows, max_size=3), st.lists(changes, max_size=6)
)

# Usage that nobody can store: an index row ends at 2,704 bytes; for a later release a sum does at bigint.
TOO_LONG = "length(tu.provider) + length(tu.model) > 2000"
TOO_LARGE = " OR ".join(
    f"SUM(tu.{tokens}) NOT BETWEEN -9223372036854775808 AND 9223372036854775807" for tokens in counts(0)
)
UNSTORABLE = """
SELECT date_trunc('hour', tu.created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', q.agent_id, i.project_id,
    tu.provider, left(tu.model, 20)
FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id LEFT JOIN issue i ON i.id = q.issue_id
WHERE tu.created_at >= '0001-01-01 00:00+00' AND tu.created_at < '9999-01-01 00:00+00'
GROUP BY 1, 2, 3, 4, tu.provider, tu.model HAVING {}
"""

SANE = "sane"
EMPTY = "DELETE FROM task_usage; DELETE FROM agent_task_queue; TRUNCATE task_usage_hourly"
OURS_EMPTY = (
    "TRUNCATE task_usage_hourly_invalidation, task_usage_hourly_set_aside, task_usage_hourly_backfill"
)
IS_SANE = f"model = '{SANE}'"


class Place:
    """A database that is emptied and filled again for every drawn world; two agents and one report sanely."""

    def __init__(self, database: Database, unstorable: str) -> None:
        self.database = database
        self.world = small_world(database.url)
        self._unstorable = UNSTORABLE.format(unstorable)
        self._ours = database.value("SELECT to_regclass('public.task_usage_hourly_invalidation') IS NOT NULL")

    def fill(self, history: list[Row], watermark: str) -> list[UUID]:
        """Write a history that nobody has rolled up or queued; return the ids of its rows."""
        with self.database.connect() as connection:
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute(EMPTY.encode())
            connection.execute("TRUNCATE task_usage_hourly_dirty")
            for agent in range(3):
                for at in (HOUR, "2025-03-01 11:45+00"):
                    event(connection, self.world, at, at, agent=agent, issue=None, model=SANE)
            ids = [self._write(connection, row) for row in history]
            connection.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = {watermark}")
            if self._ours:
                connection.execute(OURS_EMPTY)
        return ids

    def go_on(self, ids: list[UUID], late: list[Row], what: list[tuple[str, int, str, int]]) -> None:
        """Report and change more, each in a transaction of its own."""
        for verb, number, at, n in what:
            statement, parameters = CHANGES[verb](ids[number % len(ids)], at, n, self.world)
            self.database.execute(statement, *parameters)
        with self.database.connect() as connection:
            for row in late:
                self._write(connection, row)

    def judge(self) -> None:
        """Raise AssertionError when a bucket is wrong that could be stored."""
        wrong = set(wrong_buckets(self.database.url)) - set(self.database.execute(self._unstorable))
        assert not wrong

    def work_off(self, tick: Callable[[], object]) -> None:
        for _ in range(12):
            tick()
            if queued(self.database) == 0:
                break
        assert queued(self.database) == 0

    def repair(self) -> None:
        """Falsify what the sane ones reported; repair it, or as much of the rest as can be."""
        corrupt(self.database, IS_SANE)
        with self.database.migration_connection() as connection:
            try:
                repair(connection, Options(jobs=1))
            except BackfillRefused:
                # Only for what cannot be stored.
                if not self.database.execute(self._unstorable):
                    raise

    def _write(self, connection: Connection, row: Row) -> UUID:
        provider, model = row.label
        return event(
            connection,
            self.world,
            row.created_at,
            row.updated_at,
            agent=row.agent,
            issue=row.issue,
            tokens=row.tokens,
            provider=provider,
            model=model,
        )


Drawn = tuple[list[Row], list[Row], list[tuple[str, int, str, int]]]


def draw(live: Callable[[Drawn], None], number: int) -> None:
    """Run `live` for `number` drawn worlds."""

    @settings(
        max_examples=1_000 if LONG else number,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds)
    def run(world: Drawn) -> None:
        live(world)

    run()


def test_absurd_usage_stops_neither_walk_nor_tick_nor_repair(at_102: Database) -> None:
    place = Place(at_102, TOO_LONG)

    def live(drawn: Drawn) -> None:
        history, late, what = drawn
        ids = place.fill(history, "'epoch'")
        run_hook(at_102)
        place.judge()
        place.go_on(ids, late, what)
        place.work_off(lambda: at_102.execute(TICK))
        place.judge()
        place.repair()
        place.judge()

    draw(live, 40)


def test_absurd_usage_stops_neither_a_later_tick_nor_its_repair(head: Database) -> None:
    place = Place(apply_later_release(head), f"{TOO_LONG} OR {TOO_LARGE}")

    def live(drawn: Drawn) -> None:
        history, late, what = drawn
        ids = place.fill(history, "now() - interval '5 minutes'")
        # As our walk has left it before the later release came.
        head.execute("SELECT rollup_task_usage_hourly_range('2025-03-01', '2025-03-02')")
        place.go_on(ids, late, [*what, ("touch", 0, HOUR, 0)])
        place.work_off(lambda: later_tick(head))
        place.judge()
        place.repair()
        place.judge()

    draw(live, 40)


def test_absurd_usage_does_not_stop_a_repair_through_the_first_window(head: Database) -> None:
    place = Place(make_products(head, later=False), f"{TOO_LONG} OR {TOO_LARGE}")

    def live(drawn: Drawn) -> None:
        place.fill(drawn[0], "now() - interval '5 minutes'")
        place.repair()
        place.judge()

    draw(live, 20)


EVERYTHING = [
    Row(label, tokens, created_at, updated_at, n % 3, (0, 1, 2, None)[n % 4])
    for n, (label, tokens, created_at, updated_at) in enumerate(
        [
            *((label, 1, HOUR, HOUR) for label in LABELS),
            *((LABELS[0], tokens, HOUR, None) for tokens in TOKENS),
            *((LABELS[1], 1, at, HOUR) for at in TIMES),
            *((LABELS[2], 1, HOUR, at) for at in TIMES),
        ]
    )
]


def test_every_command_gets_through_a_database_full_of_absurd_usage(v034: Database) -> None:
    place = Place(v034, f"{TOO_LONG}")
    with v034.connect() as connection:
        for agent in range(3):
            event(connection, place.world, HOUR, HOUR, agent=agent, issue=None, model=SANE)
        for row in EVERYTHING:
            place._write(connection, row)
    v034.upgrade()
    place.judge()
    for command, status in (("tick", 0), ("verify", 0), ("status", 0), ("backfill", 0)):
        result = v034.usage_rollup(command)
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
    v034.downgrade("102")
    v034.downgrade("097")
    v034.upgrade()
    place.judge()
    corrupt(v034, IS_SANE)
    result = v034.usage_rollup("backfill", "--repair")
    assert result.returncode == 0, result.stderr
    place.judge()

    apply_later_release(v034)
    place = Place(v034, f"{TOO_LONG} OR {TOO_LARGE}")
    corrupt(v034, IS_SANE)
    for _ in range(2):
        result = v034.usage_rollup("tick")
        assert result.returncode == 0, result.stderr
    result = v034.usage_rollup("backfill", "--repair")
    assert "Traceback" not in result.stderr
    place.judge()
