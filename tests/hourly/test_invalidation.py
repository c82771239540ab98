"""Every change of raw usage reaches the rollup: what moved, what went, what came with an old date."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import pytest
from psycopg import errors

from tests.support.database import Connection, Database
from tests.support.deadline import DEADLINE_S
from tests.support.oracle import differing_hours
from tests.support.product import (
    COUNTS,
    World,
    counts,
    event,
    issue,
    project,
    runtime,
    small_world,
    task,
    upsert_usage,
    usage,
    wait_until,
)
from tests.support.releases import facts
from tests.support.rollup import EVERY_HOUR, QUEUED_ONLY, TICK, WATERMARK, WINDOW
from tests.support.sessions import is_blocked

pytestmark = pytest.mark.server

QUEUED = "SELECT count(*) FROM task_usage_hourly_invalidation"

# A statement that must not wait fails when it does.
DOES_NOT_WAIT = f"-c lock_timeout={DEADLINE_S:.0f}s -c statement_timeout={DEADLINE_S:.0f}s"
BOUNDED = f"-c statement_timeout={DEADLINE_S:.0f}s"

TABLES = ("task_usage", "agent_task_queue", "issue", "agent")


@dataclass(frozen=True)
class Shop(World):
    """A small world with usage in it, and more to move it to."""

    tasks: tuple[UUID, UUID, UUID, UUID]
    usages: tuple[UUID, UUID, UUID, UUID, UUID]  # the last one of the first task, too
    other_runtime: UUID  # of the first workspace; no agent lives there, one task ran there
    other_project: UUID  # of the first workspace, still without issues
    owner: UUID  # the user who owns the first runtime and its agents

    def names(self) -> dict[str, UUID]:
        """Return every id by a name that the statements of this module use."""
        lists = {
            "workspace": self.workspaces,
            "runtime": self.runtimes,
            "agent": self.agents,
            "project": self.projects,
            "issue": self.issues,
            "task": self.tasks,
            "usage": self.usages,
        }
        return {
            **{f"{name}_{number}": id_ for name, ids in lists.items() for number, id_ in enumerate(ids)},
            "other_runtime": self.other_runtime,
            "other_project": self.other_project,
            "owner": self.owner,
        }


def open_shop(db: Database) -> Shop:
    """Write four tasks with usage in three hours, roll all of it up, and check that it is right."""
    with db.connect() as connection:
        world = small_world(connection)
        other_runtime = runtime(connection, world.workspaces[0])
        row = connection.execute(
            """INSERT INTO "user" (name, email) VALUES ('owner', gen_random_uuid()::text) RETURNING id"""
        ).fetchone()
        assert row is not None
        for table, id_ in (("agent_runtime", world.runtimes[0]), ("agent", world.agents[0])):
            connection.execute(f"UPDATE {table} SET owner_id = %s WHERE id = %s", [row[0], id_])
        tasks = (
            task(connection, world.agents[0], issue_id=world.issues[0]),
            task(connection, world.agents[0], issue_id=world.issues[2]),
            task(connection, world.agents[1], other_runtime),
            task(connection, world.agents[2], issue_id=world.issues[3]),
        )
        usages = (
            usage(connection, tasks[0], "2025-03-01 10:15+00"),
            usage(connection, tasks[1], "2025-03-01 10:45+00", None),
            usage(connection, tasks[2], "2025-03-01 11:15+00"),
            usage(connection, tasks[3], "2025-03-03 12:15+00"),
            usage(connection, tasks[0], "2025-03-01 11:45+00", model="other"),
        )
        other_project = project(connection, world.workspaces[0])
        connection.commit()
        for _ in range(4):
            connection.execute(TICK)
            connection.commit()
    right(db)
    return Shop(
        **vars(world),
        tasks=tasks,
        usages=usages,
        other_runtime=other_runtime,
        other_project=other_project,
        owner=row[0],
    )


def right(db: Database, change: str = "") -> None:
    """Assert that the rollup equals raw usage, and that the oracle had nothing to excuse."""
    excuses = db.execute(
        "SELECT (SELECT count(*) FROM task_usage_hourly_invalidation),"
        " (SELECT count(*) FROM task_usage_hourly_dirty), (SELECT count(*)"
        " FROM task_usage, task_usage_hourly_rollup_state"
        " WHERE COALESCE(updated_at, created_at) >= watermark_at)"
    )
    assert excuses == [(0, 0, 0)], change
    assert differing_hours(db.url) == [], change


def pass_time(db: Database) -> None:
    """Move the watermark over what the window has rolled up, as ticks do five minutes later."""
    db.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp()")


@contextmanager
def without_triggers(connection: Connection) -> Iterator[None]:
    """Run the block without the triggers of the four tables, and roll everything back."""
    with connection.transaction(force_rollback=True):
        for table in TABLES:
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        yield


def roll_up_wrongly(connection: Connection) -> int:
    """Tick and count the hours that stay wrong, in a transaction that has not committed."""
    connection.execute(TICK)
    row = connection.execute("SELECT count(*) FROM task_usage_hourly_differences()").fetchone()
    assert row is not None
    count: int = row[0]
    return count


# One change at a time

# H11: the rows that tell where a bucket belongs go with it.
DELETIONS = {
    "delete_usage": "DELETE FROM task_usage WHERE id = %(usage_0)s",
    "delete_task": "DELETE FROM agent_task_queue WHERE id = %(task_0)s",
    "delete_task_without_issue": "DELETE FROM agent_task_queue WHERE id = %(task_2)s",
    "delete_issue": "DELETE FROM issue WHERE id = %(issue_0)s",
    "delete_project": "DELETE FROM project WHERE id = %(project_0)s",
    "delete_agent": "DELETE FROM agent WHERE id = %(agent_0)s",
    "delete_runtime_of_tasks": "DELETE FROM agent_runtime WHERE id = %(other_runtime)s",
    "delete_runtime_and_its_agents": "DELETE FROM agent WHERE runtime_id = %(runtime_0)s;"
    " DELETE FROM agent_runtime WHERE id = %(runtime_0)s",
    "delete_workspace": "DELETE FROM workspace WHERE id = %(workspace_0)s",
    "delete_agents_and_workspace": "DELETE FROM agent WHERE workspace_id = %(workspace_0)s;"
    " DELETE FROM workspace WHERE id = %(workspace_0)s",
    "delete_issues_and_workspace": "DELETE FROM issue WHERE workspace_id = %(workspace_0)s;"
    " DELETE FROM agent WHERE workspace_id = %(workspace_0)s;"
    " DELETE FROM workspace WHERE id = %(workspace_0)s",
    "delete_user_and_what_they_own": "UPDATE agent SET runtime_id = %(other_runtime)s"
    " WHERE owner_id IS NULL AND runtime_id = %(runtime_0)s;"
    " DELETE FROM agent WHERE owner_id = %(owner)s;"
    " DELETE FROM agent_runtime WHERE owner_id = %(owner)s;"
    ' DELETE FROM "user" WHERE id = %(owner)s',
}
TRUNCATIONS = {
    "truncate_usage": "TRUNCATE task_usage",
    "truncate_tasks": "TRUNCATE agent_task_queue CASCADE",
    "truncate_issues": "TRUNCATE issue CASCADE",
    "truncate_agents": "TRUNCATE agent CASCADE",
    "truncate_workspaces": "TRUNCATE workspace CASCADE",
}
# H12: the same usage under another key.
MOVES = {
    "move_issue_to_another_project": "UPDATE issue SET project_id = %(other_project)s WHERE id = %(issue_0)s",
    "move_issue_out_of_its_project": "UPDATE issue SET project_id = NULL WHERE id = %(issue_0)s",
    "move_issue_into_a_project": "UPDATE issue SET project_id = %(other_project)s WHERE id = %(issue_2)s",
    "move_task_to_another_runtime": "UPDATE agent_task_queue SET runtime_id = %(other_runtime)s"
    " WHERE id = %(task_0)s",
    "move_task_to_another_agent": "UPDATE agent_task_queue SET agent_id = %(agent_1)s WHERE id = %(task_0)s",
    "move_task_to_another_issue": "UPDATE agent_task_queue SET issue_id = %(issue_2)s WHERE id = %(task_0)s",
    "link_task_to_an_issue": "UPDATE agent_task_queue SET issue_id = %(issue_0)s WHERE id = %(task_2)s",
    "unlink_task_from_its_issue": "UPDATE agent_task_queue SET issue_id = NULL WHERE id = %(task_0)s",
    "move_agent_to_another_workspace": "UPDATE agent SET workspace_id = %(workspace_1)s"
    " WHERE id = %(agent_0)s",
    "merge_two_runtimes": "UPDATE agent_task_queue SET runtime_id = %(runtime_0)s"
    " WHERE runtime_id = %(other_runtime)s; DELETE FROM agent_runtime WHERE id = %(other_runtime)s",
    "move_task_twice": "UPDATE agent_task_queue SET agent_id = %(agent_1)s WHERE id = %(task_0)s;"
    " UPDATE agent_task_queue SET agent_id = %(agent_2)s, runtime_id = %(runtime_1)s WHERE id = %(task_0)s",
    "move_task_then_delete_where_it_was": "UPDATE agent_task_queue SET agent_id = %(agent_1)s"
    " WHERE id = %(task_0)s; DELETE FROM agent WHERE id = %(agent_0)s",
}
NEW_KEYS = {
    "move_usage_to_another_task": "UPDATE task_usage SET task_id = %(task_3)s WHERE id = %(usage_4)s",
    "rename_provider": "UPDATE task_usage SET provider = 'codex' WHERE id = %(usage_0)s",
    "rename_model": "UPDATE task_usage SET model = 'claude-opus' WHERE id = %(usage_0)s",
    "move_usage_to_another_hour": "UPDATE task_usage SET created_at = created_at + interval '2 hours'"
    " WHERE id = %(usage_0)s",
    "move_usage_to_another_year": "UPDATE task_usage SET created_at = '2019-02-03 04:05+00'"
    " WHERE id = %(usage_0)s",
    "move_usage_without_updated_at": "UPDATE task_usage SET created_at = '2019-02-03 04:05+00'"
    " WHERE id = %(usage_1)s",
}
# The same key with other sums.
CORRECTIONS = {
    "correct_tokens_without_updated_at": "UPDATE task_usage SET output_tokens = 1 WHERE id = %(usage_0)s",
    "correct_tokens_where_updated_at_is_null": "UPDATE task_usage SET input_tokens = 1"
    " WHERE id = %(usage_1)s",
    "correct_tokens_and_forget_updated_at": "UPDATE task_usage SET cache_read_tokens = 1, updated_at = NULL"
    " WHERE id = %(usage_0)s",
    "correct_tokens_with_an_older_updated_at": "UPDATE task_usage SET cache_write_tokens = 1,"
    " updated_at = '2025-03-02 00:00+00' WHERE id = %(usage_0)s",
}
OLD_DATES = {
    "insert_with_an_old_date": "INSERT INTO task_usage (task_id, model, created_at, updated_at)"
    " VALUES (%(task_0)s, 'restored', '2025-03-01 10:59+00', '2025-03-01 10:59+00')",
    "insert_with_an_old_date_only": "INSERT INTO task_usage (task_id, model, created_at, updated_at)"
    " VALUES (%(task_0)s, 'restored', '2024-02-29 10:59+00', NULL)",
    "upsert_with_an_old_date": "INSERT INTO task_usage (task_id, provider, model, updated_at) VALUES"
    " (%(task_0)s, 'claude', 'claude-sonnet-4-5', '2025-03-02') ON CONFLICT (task_id, provider, model)"
    " DO UPDATE SET input_tokens = 1, updated_at = EXCLUDED.updated_at",
}

CHANGES = {**DELETIONS, **TRUNCATIONS, **MOVES, **NEW_KEYS, **CORRECTIONS, **OLD_DATES}


def apply(connection: Connection, change: str, shop: Shop) -> None:
    # Server-side parameters take one statement at a time.
    for statement in CHANGES[change].split(";"):
        connection.execute(statement, shop.names())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(list(DELETIONS)[:6], id="deletions"),
        pytest.param(list(DELETIONS)[6:], id="deletions_of_owners"),
        pytest.param(list(TRUNCATIONS), id="truncations"),
        pytest.param(list(MOVES)[:7], id="moves"),
        pytest.param(list(MOVES)[7:], id="more_moves"),
        pytest.param(list(NEW_KEYS), id="new_keys"),
        pytest.param(list(CORRECTIONS), id="corrections"),
        pytest.param(list(OLD_DATES), id="old_dates"),
    ],
)
def test_change_is_in_the_rollup_one_tick_later(at_102: Database, changes: list[str]) -> None:
    session = at_102.connect(autocommit=True)
    for change in changes:
        shop = open_shop(at_102)
        with without_triggers(session):
            apply(session, change, shop)
            assert roll_up_wrongly(session) > 0, change
        with session.transaction():
            apply(session, change, shop)
        assert session.execute(QUEUED).fetchone() != (0,), change
        assert session.execute(TICK).fetchone() != (0,), change
        right(at_102, change)


@pytest.mark.parametrize("change", ["delete_agent", "move_agent_to_another_workspace", "truncate_usage"])
def test_change_that_is_rolled_back_leaves_nothing_queued(at_102: Database, change: str) -> None:
    shop = open_shop(at_102)
    session = at_102.connect(autocommit=True)
    with session.transaction(force_rollback=True):
        apply(session, change, shop)
        assert session.execute(QUEUED).fetchone() != (0,)
    assert at_102.value(QUEUED) == 0
    with session.transaction():
        with session.transaction(force_rollback=True):  # a savepoint
            apply(session, change, shop)
        session.execute("UPDATE workspace SET name = name")
    assert at_102.value(QUEUED) == 0
    right(at_102)


def test_copied_rows_are_in_the_rollup_one_tick_later(at_102: Database) -> None:
    shop = open_shop(at_102)
    session = at_102.connect(autocommit=True)

    def import_rows() -> None:
        columns = f"task_id, provider, model, {COUNTS}, created_at, updated_at"
        with session.cursor().copy(f"COPY task_usage ({columns}) FROM STDIN") as copy:
            for number in range(50):
                key = shop.tasks[number % 4], "codex", f"m{number}"
                created_at = f"2024-0{1 + number % 9}-01 10:15+00"
                copy.write_row((*key, *counts(number).values(), created_at, None))

    with without_triggers(session):
        import_rows()
        assert roll_up_wrongly(session) == 9
    import_rows()
    at_102.execute(TICK)
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 55
    right(at_102)


@pytest.mark.parametrize("trigger", [False, True])
def test_report_of_a_clock_that_was_set_back_is_rolled_up(at_102: Database, trigger: bool) -> None:
    shop = open_shop(at_102)
    reporter = at_102.connect()
    reporter.execute("SELECT FROM workspace")
    # What a clock set back leaves: a watermark above the now() of a report.
    pass_time(at_102)
    if not trigger:
        at_102.execute("ALTER TABLE task_usage DISABLE TRIGGER trg_tu_dirty_hourly_write")
    upsert_usage(reporter, shop.tasks[0], tokens=7)
    upsert_usage(reporter, shop.tasks[1], model="new")
    reporter.commit()
    assert at_102.value(f"SELECT max(updated_at) < ({WATERMARK}) FROM task_usage")
    at_102.execute(TICK)
    if not trigger:
        assert len(differing_hours(at_102.url)) == 2
        at_102.execute(EVERY_HOUR)
        at_102.execute("INSERT INTO task_usage_hourly_invalidation (task_id) VALUES (%s)", shop.tasks[1])
        at_102.execute(TICK)
    right(at_102)


@pytest.mark.parametrize("dated", ["2200-01-01 10:15+00", "infinity"])
@pytest.mark.parametrize("column", ["created_at", "updated_at"])
def test_event_dated_in_the_future_is_rolled_up_now_and_gone_when_it_goes(
    at_102: Database, dated: str, column: str
) -> None:
    shop = open_shop(at_102)
    insert = (
        "INSERT INTO task_usage (task_id, model, created_at, updated_at) VALUES (%s, 'future', %s, %s)",
        [shop.tasks[0], dated if column == "created_at" else "2025-03-01 10:15+00", dated],
    )
    rolled_up = "SELECT count(*) FROM task_usage_hourly WHERE model = 'future'"
    session = at_102.connect(autocommit=True)
    with without_triggers(session):
        session.execute(*insert)
        session.execute(TICK)
        assert session.execute(rolled_up).fetchone() == (0,)
    session.execute(*insert)
    at_102.execute(TICK)
    # An infinite created_at belongs to no hour.
    assert at_102.value(rolled_up) == (0 if (column, dated) == ("created_at", "infinity") else 1)
    at_102.execute("DELETE FROM task_usage WHERE model = 'future'")
    at_102.execute(TICK)
    right(at_102)


@pytest.mark.parametrize(
    "columns",
    [
        *("task_id, issue_id", "task_id, agent_id", "issue_id, agent_id"),
        *("bucket_hour, issue_id", "bucket_hour, agent_id"),
    ],
)
def test_queued_row_that_names_more_than_it_can_mean_is_refused(at_102: Database, columns: str) -> None:
    values = ["now()" if column == "bucket_hour" else "gen_random_uuid()" for column in columns.split(", ")]
    with pytest.raises(errors.CheckViolation):
        at_102.execute(f"INSERT INTO task_usage_hourly_invalidation ({columns}) VALUES ({', '.join(values)})")


# What the triggers cost the server


def test_report_as_the_server_sends_it_writes_nothing_to_the_queue(at_102: Database) -> None:
    world = small_world(at_102.url)
    reported = task(at_102.url, world.agents[0])
    pages = "SELECT pg_relation_size('task_usage_hourly_invalidation')"
    upsert_usage(at_102.url, reported)
    upsert_usage(at_102.url, reported, tokens=7)
    upsert_usage(at_102.url, reported, model="other")
    assert at_102.value("SELECT count(*) FROM task_usage_hourly_dirty") == 0
    # Not even a row that came and went.
    assert at_102.value(pages) == 0
    usage(at_102.url, reported, "2025-03-01 10:15+00", model="restored")
    assert at_102.value(QUEUED) == 1
    assert at_102.value(pages) > 0
    at_102.execute(WINDOW)
    pass_time(at_102)
    right(at_102)


def test_contract_triggers_are_those_of_the_release_and_let_the_change_through(at_102: Database) -> None:
    shop = open_shop(at_102)
    known = {
        name: definition
        for table in facts("v0.3.5")["tables"].values()
        for name, definition in (table["triggers"] or {}).items()
    }
    assert len(known) == 4
    definitions = at_102.execute(
        r"SELECT tgname, regexp_replace(pg_get_triggerdef(oid), '^CREATE TRIGGER \S+ ', '')"
        " FROM pg_trigger WHERE tgname = ANY(%s)",
        [*known],
    )
    assert dict(definitions) == known

    for statement in (
        f"UPDATE issue SET project_id = '{shop.other_project}' WHERE project_id IS NOT NULL",
        f"UPDATE agent_task_queue SET runtime_id = '{shop.other_runtime}', issue_id = NULL",
        f"UPDATE agent_task_queue SET agent_id = '{shop.agents[1]}'",
        f"UPDATE agent SET workspace_id = '{shop.workspaces[1]}' WHERE id = '{shop.agents[1]}'",
        "UPDATE task_usage SET input_tokens = 77",
    ):
        at_102.execute(statement)
    assert at_102.execute("SELECT DISTINCT runtime_id, issue_id, agent_id FROM agent_task_queue") == [
        (shop.other_runtime, None, shop.agents[1])
    ]
    assert at_102.value(
        "SELECT bool_and(project_id = %s) FROM issue WHERE project_id IS NOT NULL", shop.other_project
    )
    assert at_102.value("SELECT workspace_id FROM agent WHERE id = %s", shop.agents[1]) == shop.workspaces[1]
    assert at_102.value("SELECT bool_and(input_tokens = 77) FROM task_usage")
    at_102.execute(TICK)
    right(at_102)

    for table in ("task_usage", "agent_task_queue", "issue", "agent"):
        at_102.execute(f"DELETE FROM {table}")
        assert at_102.value(f"SELECT count(*) FROM {table}") == 0
    at_102.execute(TICK)
    right(at_102)


# A report races a move (H25)

NAIVE_PROJECT_TRIGGER = """
CREATE OR REPLACE FUNCTION enqueue_task_usage_hourly_dirty_for_issue_project() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO task_usage_hourly_dirty
        (bucket_hour, workspace_id, runtime_id, agent_id, project_id, provider, model)
    SELECT DISTINCT task_usage_hour_bucket(tu.created_at), a.workspace_id, q.runtime_id, q.agent_id,
        p.project_id, tu.provider, tu.model
    FROM task_usage tu JOIN agent_task_queue q ON q.id = tu.task_id JOIN agent a ON a.id = q.agent_id
    CROSS JOIN (VALUES (OLD.project_id), (NEW.project_id)) AS p (project_id)
    WHERE q.issue_id = OLD.id
    ON CONFLICT ON CONSTRAINT uq_task_usage_hourly_dirty_key DO UPDATE SET enqueued_at = now();
    RETURN NEW;
