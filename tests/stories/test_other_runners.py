"""The product's own runner goes past 103 on its own: our next run proves the rollup, mends it, or says so."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import drop_legacy, drop_runtime_timezone, record, taken_by_go_to
from tests.support.later_release import apply_later_release
from tests.support.oracle import differing_hours
from tests.support.product import World, event, small_world, utc, wait_until
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import row_versions, run_hook, wrong_hours
from tests.support.shapes import make_products
from tests.support.walks import advisory_locks, runners
from usage_rollup.contract import STEMS
from usage_rollup.hourly import before_adoption, slices
from usage_rollup.session.options import Options

STAMP = "UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp()"
LOOKED = "another runner went past 103 here: comparing the hourly rollup with raw usage"
NOT_PROVEN = "the hourly rollup is not proven after another runner went past 103"
INDEXES = (
    "SELECT count(*) FROM pg_indexes WHERE tablename = 'task_usage_hourly'"
    " AND indexname LIKE 'idx_task_usage_hourly_%_time'"
)
PLANNED = "SELECT count(*) FROM task_usage_hourly_backfill"

# How far the product's own runner went on.
AFTER = ("103", "104", "later")


def go_on(database: Database, to: str) -> None:
    """Do what the product's own runner does from 102 on, its hook included: stamp, and call nothing."""
    database.execute(STAMP)
    drop_legacy(database)
    record(database, STEMS["103"])
    if to != "103":
        drop_runtime_timezone(database)
        record(database, STEMS["104"])
    if to == "later":
        record(database, "105_issue_metadata")
        apply_later_release(database)


@pytest.fixture
def used(at_102: Database) -> tuple[Database, World]:
    """Return a database of ours at 102 with a history that is rolled up."""
    world = small_world(at_102.url)
    event(at_102.url, world, "2025-03-01 10:15+00")
    event(at_102.url, world, "2025-03-02 11:15+00", agent=2, issue=3)
    run_hook(at_102)
    return at_102, world


@pytest.mark.parametrize("to", AFTER)
def test_usage_that_go_stamped_over_is_found_and_rolled_up(used: tuple[Database, World], to: str) -> None:
    database, world = used
    event(database.url, world)
    go_on(database, to)
    # The trap: nothing is queued, and the watermark is past it.
    assert len(differing_hours(database.url)) == 1
    said = database.upgrade()
    assert LOOKED in said
    assert "hours of the rollup that differ from raw usage: 1;" in said
    assert database.revision == "104"
    assert wrong_hours(database) == []
    assert advisory_locks(database) == []


@pytest.mark.parametrize("to", AFTER)
def test_usage_stamped_over_is_found_in_an_hour_that_goes_on(used: tuple[Database, World], to: str) -> None:
    database, world = used
    event(database.url, world)
    go_on(database, to)
    # Their window works key by key: this one's hour is pending, and that does not bring the other back.
    event(database.url, world, agent=1, model="another")
    database.upgrade()
    database.execute(
        "SELECT rollup_task_usage_hourly_window(watermark_at, 'infinity') FROM task_usage_hourly_rollup_state"
    )
    assert wrong_hours(database) == []


@pytest.mark.parametrize("to", AFTER)
def test_second_upgrade_after_an_adoption_writes_nothing(used: tuple[Database, World], to: str) -> None:
    database, world = used
    event(database.url, world)
    go_on(database, to)
    database.upgrade()
    before = row_versions(database)
    assert LOOKED not in database.upgrade()
    assert row_versions(database) == before


@pytest.mark.parametrize("to", AFTER)
def test_rollup_that_is_right_is_left_alone(used: tuple[Database, World], to: str) -> None:
    database, _ = used
    go_on(database, to)
    before = row_versions(database)["task_usage_hourly"]
    said = database.upgrade()
    assert "the hourly rollup matches raw usage" in said
    assert not re.findall("WARNING (?!.*dashboards will not move)", said)
    assert row_versions(database)["task_usage_hourly"] == before


