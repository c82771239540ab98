"""Two pipelines under one interface: a naive one, and ours, so that one story runs on both.

The naive one is what one writes first: naive_pipeline.sql in the place of our 102, and here its hook,
its guard and its 103. Its mistakes are deliberate, and named H1 to H26 as in docs/correctness.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from tests.support.database import Database
from tests.support.horizon import rewrite_function, without_margin
from tests.support.legacy import LEGACY_TABLES
from tests.support.rollup import run_hook

T = TypeVar("T")

Session = psycopg.Connection[Any]

SQL = (Path(__file__).parent / "naive_pipeline.sql").read_bytes()


# Rows of either side that the other does not have: nothing excuses them.
_WRONG = """
WITH raw AS (
    SELECT date_trunc('hour', tu.created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS bucket_hour,
        a.workspace_id, q.runtime_id, q.agent_id, i.project_id, tu.provider, tu.model,
        SUM(tu.input_tokens)::bigint AS i, SUM(tu.output_tokens)::bigint AS o,
        SUM(tu.cache_read_tokens)::bigint AS r, SUM(tu.cache_write_tokens)::bigint AS w,
        COUNT(DISTINCT q.id) AS tasks, COUNT(*) AS events
    FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id JOIN agent a ON a.id = q.agent_id
    LEFT JOIN issue i ON i.id = q.issue_id GROUP BY 1, 2, 3, 4, 5, 6, 7
), hourly AS (
    SELECT bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model, input_tokens,
        output_tokens, cache_read_tokens, cache_write_tokens, task_count, event_count
    FROM task_usage_hourly
)
SELECT count(*) FROM ((TABLE raw EXCEPT TABLE hourly) UNION ALL (TABLE hourly EXCEPT TABLE raw)) AS wrong
"""


class NaiveRefusal(Exception):
    """What the naive guard says."""


class Pipeline(ABC):
    """The steps of a story. Every one runs in a session of its own unless one is given."""

    naive: bool

    def __init__(self, database: Database) -> None:
        self.db = database

    def expected(self, *, naive: T, ours: T) -> T:
        """Return what the story must show: the trap on one pipeline, the cure on the other."""
        return naive if self.naive else ours

    def wrong(self) -> bool:
        """Say whether anything is lost, invented or misattributed, whatever the watermark says."""
        return bool(self.db.value(_WRONG))

    def tick(self) -> int:
        rows: int = self.db.value("SELECT rollup_task_usage_hourly()")
        return rows

    def catch_up(self, session: Session | None = None) -> None:
        """Roll up everything from the watermark to now and move the watermark, as ticks do in time."""
        statement = (
            "SELECT public.rollup_task_usage_hourly_window(watermark_at, now())"
            " FROM public.task_usage_hourly_rollup_state"
        )
        stamp = "UPDATE public.task_usage_hourly_rollup_state SET watermark_at = now()"
        with session or self.db.connect() as connection:
            connection.execute(statement)
            connection.execute(stamp)

    def stands_at(self, watermark: str) -> None:
        """Put the watermark at an SQL expression."""
        self.db.execute(f"UPDATE task_usage_hourly_rollup_state SET watermark_at = {watermark}")

    def age_the_queue(self, days: int) -> None:
        for queue in self.queues():
            self.db.execute(f"UPDATE {queue} SET enqueued_at = now() - make_interval(days => {days})")

    def as_history(self) -> None:
        """Forget what is queued: the rows so far are older than the triggers."""
        for queue in self.queues():
            self.db.execute(f"DELETE FROM {queue}")

    @abstractmethod
    def queues(self) -> list[str]: ...

    @abstractmethod
    def without_margin(self) -> None:
        """Take the five minutes between clock and watermark away, which a test cannot wait for."""

    @abstractmethod
    def hook(self) -> None: ...

    @abstractmethod
    def upgrade(self) -> None:
        """Run the hook, the guard, 103 and 104."""

    @abstractmethod
    def upgrade_again_after_a_crash_between_103_and_its_ledger_row(self) -> None: ...


class Ours(Pipeline):
    naive = False

    def queues(self) -> list[str]:
        return ["task_usage_hourly_dirty", "task_usage_hourly_invalidation"]

    def without_margin(self) -> None:
        without_margin(self.db)

    def hook(self) -> None:
        run_hook(self.db)

    def upgrade(self) -> None:
        self.db.upgrade()

    def upgrade_again_after_a_crash_between_103_and_its_ledger_row(self) -> None:
        # The field's old runner could die there; ours cannot, see test_chain and test_crash_safety.
        self.db.upgrade("103")
        self.db.execute("DELETE FROM schema_migrations WHERE version = '103_drop_legacy_daily_rollups'")
        self.db.execute("UPDATE alembic_version SET version_num = '102'")
        self.db.upgrade()


class Naive(Pipeline):
    naive = True
    margin = "5 minutes"

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        database.execute(SQL.decode())

    def queues(self) -> list[str]:
        return ["task_usage_hourly_dirty"]

    def without_margin(self) -> None:
        rewrite_function(self.db, "public.rollup_task_usage_hourly()", "interval '5 minutes'", "interval '0'")
        self.margin = "0"

    def hook(self) -> None:
        """Walk the months of created_at, then stamp."""
        with self.db.connect(application_name="naive hook") as session:
            # H17: read before the lock is held, and not again.
            bounds = session.execute(
                "SELECT date_trunc('month', min(created_at)), max(created_at) FROM task_usage"
            ).fetchone()
            lag = session.execute(
                "SELECT max(COALESCE(updated_at, created_at)) - min(watermark_at) <= interval '1 hour'"
                " FROM task_usage, task_usage_hourly_rollup_state"
            ).fetchone()
            session.commit()
            # H16: no deadline, no name.
            session.execute("SELECT pg_advisory_lock(4246)")
            session.commit()
            assert bounds is not None
            assert lag is not None
            first, last = bounds
            if first is not None and not lag[0]:
                self._walk(session, first, last)
            # H1, H2: whatever was done, and however long it took.
            session.execute(
                "UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp() - %s::interval",
                [self.margin],
            )

    def _walk(self, session: Session, first: Any, last: Any) -> None:
        # H5: slices of created_at, discovery by updated_at. H15: always from the first month.
        month = first
        while month <= last:
            session.execute(
                "SELECT rollup_task_usage_hourly_window(%s, %s + interval '1 month')", [month] * 2
            )
            session.commit()
            row = session.execute("SELECT %s + interval '1 month'", [month]).fetchone()
            assert row is not None
            month = row[0]

    def upgrade(self) -> None:
        self.hook()
        self._guard()
        self._apply_103()
        self._record_103()

    def _guard(self) -> None:
        # H9: against whatever date the newest event carries. H10: by lag alone.
        passes = self.db.value(
            "SELECT NOT EXISTS (SELECT FROM task_usage) OR COALESCE((SELECT watermark_at >="
            " (SELECT max(COALESCE(updated_at, created_at)) FROM task_usage) - interval '1 hour'"
            " FROM task_usage_hourly_rollup_state WHERE id = 1), false)"
        )
        if not passes:
            raise NaiveRefusal("refusing to drop legacy daily rollups")

    def _apply_103(self) -> None:
        # H23: nobody looks what is in them. H21: one after the other, however long each waits.
        with self.db.connect() as session:
            for table in LEGACY_TABLES:
                session.execute(f"DROP TABLE {table}")

    def _record_103(self) -> None:
        # H26: a transaction of its own.
        self.db.execute("INSERT INTO schema_migrations VALUES ('103_drop_legacy_daily_rollups')")

    def upgrade_again_after_a_crash_between_103_and_its_ledger_row(self) -> None:
        self._apply_103()
        self.upgrade()
