"""One migration run at a time, and none that trusts what it read before its turn came."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import psycopg
import pytest

from tests.support.database import ROOT, Database, MakeDatabase
from tests.support.deadline import DEADLINE_S
from tests.support.processes import finish, read_until
from tests.support.product import wait_until
from tests.support.roles import MakeRole, give_everything_to
from tests.support.sessions import is_idle
from tests.support.v034 import V034_STEMS
from tests.support.walks import (
    advisory_locks,
    blocked_at,
    committed_months,
    runners,
    slices,
    wait_until_blocked,
    write_history,
)
from usage_rollup.contract import STEMS
from usage_rollup.errors import LockBusy
from usage_rollup.session import advisory_lock

pytestmark = pytest.mark.process

RUN = 7244554146635925501
VERSIONS = ROOT / "alembic" / "versions"


def hold_run_lock(
    database: Database, application: str = "the Go runner"
) -> psycopg.Connection[tuple[object]]:
    holder = database.connect(autocommit=True, application_name=application)
    assert holder.execute("SELECT pg_try_advisory_lock(%s)", (RUN,)).fetchone() == (True,)
    return holder


def wait_until_polling(database: Database, count: int = 1) -> None:
    wait_until(
        lambda: (
            database.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'usage-rollup' AND state = 'idle'"
                " AND query LIKE '%pg_try_advisory_lock%'"
            )
            == count
            == runners(database)
        ),
        f"{count} runners ask for the lock",
    )


def test_eight_runners_started_together_all_succeed_and_walk_once(v034: Database) -> None:
    months = write_history(v034)
    holder = hold_run_lock(v034)
    processes = [v034.spawn("alembic", "upgrade", "head") for _ in range(8)]
    wait_until(lambda: runners(v034) == 8, "all eight are connected")
    holder.close()
    outputs = [finish(process) for process in processes]
    together = "\n".join(outputs)
    assert together.count("usage rows to walk") == 1
    assert slices(together) == len(months)
    for step in ("097 -> 100", "100 -> 101", "101 -> 102", "102 -> 103", "103 -> 104"):
        assert together.count(f"Running upgrade {step}") == 1
    # All by one of them: the others found nothing left to do.
    assert sorted(map(slices, outputs)) == [0] * 7 + [len(months)]
    assert v034.revision == "104"
    assert v034.ledger == {*V034_STEMS, *STEMS.values()}
    assert v034.value("SELECT sum(event_count) FROM task_usage_hourly") == 400
    assert advisory_locks(v034) == []


@pytest.mark.parametrize("command", [("upgrade", "head"), ("downgrade", "101"), ("stamp", "103")])
def test_whoever_changes_the_database_waits_for_the_lock(at_102: Database, command: tuple[str, str]) -> None:
    before = at_102.catalog()
    holder = hold_run_lock(at_102)
    process = at_102.spawn("alembic", *command)
    wait_until_polling(at_102)
    assert process.poll() is None
    assert at_102.catalog() == before
    # Held by the other, not queued for by this one.
    assert advisory_locks(at_102) == [RUN]
    holder.execute("SELECT pg_advisory_unlock(%s)", (RUN,))
    finish(process)
    assert at_102.catalog() != before


@pytest.mark.parametrize("command", [("current",), ("history",), ("heads",), ("show", "103")])
def test_whoever_only_reads_does_not_wait_for_the_lock(at_102: Database, command: tuple[str, ...]) -> None:
    hold_run_lock(at_102)
    result = at_102.alembic(*command)
    assert result.returncode == 0, result.stdout
    assert "10" in result.stdout


def test_deadline_ends_the_wait_and_names_the_holder(at_102: Database) -> None:
    holder = hold_run_lock(at_102, application="container seven")
    with at_102.migration_connection() as session:
        with pytest.raises(LockBusy) as caught:
            advisory_lock.acquire(session, RUN, patience_s=0.2)
        assert is_idle(session)
    message = str(caught.value)
    assert message.startswith(f"advisory lock {RUN} (migration run) was not free within 0 s; held by ")
    assert f"pid {holder.info.backend_pid} (postgres, container seven, idle since 20" in message
    assert "HINT: wait for that session, or end it: SELECT pg_terminate_backend(" in message


def test_holder_may_build_an_index_concurrently_while_a_runner_waits(at_102: Database) -> None:
    build = "CREATE INDEX CONCURRENTLY idx_by_hand ON task_usage (model)"
    holder = hold_run_lock(at_102)
    # The trap: a session blocked in pg_advisory_lock() has a snapshot that the index waits for.
    naive = at_102.spawn(at_102.server.program("psql"), at_102.url, "-c", f"SELECT pg_advisory_lock({RUN})")
    wait_until(
        lambda: at_102.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"),
        "psql waits for the lock",
    )
    holder.execute("SET deadlock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.DeadlockDetected):
        holder.execute(build)
    holder.execute("DROP INDEX idx_by_hand")
    naive.kill()
    naive.communicate()
    at_102.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    )
    # The cure.
    process = at_102.spawn("alembic", "upgrade", "head")
    wait_until_polling(at_102)
    holder.execute(build)
    holder.close()
    finish(process)
    assert at_102.revision == "104"


def test_lock_is_free_after_success(v034: Database) -> None:
    v034.upgrade()
    assert advisory_locks(v034) == []
    assert runners(v034) == 0


def test_lock_is_free_after_a_failed_hook(at_102: Database) -> None:
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    assert "lies in the future" in at_102.refused()
    wait_until(lambda: advisory_locks(at_102) == [], "the locks are free")
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    at_102.upgrade()


def test_lock_is_free_after_sigkill_and_the_next_run_resumes(at_102: Database) -> None:
    months = write_history(at_102)
    with blocked_at(at_102, months[2]):
        process = at_102.spawn("alembic", "upgrade", "head")
        wait_until_blocked(at_102)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == -signal.SIGKILL
        assert slices(output) == 2
        # Nobody told the server: its backend still waits, holding both locks.
        assert sorted(set(advisory_locks(at_102))) == [4246, RUN]
    wait_until(lambda: advisory_locks(at_102) == [], "the locks are free")
    assert committed_months(at_102)[:2] == months[:2]
    at_102.upgrade()
    assert at_102.revision == "104"


def test_next_run_waits_for_the_backend_that_a_killed_one_left_behind(at_102: Database) -> None:
    months = write_history(at_102)
    with blocked_at(at_102, months[1]):
        # A server that does not look for its clients, as on platforms where it cannot.
        blind = "-c client_connection_check_interval=0"
        killed = at_102.spawn("alembic", "upgrade", "head", PGOPTIONS=blind)
        wait_until_blocked(at_102)
        killed.kill()
        killed.communicate()
        process = at_102.spawn("alembic", "upgrade", "head")
        wait_until(lambda: runners(at_102) == 2, "the next run is connected")
    finish(process)
    assert at_102.revision == "104"


# What changes while a runner waits.


def record(session: psycopg.Connection[tuple[object]], revision: str) -> None:
    session.execute("INSERT INTO schema_migrations (version) VALUES (%s)", (STEMS[revision],))


def as_go_runner(session: psycopg.Connection[tuple[object]], revision: str) -> None:
    """Apply a step and record it, as the product's runner does: two transactions."""
    session.execute((VERSIONS / f"{STEMS[revision]}.up.sql").read_bytes())
    record(session, revision)