@pytest.fixture
def half_walked(at_102: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Return a database whose first walk was killed after its first slice."""
    world = small_world(at_102.url)
    with at_102.connect() as connection:
        for day in range(60):
            event(connection, world, utc(2025, 1, 1, 7) + timedelta(days=day))
    # It is older than the triggers.
    at_102.execute("TRUNCATE task_usage_hourly_invalidation")
    monkeypatch.setattr(slices, "SLICE_ROWS", 20)
    with at_102.migration_connection() as session:
        slices.plan(session)
        assert slices.walk_next(session) is not None
    assert at_102.value(INDEXES) == 0
    assert at_102.value(PLANNED) > 1
    return at_102


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("to", ["103", "104"])
def test_overtaken_walk_is_finished_where_our_window_is_installed(
    half_walked: Database, to: str, jobs: str
) -> None:
    go_on(half_walked, to)
    assert half_walked.value(
        "SELECT watermark_at > now() - interval '1 min' FROM task_usage_hourly_rollup_state"
    )
    said = half_walked.upgrade(JOBS=jobs)
    assert "finishing the backfill that another runner has overtaken" in said
    assert (half_walked.value(INDEXES), half_walked.value(PLANNED)) == (4, 0)
    assert wrong_hours(half_walked) == []
    assert "none unfinished" in half_walked.usage_rollup("status").stdout


def test_overtaken_walk_is_given_up_under_a_later_window(half_walked: Database) -> None:
    go_on(half_walked, "later")
    differing = len(differing_hours(half_walked.url))
    assert differing > 24
    said = half_walked.upgrade()
    assert (half_walked.value(INDEXES), half_walked.value(PLANNED)) == (4, 0)
    assert f"{NOT_PROVEN}: hours of it that differ from raw usage: {differing}," in said
    assert "`usage-rollup backfill --repair`" in said
    assert half_walked.revision == "104"
    mended = half_walked.usage_rollup("backfill", "--repair")
    assert mended.returncode == 0, mended.stderr
    assert wrong_hours(half_walked) == []


# What it would have walked is below the watermark: only a repair comes there.
@pytest.mark.parametrize(("command", "status"), [(("backfill",), 1), (("backfill", "--repair"), 0)])
def test_backfill_forgets_a_walk_that_was_overtaken_and_adopted_before(
    half_walked: Database, command: tuple[str, ...], status: int
) -> None:
    go_on(half_walked, "later")
    half_walked.execute("UPDATE alembic_version SET version_num = '104'")
    assert "interrupted" in half_walked.usage_rollup("status").stdout
    result = half_walked.usage_rollup(*command)
    assert result.returncode == status, result.stderr
    assert (half_walked.value(INDEXES), half_walked.value(PLANNED)) == (4, 0)
    assert "none unfinished" in half_walked.usage_rollup("status").stdout
    half_walked.usage_rollup("backfill", "--repair")


@pytest.fixture(params=["D", "E"])
def products(head: Database, request: pytest.FixtureRequest) -> Database:
    """Return a database that only the product's own runner migrated, stamped over forty hours of usage."""
    world = small_world(head.url)
    make_products(head, later=request.param == "E")
    with head.connect() as connection:
        for hour in range(40):
            event(connection, world, utc(2025, 1, 10) + timedelta(hours=hour))
    head.execute(STAMP)
    return head


def lost_hours(database: Database) -> int:
    """Count hours of raw usage without any bucket; that the others are right, other tests hold."""
    count: int = database.value(
        "SELECT count(DISTINCT date_trunc('hour', created_at)) FROM task_usage"
        " WHERE date_trunc('hour', created_at) NOT IN (SELECT bucket_hour FROM task_usage_hourly)"
    )
    return count


def test_more_hours_than_their_window_can_do_at_start_up_are_said_with_the_command(
    products: Database,
) -> None:
    said = products.upgrade()
    assert (
        f"{NOT_PROVEN}: hours of it that differ from raw usage: 40, more than the product's window is given"
        in said
    )
    assert products.revision == "104"
    assert lost_hours(products) == 40
    command = re.search(r"mended by `(usage-rollup [^`]*)`", said)
    assert command is not None
    mended = products.usage_rollup(*command[1].split()[1:])
    assert mended.returncode == 0, mended.stderr
    assert lost_hours(products) == 0


def test_a_few_hours_are_recomputed_by_their_window(products: Database) -> None:
    products.execute("DELETE FROM task_usage WHERE created_at >= '2025-01-11 00:00+00'")
    products.execute("TRUNCATE task_usage_hourly_dirty")
    assert lost_hours(products) == before_adoption.MOST_HOURS
    assert "hours of the rollup that differ from raw usage: 24;" in products.upgrade()
    assert lost_hours(products) == 0


def test_proof_leaves_neither_its_lock_nor_its_deadline_to_the_session(products: Database) -> None:
    with products.migration_connection() as session:
        before_adoption.prove_before_adoption(session, Options())
        assert advisory_locks(products) == []
        assert session.scalar(sa.text("SHOW statement_timeout")) == "0"


def test_rollup_that_only_trails_is_left_to_the_ticks(products: Database) -> None:
    products.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    said = products.upgrade()
    assert NOT_PROVEN not in said
    assert "hours of the rollup that are not compared: 40; they wait for the next ticks" in said
    assert lost_hours(products) == 40


def test_lock_that_somebody_has_leaked_is_named_and_stops_nobody(used: tuple[Database, World]) -> None:
    database, world = used
    event(database.url, world)
    go_on(database, "104")
    holder = database.connect(autocommit=True, application_name="the other one")
    holder.execute("SELECT pg_advisory_lock(4246)")
    said = database.upgrade(LOCK_TIMEOUT="100ms")
    assert f"{NOT_PROVEN}: advisory lock 4246" in said
    assert "the other one" in said
    assert "`usage-rollup backfill --repair`" in said
    assert database.revision == "104"
    holder.close()
    assert database.usage_rollup("backfill", "--repair").returncode == 0
    assert wrong_hours(database) == []


def test_run_that_is_killed_while_it_proves_is_followed_by_one_that_proves(
    used: tuple[Database, World],
) -> None:
    database, world = used
    event(database.url, world)
    go_on(database, "104")
    holder = database.connect(autocommit=True)
    holder.execute("SELECT pg_advisory_lock(4246)")
    process = database.spawn("alembic", "upgrade", "head")
    assert process.stdout is not None
    # The last line before it waits for 4246.
    assert any(LOOKED in line for line in process.stdout)
    process.kill()
    process.communicate()
    wait_until(lambda: runners(database) == 0, "its session is gone")
    assert database.revision == "102"
    holder.close()
    assert LOOKED in database.upgrade()
    assert wrong_hours(database) == []


def test_what_the_server_refuses_is_said_and_stops_nobody(products: Database, make_role: MakeRole) -> None:
    owner = make_role("owner")
    give_everything_to(products, owner)
    products.execute(f"REVOKE TEMPORARY ON DATABASE {products.name} FROM PUBLIC")
    said = products.upgrade(DATABASE_URL=products.url_of(owner))
    assert f"{NOT_PROVEN}: the functions that compare and count usage are not in this database" in said
    assert f"GRANT TEMPORARY ON DATABASE {products.name} TO {owner}" in said
    assert products.revision == "104"


def test_watermark_in_the_future_is_said_with_its_cure(used: tuple[Database, World]) -> None:
    database, world = used
    event(database.url, world)
    go_on(database, "104")
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = '9000-01-01 00:00+00'")
    said = database.upgrade()
    assert f"{NOT_PROVEN}: the watermark of the hourly rollup lies in the future: 9000-01-01" in said
    assert wrong_hours(database) == []
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")


@pytest.mark.parametrize("to", ["102", "103"])
def test_what_our_own_103_proved_or_will_prove_is_not_proven_again(
    make_database: MakeDatabase, to: str
) -> None:
    if to == "102":
        database = taken_by_go_to(make_database, "102")
    else:
        database = make_database("103")
        drop_runtime_timezone(database)
        record(database, STEMS["104"])
    said = database.upgrade()
    assert "adopting a database" in said
    assert LOOKED not in said