END
$$
"""


def test_trigger_that_queues_the_buckets_it_sees_misses_a_report_that_races_the_move(
    at_102: Database,
) -> None:
    shop = open_shop(at_102)
    reported = task(at_102.url, shop.agents[0], issue_id=shop.issues[0])
    at_102.execute(f"DROP TRIGGER trg_issue_dirty_hourly_move ON issue; {NAIVE_PROJECT_TRIGGER}")
    mover = at_102.connect()
    mover.execute("UPDATE issue SET project_id = NULL WHERE id = %s", [shop.issues[0]])
    upsert_usage(at_102.url, reported)
    at_102.execute(WINDOW)
    mover.commit()
    at_102.execute(QUEUED_ONLY)
    pass_time(at_102)
    assert len(differing_hours(at_102.url)) == 1
    at_102.execute("INSERT INTO task_usage_hourly_invalidation (task_id) VALUES (%s)", reported)
    at_102.execute(TICK)


# What moves the reported task's bucket, by another way each.
RACES = {
    "issue_to_another_project": "UPDATE issue SET project_id = %(other_project)s WHERE id = %(issue_0)s",
    "project_deleted": "DELETE FROM project WHERE id = %(project_0)s",
    "runtime_merged": "UPDATE agent_task_queue SET runtime_id = %(other_runtime)s"
    " WHERE runtime_id = %(runtime_0)s",
    "task_to_another_agent": "UPDATE agent_task_queue SET agent_id = %(agent_1)s"
    " WHERE agent_id = %(agent_0)s",
    "task_to_another_issue": "UPDATE agent_task_queue SET issue_id = %(issue_2)s"
    " WHERE issue_id = %(issue_0)s",
    "agent_to_another_workspace": "UPDATE agent SET workspace_id = %(workspace_1)s WHERE id = %(agent_0)s",
}


@pytest.mark.parametrize("move", RACES)
def test_report_that_commits_while_a_move_is_open_follows_it(at_102: Database, move: str) -> None:
    shop = open_shop(at_102)
    reported = task(at_102.url, shop.agents[0], issue_id=shop.issues[0])
    mover = at_102.connect()
    mover.execute(RACES[move], shop.names())
    reporter = at_102.connect(options=DOES_NOT_WAIT)
    upsert_usage(reporter, reported)
    reporter.commit()
    assert at_102.value(WINDOW) == 1
    mover.commit()
    at_102.execute(TICK)
    pass_time(at_102)
    right(at_102)


@pytest.mark.parametrize("move", RACES)
def test_report_that_commits_after_a_move_was_rolled_up_is_under_the_new_key(
    at_102: Database, move: str
) -> None:
    shop = open_shop(at_102)
    reported = task(at_102.url, shop.agents[0], issue_id=shop.issues[0])
    reporter = at_102.connect()
    upsert_usage(reporter, reported)
    mover = at_102.connect(autocommit=True, options=DOES_NOT_WAIT)
    mover.execute(RACES[move], shop.names())
    at_102.execute(TICK)
    watermark = at_102.value(WATERMARK)
    reporter.commit()
    assert at_102.value("SELECT max(updated_at) FROM task_usage") >= watermark
    assert at_102.value(WINDOW) == 1
    pass_time(at_102)
    right(at_102)


@pytest.mark.parametrize("first", ["the_link", "the_move"])
def test_task_linked_to_an_issue_while_the_issue_moves_ends_in_the_right_project(
    at_102: Database, first: str
) -> None:
    shop = open_shop(at_102)
    linker, mover = at_102.connect(options=DOES_NOT_WAIT), at_102.connect(options=DOES_NOT_WAIT)
    sessions = (linker, mover) if first == "the_link" else (mover, linker)
    linker.execute("UPDATE agent_task_queue SET issue_id = %s WHERE id = %s", [shop.issues[0], shop.tasks[2]])
    mover.execute("UPDATE issue SET project_id = %s WHERE id = %s", [shop.other_project, shop.issues[0]])
    for session in sessions:
        session.commit()
        at_102.execute(TICK)
    right(at_102)


def test_report_that_an_issue_deletion_waits_for_goes_with_the_issue(at_102: Database) -> None:
    shop = open_shop(at_102)
    reported = task(at_102.url, shop.agents[0], issue_id=shop.issues[0])
    reporter = at_102.connect()
    upsert_usage(reporter, reported)
    deleter = at_102.connect(autocommit=True, options=BOUNDED)
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(deleter.execute, "DELETE FROM issue WHERE id = %s", [shop.issues[0]])
        wait_until(lambda: is_blocked(at_102, deleter), "the deletion waits for the report")
        reporter.commit()
        deletion.result()
    at_102.execute(WINDOW)
    assert at_102.value("SELECT count(*) FROM task_usage WHERE task_id = %s", reported) == 0
    right(at_102)


@pytest.mark.parametrize("deleted", [True, False])
def test_report_that_waits_for_an_issue_deletion_is_refused_or_rolled_up(
    at_102: Database, deleted: bool
) -> None:
    shop = open_shop(at_102)
    reported = task(at_102.url, shop.agents[0], issue_id=shop.issues[0])
    deleter = at_102.connect()
    deleter.execute("DELETE FROM issue WHERE id = %s", [shop.issues[0]])
    reporter = at_102.connect(autocommit=True, options=BOUNDED)
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(upsert_usage, reporter, reported)
        wait_until(lambda: is_blocked(at_102, reporter), "the report waits for the deletion")
        at_102.execute(WINDOW)
        if deleted:
            deleter.commit()
            with pytest.raises(errors.ForeignKeyViolation):
                report.result()
        else:
            deleter.rollback()
            report.result()
    assert at_102.value(WINDOW) > 0
    pass_time(at_102)
    right(at_102)
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == (3 if deleted else 6)


# Nobody waits (H13)

NAIVE_USAGE_TRIGGER = (
    NAIVE_PROJECT_TRIGGER.replace("issue_project", "tu")
    .replace("WHERE q.issue_id = OLD.id", "WHERE tu.id = OLD.id")
    .replace("(OLD.project_id), (NEW.project_id)", "(NULL::uuid)")
    .replace("RETURN NEW", "RETURN OLD")
)


@pytest.mark.parametrize("trigger", ["naive", "ours"])
def test_transactions_that_touch_the_same_buckets_in_opposite_order_do_not_wait(
    head: Database, trigger: str
) -> None:
    shop = open_shop(head)
    rows = {
        (hour, number): event(head.url, shop, f"2025-03-01 {hour}:30+00", issue=None)
        for hour in (20, 21)
        for number in (1, 2)
    }
    head.execute(TICK)
    if trigger == "naive":
        head.execute(NAIVE_USAGE_TRIGGER)
    delete = "DELETE FROM task_usage WHERE id = %s"
    one, other = head.connect(options=DOES_NOT_WAIT), head.connect(options=DOES_NOT_WAIT)
    one.execute(delete, [rows[20, 1]])
    other.execute(delete, [rows[21, 1]])
    if trigger == "naive":
        # One waits for the other here; were it not for the timeout, both would, for ever.
        one.execute("SET LOCAL lock_timeout = '50ms'")
        with pytest.raises(errors.LockNotAvailable):
            one.execute(delete, [rows[21, 2]])
        return
    one.execute(delete, [rows[21, 2]])
    other.execute(delete, [rows[20, 2]])
    for session in (one, other):
        session.commit()
    head.execute(TICK)
    right(head)


def test_transaction_that_queued_something_and_idles_blocks_neither_tick_nor_writers(
    head: Database,
) -> None:
    shop = open_shop(head)
    idle = head.connect()
    for change in ("delete_usage", "move_issue_out_of_its_project", "move_task_to_another_agent"):
        apply(idle, change, shop)
    writer = head.connect(autocommit=True, options=DOES_NOT_WAIT)
    event(writer, shop, "2025-03-01 10:30+00")
    apply(writer, "correct_tokens_where_updated_at_is_null", shop)
    apply(writer, "move_agent_to_another_workspace", shop)
    assert writer.execute(TICK).fetchone() != (0,)
    assert head.value(QUEUED) == 0
    idle.commit()
    assert writer.execute(TICK).fetchone() != (0,)
    right(head)


def test_tick_that_has_not_committed_blocks_no_writer_and_misses_nothing(head: Database) -> None:
    shop = open_shop(head)
    apply_change = head.connect(autocommit=True)
    apply(apply_change, "rename_model", shop)
    apply(apply_change, "move_task_to_another_agent", shop)
    ticking = head.connect(options=DOES_NOT_WAIT)
    ticking.execute(TICK)
    writer = head.connect(autocommit=True, options=DOES_NOT_WAIT)
    for change in (
        *("correct_tokens_where_updated_at_is_null", "insert_with_an_old_date", "rename_provider"),
        *("move_task_to_another_issue", "move_agent_to_another_workspace", "delete_task"),
    ):
        apply(writer, change, shop)
    upsert_usage(writer, shop.tasks[1], tokens=7)
    ticking.commit()
    assert head.value(WINDOW) > 0
    pass_time(head)
    right(head)


def test_issue_moved_and_deleted_by_two_sessions_that_meet_in_one_project(head: Database) -> None:
    shop = open_shop(head)
    another = issue(head.url, shop.workspaces[0], shop.projects[0])
    event_task = task(head.url, shop.agents[0], issue_id=another)
    usage(head.url, event_task, "2025-03-01 10:20+00")
    head.execute(TICK)
    one, other = head.connect(options=DOES_NOT_WAIT), head.connect(options=DOES_NOT_WAIT)
    one.execute("UPDATE issue SET project_id = %s WHERE id = %s", [shop.other_project, shop.issues[0]])
    other.execute("DELETE FROM issue WHERE id = %s", [another])
    one.execute("UPDATE agent_task_queue SET agent_id = %s WHERE id = %s", [shop.agents[1], shop.tasks[1]])
    for session in (other, one):
        head.execute(TICK)
        session.commit()
    head.execute(TICK)
    right(head)


def test_change_rewrites_no_hour_it_did_not_touch(head: Database) -> None:
    shop = open_shop(head)
    versions = (
        "SELECT bucket_hour, xmin::text FROM task_usage_hourly"
        " WHERE bucket_hour <> '2025-03-01 10:00+00' ORDER BY 1"
    )
    before = head.execute(versions)
    assert len(before) == 3
    apply(head.connect(autocommit=True), "rename_model", shop)
    assert head.value(TICK) == 2
    assert head.execute(versions) == before
    right(head)