def test_runner_reads_ledger_and_catalog_after_its_turn_has_come(v034: Database) -> None:
    holder = hold_run_lock(v034)
    process = v034.spawn("alembic", "upgrade", "head")
    wait_until_polling(v034)
    as_go_runner(holder, "100")
    as_go_runner(holder, "101")
    # With what it could have read before, the runner would create 101's tables a second time.
    with pytest.raises(psycopg.errors.DuplicateTable):
        holder.execute((VERSIONS / f"{STEMS['101']}.up.sql").read_bytes())
    holder.close()
    output = finish(process)
    assert "adopting a database of the product's own runner at 101_task_usage_hourly_schema" in output
    assert re.findall(r"Running upgrade (\d+) -> ", output) == ["101", "102", "103"]
    assert v034.revision == "104"


def test_step_that_another_runner_records_at_the_same_moment_is_recorded_once(
    v034: Database, make_role: MakeRole
) -> None:
    app = make_role("app")
    give_everything_to(v034, app)
    # Who may only add to the ledger cannot keep others from adding.
    v034.execute("ALTER TABLE schema_migrations OWNER TO CURRENT_USER")
    v034.execute(f"GRANT SELECT, INSERT ON schema_migrations TO {app}")
    other = v034.connect()
    record(other, "100")
    process = v034.spawn("alembic", "upgrade", "100", DATABASE_URL=v034.url_of(app))
    wait_until_blocked(v034)
    other.commit()
    finish(process)
    assert v034.revision == "100"
    assert v034.ledger == {*V034_STEMS, STEMS["100"]}


