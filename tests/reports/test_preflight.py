"""`usage-rollup preflight`: what it says is what the upgrade then does, and it changes nothing."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.catalog_snapshot import snapshot
from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import drop_legacy, record, run_sql, taken_by_go_to, unrecord
from tests.support.horizon import stuck_writer
from tests.support.product import event, small_world, task, upsert_usage, usage
from tests.support.roles import MakeRole, give_everything_to
from tests.support.rollup import run_hook
from tests.support.server import start_server
from tests.support.terminal import on_a_terminal
from tests.support.v034 import build_v034
from tests.support.walks import advisory_locks, slices_of, write_history
from usage_rollup import revisions
from usage_rollup.contract import STEMS
from usage_rollup.errors import REFUSED, TRY_AGAIN, BackfillRefused
from usage_rollup.reports.preflight import Preflight, preflight
from usage_rollup.session.options import Options

# Fits the index of task_usage because it compresses, and is too long for a comparison by length alone.
LONG_MODEL = "m" * 2700


def look(database: Database, url: str | None = None, options: Options | None = None) -> Preflight:
    """Look at a database in a session pinned as the runner pins its own."""
    with database.migration_connection(url) as session:
        return preflight(session, options or Options())


def refusals(found: Preflight) -> list[str]:
    """Return the refusals as a person reads them."""
    return [str(refusal) for refusal in found.refusals]


def pending(found: Preflight) -> list[str]:
    assert found.place is not None
    return [step.name for step in found.place.pending]


def rows_of(database: Database, *created: str) -> None:
    world = small_world(database.url)
    for at in created:
        event(database.url, world, at)


# ---------------------------------------------------------------------------------------------
# What would go through


def stuck(make: MakeDatabase) -> Database:
    return taken_by_go_to(make, "102")


def crashed(make: MakeDatabase) -> Database:
    database = taken_by_go_to(make, "102")
    unrecord(database, STEMS["102"])
    return database


def later(make: MakeDatabase) -> Database:
    database = taken_by_go_to(make, "104")
    record(database, "105_issue_metadata", "120_later_step")
    return database


def taken_further(make: MakeDatabase) -> Database:
    database = make("102")
    drop_legacy(database)
    record(database, STEMS["103"])
    return database


@pytest.mark.parametrize(
    ("make", "shape", "first"),
    [
        (lambda make: make("empty"), "empty", "097"),
        (lambda make: make("v034"), "v0.3.4, as the product's own runner left it", "100"),
        (stuck, "stuck before 103", "102"),
        (crashed, "stuck before 103", "102"),
        (later, "v0.3.5 or later", None),
        (taken_further, "migrated by this runner to 102_task_usage_hourly_pipeline, and since then", "104"),
        (lambda make: make("100"), "migrated by this runner to 100_user_timezone", "101"),
        (lambda make: make("102"), "migrated by this runner to 102_task_usage_hourly_pipeline", "103"),
        (lambda make: make("head"), "migrated by this runner to its newest revision", None),
    ],
    ids=["empty", "A", "B", "C", "D", "F", "at_100", "at_102", "head"],
)
def test_each_shape_is_named_with_what_the_upgrade_then_does(
    make_database: MakeDatabase, make: Callable[[MakeDatabase], Database], shape: str, first: str | None
) -> None:
    database = make(make_database)
    if shape != "empty":
        rows_of(database, "2026-01-05 10:15+00")
    before = snapshot(database)
    found = look(database)
    assert (found.refusals, found.not_seen, found.goes_through) == ([], [], True)
    assert found.place is not None
    assert found.place.shape.startswith(shape)
    assert pending(found) == [stem for revision, stem in STEMS.items() if first and revision >= first]
    assert snapshot(database) == before
    printed = database.upgrade()
    assert re.findall(r"Running upgrade \S* -> (?:\d+), (\w+):", printed) == pending(found)
    if found.place.adoption:
        assert found.place.adoption in printed


def test_locks_named_are_those_the_upgrade_takes(v034: Database) -> None:
    script = v034.alembic("upgrade", "097:head", "--sql").stdout
    taken = re.findall(r"\(\d, '([A-Z ]+)', '([\w ]+)'\)|^-- Running upgrade \S+ -> (\d+)", script, re.M)
    locks: dict[str, dict[str, list[str]]] = {}
    for mode, tables, revision in taken:
        if revision:
            locks[revision] = {}
        else:
            locks[next(reversed(locks))][mode] = tables.split()
    assert [revision for revision, modes in locks.items() if modes] == ["100", "102", "103", "104"]
    found = look(v034)
    assert found.place is not None
    assert {step.name[:3]: step.locks for step in found.place.pending} == locks
    assert revisions.scripts().get_revision("097").module.LOCK == {}


# ---------------------------------------------------------------------------------------------
# What would be refused


@pytest.mark.parametrize(
    ("spoil", "fact"),
    [
        ("DROP FUNCTION task_usage_rollup_lag_seconds", "missing function task_usage_rollup_lag_seconds"),
        ("DELETE FROM schema_migrations WHERE version >= '097'", "older than v0.3.4"),
        ("DROP TABLE schema_migrations", "no ledger"),
        ("ALTER TABLE schema_migrations RENAME version TO filename", "not the product's ledger"),
        (
            "CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('ae1027')",
            "ae1027",
        ),
        ("CREATE SCHEMA e; ALTER TABLE task_usage SET SCHEMA e", "task_usage is in schema e"),
    ],
)
def test_what_the_upgrade_refuses_is_refused_here_in_its_words(v034: Database, spoil: str, fact: str) -> None:
    run_sql(v034, spoil)
    found = look(v034)
    assert not found.goes_through
    assert any(fact in refusal for refusal in refusals(found)), found.refusals
    assert fact in v034.refused()


def test_every_reason_is_collected_and_told_by_the_upgrade_too(v034: Database) -> None:
    v034.execute("DROP FUNCTION task_usage_rollup_lag_seconds")
    v034.execute(f"ALTER DATABASE {v034.name} SET default_transaction_read_only = on")
    reasons = refusals(look(v034))
    assert len(reasons) == 2
    assert "read-only here" in reasons[0]
    assert "missing function task_usage_rollup_lag_seconds" in reasons[1]
    said = v034.refused()
    assert said.startswith("FAILED: 2 reasons to refuse; nothing was changed\n")
    assert all(line.strip() in said for reason in reasons for line in reason.splitlines())


def test_another_applications_database_is_refused(empty: Database) -> None:
    empty.execute("CREATE TABLE orders (id bigint PRIMARY KEY)")
    found = look(empty)
    assert "holds tables but no ledger" in refusals(found)[0]
    assert found.place is None


def test_standby_gets_a_verdict() -> None:
    with start_server({"max_connections": "20"}) as own:
        own.create_database("standby")
        database = Database(own, "standby")
        with database.connect() as connection:
            build_v034(connection)
        data = Path(database.value("SHOW data_directory"))
        own.stop()
        (data / "standby.signal").touch(mode=0o644)
        own.restart()
        found = look(database)
        assert refusals(found) == [
            "this server is a standby: it replays a primary and cannot be changed"
            "\nHINT: point DATABASE_URL at the primary"
        ]
        assert pending(found)[0] == "100_user_timezone"


@pytest.mark.parametrize("point", ["empty", "v034", "102", "head"])
def test_role_without_rights_gets_a_verdict(
    make_database: MakeDatabase, make_role: MakeRole, point: str
) -> None:
    database, stranger = make_database(point), make_role("stranger")
    found = look(database, database.url_of(stranger))
    assert not found.goes_through
    assert any(f"role {stranger} may not" in refusal for refusal in refusals(found)), (
        found.refusals,
        found.not_seen,
    )
    assert found.server is not None
    assert found.server.role == stranger


def test_what_may_not_be_looked_at_counts_where_the_upgrade_has_to_look_ahead(
    v034: Database, make_role: MakeRole
) -> None:
    v034.execute(f"REVOKE TEMPORARY ON DATABASE {v034.name} FROM PUBLIC")
    owner = make_role("owner")
    give_everything_to(v034, owner)
    url = v034.url_of(owner)
    (reason,) = look(v034, url).refusals
    assert reason.hint == f"GRANT TEMPORARY ON DATABASE {v034.name} TO {owner}"
    assert str(reason) in v034.refused(DATABASE_URL=url)
    # Whatever there is only in the legacy tables, it could be kept.
    v034.execute(f"GRANT CREATE ON DATABASE {v034.name} TO {owner}")
    found = look(v034, url)
    assert found.goes_through
    assert reason in found.doubts
    v034.upgrade(DATABASE_URL=url)


def test_future_watermark_is_refused_and_its_hint_cures_it(at_102: Database) -> None:
    rows_of(at_102, "2026-01-05 10:15+00")
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'infinity'")
    found = look(at_102)
    assert found.guard is not None
    assert found.guard.watermark == "infinity"
    assert "lies in the future: infinity" in refusals(found)[0]
    at_102.refused()
    at_102.execute(refusals(found)[0].split("HINT: ")[1].split(";")[0])
    assert look(at_102).goes_through
    at_102.upgrade()


def test_missing_pipeline_is_refused(at_102: Database) -> None:
    rows_of(at_102, "2026-01-05 10:15+00")
    at_102.execute("DROP TABLE task_usage_hourly_rollup_state")
    (reason,) = refusals(look(at_102))
    assert "102_task_usage_hourly_pipeline are missing: table task_usage_hourly_rollup_state" in reason
    assert reason in at_102.refused()
    at_102.downgrade("100")
    assert look(at_102).goes_through


# ---------------------------------------------------------------------------------------------
# Who is in the way


def test_reader_is_named_and_is_waited_for(v034: Database) -> None:
    reader = v034.connect(application_name="a long report")
    reader.execute("SELECT FROM issue")
    found = look(v034)
    assert found.goes_through
    assert [name.split(": ")[0] for name in found.in_the_way] == ["issue"]
    assert (
        f"pid {reader.info.backend_pid} (postgres, a long report, idle in transaction" in found.in_the_way[0]
    )
    reader.rollback()
    assert look(v034).in_the_way == []


def test_reader_of_another_database_is_in_nobodys_way(make_database: MakeDatabase) -> None:
    one, other = make_database("v034"), make_database("v034")
    # Clones of one template number their tables alike.
    assert one.value("SELECT 'issue'::regclass::oid") == other.value("SELECT 'issue'::regclass::oid")
    other.connect().execute("SELECT FROM issue")
    assert look(other).in_the_way != []
    assert look(one).in_the_way == []


def test_reader_is_in_nobodys_way_where_only_writers_are_kept_out(head: Database) -> None:
    reader = head.connect()
    reader.execute("SELECT FROM issue")
    assert look(head).in_the_way == []


def test_holder_of_4246_is_in_nobodys_way_once_103_is_done(make_database: MakeDatabase) -> None:
    database = make_database("103")
    database.connect(autocommit=True).execute("SELECT pg_advisory_lock(4246)")
    assert pending(look(database)) == [STEMS["104"]]
    assert look(database).in_the_way == []


def test_session_that_outlasts_the_patience_of_a_step_is_a_refusal(v034: Database) -> None:
    reader = v034.connect(application_name="forgotten")
    reader.execute("SELECT FROM issue")
    found = look(v034, options=Options(lock_timeout_s=0))
    assert not found.goes_through
    assert "forgotten" in refusals(found)[0]
    assert "pg_terminate_backend" in refusals(found)[0]


def test_holders_of_both_advisory_locks_are_named(at_102: Database) -> None:
    holder = at_102.connect(autocommit=True, application_name="another run")
    holder.execute("SELECT pg_advisory_lock(4246), pg_advisory_lock(7244554146635925501)")
    found = look(at_102)
    assert found.goes_through
    assert len(found.in_the_way) == 1
    assert "advisory lock 4246 (hourly rollup)" in found.in_the_way[0]
    assert "advisory lock 7244554146635925501 (migration run)" in found.in_the_way[0]
    assert "another run" in found.in_the_way[0]
    # The look itself holds none.
    assert sorted(advisory_locks(at_102)) == [4246, 7244554146635925501]


def test_prepared_transaction_that_wrote_usage_is_named_as_what_holds_the_watermark_back(
    at_102: Database,
) -> None:
    world = small_world(at_102.url)
    event(at_102.url, world, "2026-01-05 10:15+00")
    reported = task(at_102.url, world.agents[0])
    gid = f"left-{uuid.uuid4().hex}"
    with at_102.connect() as writer:
        upsert_usage(writer, reported)
        writer.execute(f"PREPARE TRANSACTION '{gid}'")
    try:
        found = look(at_102)
        assert found.guard is not None
        assert found.guard.held_back
        locked, held_back = refusals(found)
        assert gid in locked
        assert "the watermark cannot follow usage" in held_back
        assert gid in held_back
    finally:
        at_102.execute(f"ROLLBACK PREPARED '{gid}'")
    assert look(at_102).goes_through


def test_a_locked_table_is_noted_and_not_waited_for(v034: Database) -> None:
    other = v034.connect(application_name="in the way")
    other.execute("LOCK TABLE task_usage")
    found = look(v034)
    assert not found.goes_through
    assert len(found.not_seen) == 1
    assert "in the way" in found.in_the_way[0]


@pytest.mark.parametrize(
    ("point", "table"),
    [
        ("102", "alembic_version"),
        ("v034", "schema_migrations"),
        ("v034", "task_usage"),
        ("102", "task_usage"),
    ],
)
def test_who_holds_a_lock_that_hides_something_is_named_once_and_it_may_pass(
    make_database: MakeDatabase, point: str, table: str
) -> None:
    database = make_database(point)
    holder = database.connect(application_name="in the way")
    holder.execute(f"LOCK TABLE {table}".encode())
    shown = database.usage_rollup("preflight", LOCK_TIMEOUT="1s")
    assert shown.returncode == TRY_AGAIN
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("not seen: ")]
    assert (
        f": {table} was not free in time: another session holds a lock that this needs; in the way: " in line
    )
    assert (
        f"in the way: pid {holder.info.backend_pid} (postgres, in the way, idle in transaction since " in line
    )
    assert f"SELECT pg_terminate_backend({holder.info.backend_pid})" in line
    told = json.loads(database.usage_rollup("preflight", "--json").stdout)
    assert (told["goes_through"], told["status"], told["only_locks"]) == (False, TRY_AGAIN, True)
    assert len(told["not_seen"]) == 1
    upgrade = database.alembic("-x", "lock-timeout=1s", "upgrade", "head")
    assert (upgrade.returncode, f"pid {holder.info.backend_pid} " in upgrade.stdout) == (TRY_AGAIN, True)


def test_a_lock_that_outlasts_the_patience_may_pass_by_itself_and_another_reason_may_not(
    v034: Database,
) -> None:
    v034.connect().execute("LOCK TABLE task_usage")
    assert v034.usage_rollup("preflight", LOCK_TIMEOUT="0").returncode == TRY_AGAIN
    v034.execute("CREATE TABLE task_usage_hourly ()")
    for patience in ("0", "1m"):
        refused = v034.usage_rollup("preflight", "--json", LOCK_TIMEOUT=patience)
        assert (refused.returncode, json.loads(refused.stdout)["status"]) == (REFUSED, REFUSED)


# ---------------------------------------------------------------------------------------------
# What there is to do


def test_guard_passes_by_emptiness(v034: Database) -> None:
    found = look(v034)
    assert found.guard is not None
    assert found.guard.verdict == "passes: there is no usage"
    assert found.backfill is None


@pytest.mark.parametrize("point", ["v034", "102"])
def test_months_and_rows_to_backfill_are_those_the_upgrade_walks(
    make_database: MakeDatabase, point: str
) -> None:
    database = make_database(point)
    months = write_history(database, rows=600, months=4)
    found = look(database)
    assert found.goes_through
    assert found.guard is not None
    assert found.guard.verdict.startswith(
        "would refuse, until the history is rolled up: the upgrade does that"
    )
    assert found.backfill is not None
    assert list(found.backfill.months) == [f"{month:%Y-%m}" for month in months]
    assert found.backfill.rows == sum(found.backfill.months.values()) == 600
    assert found.backfill.seconds > 0
    assert "backfill: 600 usage rows to walk" in database.upgrade()
    buckets = database.value("SELECT count(*) FROM task_usage_hourly")
    assert 350 * buckets == pytest.approx(found.backfill.rollup_bytes, abs=350)


def test_only_what_the_watermark_has_not_passed_is_to_be_rolled_up(at_102: Database) -> None:
    rows_of(at_102, "2026-01-05 10:15+00", "2026-02-05 10:15+00", "2026-03-05 10:15+00")
    at_102.execute("SELECT rollup_task_usage_hourly_window('2026-01-01', '2026-02-01')")
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = '2026-02-01 00:00+00'")
    found = look(at_102)
    assert found.backfill is not None
    assert found.backfill.months == {"2026-02": 1, "2026-03": 1}


def test_unfinished_backfill_is_counted_from_where_it_stopped(at_102: Database) -> None:
    rows_of(at_102, "2026-01-05 10:15+00", "2026-02-05 10:15+00", "2026-03-05 10:15+00")
    slices_of(at_102, 1)
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', 1000)")
    at_102.execute("SELECT rollup_task_usage_hourly_slice()")
    found = look(at_102)
    assert found.guard is not None
    assert found.guard.resumes
    assert found.backfill is not None
    assert found.backfill.months == {"2026-02": 1, "2026-03": 1}


def test_repair_that_was_interrupted_is_gone_on_with_though_the_watermark_is_fresh(at_102: Database) -> None:
    rows_of(at_102, "2026-01-05 10:15+00", "2026-02-05 10:15+00")
    run_hook(at_102)
    at_102.execute("UPDATE task_usage_hourly SET input_tokens = 0 WHERE bucket_hour < '2026-02-01'")
    at_102.execute("SELECT rollup_task_usage_hourly_plan_repair(1000)")
    found = look(at_102)
    assert found.guard is not None
    assert (found.guard.walks, found.guard.resumes) == (True, True)
    assert found.backfill is not None
    assert found.backfill.months == {"2026-01": 1}
    assert "resuming the backfill" in at_102.upgrade()


def test_walk_that_was_interrupted_lately_needs_no_horizon_and_one_of_long_ago_does(at_102: Database) -> None:
    rows_of(at_102, "2026-01-05 10:15+00", at_102.value("SELECT (now() - interval '10 minutes')::text"))
    writer = stuck_writer(at_102)
    verdicts = []
    for horizon in ("now() - interval '5 minutes'", "now() - interval '3 hours'"):
        at_102.execute(f"SELECT rollup_task_usage_hourly_plan({horizon}, 1000)")
        found = look(at_102)
        assert found.guard is not None
        assert found.guard.resumes
        verdicts.append((found.guard.held_back, "the watermark cannot follow" in " ".join(refusals(found))))
    assert verdicts == [(False, False), (True, True)]
    # And so it is.
    with pytest.raises(BackfillRefused, match="the watermark cannot follow"):
        run_hook(at_102)
    at_102.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', 1000)")
    run_hook(at_102)
    writer.rollback()


def test_history_that_is_rolled_up_passes(at_102: Database) -> None:
    rows_of(at_102, "2026-01-05 10:15+00")
    at_102.execute("SELECT rollup_task_usage_hourly_plan(now() - interval '5 minutes', 1000)")
    at_102.execute("SELECT rollup_task_usage_hourly_slice()")
    at_102.execute("SELECT rollup_task_usage_hourly_finish()")
    found = look(at_102)
    assert found.guard is not None
    assert found.guard.verdict.startswith("passes: the watermark trails usage by an hour at most")
    assert found.backfill is None


@pytest.mark.parametrize(("more", "walks"), [("", False), ("1 microsecond", True)])
def test_history_that_trails_by_exactly_an_hour_passes(at_102: Database, more: str, walks: bool) -> None:
    rows_of(at_102, "2026-01-05 10:15+00")
    run_hook(at_102)
    at_102.execute(
        "UPDATE task_usage_hourly_rollup_state"
        f" SET watermark_at = task_usage_hourly_latest_event() - interval '1 hour {more}'"
    )
    found = look(at_102)
    assert found.guard is not None
    assert found.guard.walks is walks


def test_history_that_the_upgrade_would_not_touch_is_left_to_the_backfill(
    make_database: MakeDatabase,
) -> None:
    # Shape D: past 104, and nothing ever ticked.
    database = later(make_database)
    rows_of(database, "2026-01-05 10:15+00")
    printed = database.usage_rollup("preflight")
    assert printed.returncode == 0
    assert "to roll up: 1 usage row in 1 month; not by the upgrade, but by `usage-rollup backfill`" in (
        printed.stdout
    )
    assert "guard of 103: not asked: 103 is not pending" in printed.stdout


# ---------------------------------------------------------------------------------------------
# What would be lost, and what is odd


def legacy_row(database: Database) -> None:
    database.execute(
        "INSERT INTO task_usage_daily (bucket_date, workspace_id, runtime_id, provider, model, input_tokens)"
        " VALUES ('2024-02-29', gen_random_uuid(), gen_random_uuid(), 'claude', '[old] model', 77)"
    )


def test_totals_that_exist_only_in_the_legacy_tables_are_told_and_kept(v034: Database) -> None:
    rows_of(v034, "2026-01-05 10:15+00")
    legacy_row(v034)
    printed = v034.usage_rollup("preflight")
    assert printed.returncode == 0
    assert "103 moves them to schema legacy_usage: 1 daily total exists only there" in printed.stdout
    assert re.search(
        r"only there: task_usage_daily 2024-02-29, workspace \S+, \[old\] model: 77 tokens there, 0 in raw",
        printed.stdout,
    )
    v034.upgrade()
    assert v034.value("SELECT count(*) FROM legacy_usage.task_usage_daily") == 1


def test_option_to_drop_them_is_heeded(v034: Database) -> None:
    legacy_row(v034)
    found = look(v034, options=Options(keep_legacy=False))
    assert found.legacy is not None
    assert (found.legacy.totals_only_there, found.legacy.kept_because) == (1, [])


def test_role_that_may_not_make_the_schema_to_keep_them_in_is_refused(
    v034: Database, make_role: MakeRole
) -> None:
    legacy_row(v034)
    owner = make_role("owner")
    give_everything_to(v034, owner)
    url = v034.url_of(owner)
    (refusal,) = refusals(look(v034, url))
    assert f"role {owner} may not create schema legacy_usage" in refusal
    v034.execute(f"GRANT CREATE ON DATABASE {v034.name} TO {owner}")
    assert look(v034, url).goes_through


def test_odd_usage_is_counted_and_left_alone(v034: Database) -> None:
    world = small_world(v034.url)
    event(v034.url, world, "2026-01-05 10:15+00")
    assert look(v034).oddities == []
    ids = {
        "future": event(v034.url, world, "2999-01-01 00:00+00"),
        "undated": event(v034.url, world, "infinity", None),
        "overflowing": usage(
            v034.url, task(v034.url, world.agents[0]), "2026-01-05 10:15+00", tokens=2**63 - 1
        ),
        "overlong": event(v034.url, world, "2026-01-05 10:15+00", model=LONG_MODEL),
    }
    usage(v034.url, task(v034.url, world.agents[0]), "2026-01-05 10:15+00", tokens=-(2**63))
    before = v034.execute("SELECT * FROM task_usage WHERE created_at < 'infinity' ORDER BY id")
    found = look(v034)
    assert {odd.kind: odd.rows for odd in found.oddities} == {
        "future": 1,
        "undated": 1,
        "overflowing": 2,
        "overlong": 1,
    }
    assert {k: v for k, v in ((o.kind, o.example) for o in found.oddities) if k != "overflowing"} == {
        kind: str(id_) for kind, id_ in ids.items() if kind != "overflowing"
    }
    assert found.legacy is not None
    assert found.legacy.kept_because == ["some usage is set aside"]
    assert found.goes_through
    assert v034.execute("SELECT * FROM task_usage WHERE created_at < 'infinity' ORDER BY id") == before


# ---------------------------------------------------------------------------------------------
# The command


def test_json_is_one_object_with_the_same_verdict(v034: Database) -> None:
    rows_of(v034, "2026-01-05 10:15+00")
    printed = v034.usage_rollup("preflight", "--json")
    assert (printed.returncode, printed.stderr) == (0, "")
    found = json.loads(printed.stdout)
    assert found["goes_through"] is True
    assert found["backfill"]["months"] == {"2026-01": 1}
    assert found["place"]["pending"][0] == {
        "name": "100_user_timezone",
        "locks": {"ACCESS EXCLUSIVE": ["user"]},
    }
    assert found["guard"]["latest_event"] == "2026-01-05T10:15:00Z"


def test_refusals_come_first_and_exit_with_1(v034: Database) -> None:
    v034.execute("DROP FUNCTION task_usage_rollup_lag_seconds")
    printed = v034.usage_rollup("preflight")
    assert printed.returncode == 1
    headline, refusal, *facts = printed.stdout.splitlines()
    assert headline == "`alembic upgrade head` would be refused"
    assert refusal.startswith("refused: this database is not a complete v0.3.4: missing function task_usage_")
    assert any(line.startswith("server: PostgreSQL ") for line in facts)
    assert "\x1b" not in printed.stdout


def test_a_role_acts_for_the_owner_only_where_it_may(v034: Database, make_role: MakeRole) -> None:
    owner, stranger = make_role("owner"), make_role("stranger")
    give_everything_to(v034, owner)
    printed = v034.usage_rollup("preflight", DATABASE_URL=v034.url_of(stranger)).stdout
    assert f"role {stranger} may not act for the owner of: " in printed
    assert f"as role {stranger}\n" in printed
    v034.execute(f"GRANT {owner} TO {stranger}")
    printed = v034.usage_rollup("preflight", DATABASE_URL=v034.url_of(stranger)).stdout
    assert f"as role {stranger}, acting for {owner}\n" in printed


def test_a_database_that_is_away_is_to_be_tried_again(v034: Database) -> None:
    away = re.sub(r":\d+/", ":1/", v034.url)
    printed = v034.usage_rollup("preflight", "--json", DATABASE_URL=away, DATABASE_STARTUP_TIMEOUT="0")
    assert printed.returncode == 75
    assert json.loads(printed.stdout)["status"] == 75


def test_months_are_a_table_on_a_terminal_and_a_line_each_in_a_pipe(v034: Database) -> None:
    history = [f"{month:%Y-%m}" for month in write_history(v034)]
    printed = v034.usage_rollup("preflight").stdout
    months = re.findall(r"^(\d{4}-\d\d): \d+ usage rows to roll up$", printed, re.MULTILINE)
    assert months == history
    assert "month (UTC)" not in printed
    screen = on_a_terminal(v034, "preflight")
    assert re.findall(r"^(\d{4}-\d\d) +\d+ *$", screen, re.MULTILINE) == months
    assert re.search(r"^month \(UTC\) +usage rows to roll up", screen, re.MULTILINE)