def test_stem_that_another_runner_records_while_we_adopt_is_recorded_once(
    make_database: MakeDatabase,
) -> None:
    database = make_database("101")
    database.execute("DROP TABLE alembic_version")
    database.execute("DELETE FROM schema_migrations WHERE version = %s", STEMS["101"])
    other = database.connect()
    record(other, "101")
    process = database.spawn("alembic", "upgrade", "101")
    wait_until_blocked(database)
    other.commit()
    assert "Running upgrade" not in finish(process)
    assert database.revision == "101"
    assert database.ledger == {*V034_STEMS, STEMS["100"], STEMS["101"]}


def test_runner_reads_alembic_version_after_its_turn_has_come(v034: Database) -> None:
    holder = hold_run_lock(v034)
    process = v034.spawn("alembic", "upgrade", "head")
    wait_until_polling(v034)
    # A runner that got its lock elsewhere, as through a pooler that hands one session to two.
    holder.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
    for revision in ("100", "101"):
        as_go_runner(holder, revision)
    holder.execute("INSERT INTO alembic_version VALUES ('101')")
    holder.close()
    output = finish(process)
    assert "adopting" not in output
    assert re.findall(r"Running upgrade (\d+) -> ", output) == ["101", "102", "103"]


def drop_statements(stem: str) -> list[str]:
    lines = Path(VERSIONS / f"{stem}.up.sql").read_text().splitlines()
    return [line for line in lines if line.startswith("DROP ")]


@pytest.mark.parametrize(
    ("newest", "recorded"), [("103", False), ("104", True)], ids=["103, not recorded yet", "104, recorded"]
)
def test_old_go_runner_may_apply_103_between_our_walk_and_ours(
    at_102: Database, newest: str, recorded: bool
) -> None:
    months = write_history(at_102)
    # An old runner takes no lock. This one reads first, which keeps our 103 from its table locks.
    old = at_102.connect()
    old.execute("SELECT FROM task_usage_daily")
    process = at_102.spawn("alembic", "upgrade", "head")
    output = read_until(process, "waiting for table locks")
    assert "the hourly rollup matches raw usage" in output
    assert slices(output) == len(months)
    assert f"pid {old.info.backend_pid} " in output
    for revision in ("103", "104")[: 1 if newest == "103" else 2]:
        for statement in drop_statements(STEMS[revision]):
            old.execute(statement)
        if revision == "104":
            old.execute("ALTER TABLE agent_runtime DROP COLUMN timezone")
        if recorded:
            record(old, revision)
    old.commit()
    finish(process)
    assert at_102.revision == "104"
    assert at_102.ledger == {*V034_STEMS, *STEMS.values()}
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 400
