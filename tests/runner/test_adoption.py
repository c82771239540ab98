"""Adoption: every shape of database the product's own runner leaves behind, and what is refused.

What a script tells as well is in tests/stories/test_upgrade_both_ways.py.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.support.catalog_snapshot import snapshot
from tests.support.closing import Session
from tests.support.crashes import Boundary, stopped_at, waits_at
from tests.support.database import ROOT, Database, MakeDatabase
from tests.support.go_runner import (
    GO_102,
    drop_legacy,
    drop_runtime_timezone,
    record,
    run_sql,
    taken_by_go_to,
    unrecord,
)
from tests.support.outages import end_what_is_left
from tests.support.processes import finish
from tests.support.product import event, small_world, wait_until
from tests.support.server import Server
from tests.support.v034 import V034_STEMS
from usage_rollup.contract import (
    BASELINE,
    BUILT_BY_THE_WALK,
    HOURLY,
    LEGACY,
    OURS,
    PIPELINE,
    RUNTIME_TIMEZONE,
    STEMS,
    USER_TIMEZONE,
)
from usage_rollup.errors import AdoptionRefused
from usage_rollup.runner.adoption import Adoption, Standing, decision, standing

REVISIONS = list(STEMS)

# Later releases number further, and insert steps below 100.
LATER_BELOW_100 = (
    "096_pending_check_suite",
    "098_contact_sales_inquiries",
    "098_user_onboarding_runtime_choice",
)
LATER_STEMS = (
    "105_issue_metadata",
    "213_task_usage_authoritative_cost",
    "272_rollup_task_usage_hourly_xact_lock",
)


GO_FUNCTIONS = "SELECT count(*) FROM pg_proc WHERE prosrc LIKE '%/* go%'"


def adopted(output: str) -> str:
    """Return the one line that tells of an adoption."""
    (line,) = [line for line in output.splitlines() if "adopting" in line]
    return line


def assert_refused_unchanged(database: Database, *facts: str) -> str:
    """Upgrade twice: refused both times in the same words, with nothing changed."""
    before = snapshot(database)
    message = database.refused()
    assert snapshot(database) == before
    assert database.value("SELECT to_regclass('public.alembic_version') IS NULL")
    assert message.startswith("FAILED: ")
    assert message.count("FAILED: ") == 1
    assert len(message.splitlines()) == 2
    assert "HINT: " in message
    for fact in facts:
        assert fact in message
    assert database.refused() == message
    return message


# Empty


def test_an_empty_database_is_not_adopted(empty: Database) -> None:
    assert "adopting" not in empty.upgrade()
    assert empty.revision == "104"


def test_a_database_with_nothing_but_a_view_counts_as_empty(empty: Database) -> None:
    empty.execute("CREATE VIEW one AS SELECT 1")
    empty.upgrade("097")
    assert empty.revision == "097"


def test_a_database_with_nothing_but_a_table_of_an_extension_counts_as_empty(empty: Database) -> None:
    empty.execute("CREATE TABLE notes (id int)")
    # The trap: a table that no extension owns.
    assert "holds tables but no ledger" in empty.refused()
    empty.execute("ALTER EXTENSION plpgsql ADD TABLE notes")
    empty.upgrade("097")
    assert empty.revision == "097"


# A: a clean v0.3.4


def test_adoption_is_told_once_and_never_again(v034: Database) -> None:
    adopted(v034.upgrade("100"))
    assert "adopting" not in v034.upgrade("100")
    assert "adopting" not in v034.upgrade("101")
    assert v034.revision == "101"


def test_more_tables_and_columns_of_the_product_do_not_matter(v034: Database) -> None:
    v034.execute("CREATE TABLE comment (id uuid PRIMARY KEY)")
    v034.execute("ALTER TABLE issue ADD COLUMN due_on date")
    v034.upgrade("100")
    assert v034.revision == "100"


def test_a_relative_target_counts_from_the_adopted_revision(v034: Database) -> None:
    v034.upgrade("+1")
    assert v034.revision == "100"


# A': older than v0.3.4


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ("ALTER TABLE task_usage DROP COLUMN updated_at", "column task_usage.updated_at"),
        ("ALTER TABLE agent_runtime DROP COLUMN timezone", RUNTIME_TIMEZONE),
        ("DROP INDEX idx_task_usage_created_at_legacy", "index idx_task_usage_created_at_legacy"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_task_usage_created_at'::regclass",
            "index idx_task_usage_created_at",
        ),
        ("DROP TRIGGER trg_tu_dirty_rollup ON task_usage", "trigger task_usage.trg_tu_dirty_rollup"),
        ("DROP FUNCTION task_usage_rollup_lag_seconds", "function task_usage_rollup_lag_seconds"),
        ("DROP TABLE task_usage_dashboard_dirty", "table task_usage_dashboard_dirty"),
    ],
)
def test_an_incomplete_v034_is_refused_and_what_is_missing_is_named(
    v034: Database, change: str, missing: str
) -> None:
    v034.execute(change)
    assert_refused_unchanged(v034, "is not a complete v0.3.4: missing ", missing)


def test_an_older_release_is_refused_and_what_its_schema_lacks_is_named(v034: Database) -> None:
    unrecord(v034, *(stem for stem in V034_STEMS if stem >= "084_task"))
    run_sql(v034, "DROP TABLE task_usage_dashboard_daily; DROP TABLE task_usage_dashboard_rollup_state")
    assert_refused_unchanged(v034, "is older than v0.3.4", "table task_usage_dashboard_daily")


def test_an_incomplete_v034_goes_through_once_it_is_complete(v034: Database) -> None:
    v034.execute("DROP INDEX idx_task_usage_created_at_legacy")
    assert_refused_unchanged(v034)
    v034.execute(
        "CREATE INDEX idx_task_usage_created_at_legacy ON task_usage (created_at) WHERE updated_at IS NULL"
    )
    v034.upgrade()
    assert v034.revision == "104"


# B: stuck at 103


@pytest.mark.parametrize("target", ["097", "100", "101"])
def test_a_target_below_the_adopted_revision_changes_no_schema(
    make_database: MakeDatabase, target: str
) -> None:
    stuck = taken_by_go_to(make_database, "102")
    before = stuck.catalog()
    adopted(stuck.upgrade(target))
    assert stuck.revision == "101"
    stuck.execute("DROP TABLE alembic_version")
    assert stuck.catalog() == before
    stuck.upgrade()
    assert stuck.revision == "104"


def test_a_database_stuck_at_103_that_lost_its_functions_receives_them(
    make_database: MakeDatabase, head: Database
) -> None:
    stuck = taken_by_go_to(make_database, "101")
    record(stuck, STEMS["102"])
    stuck.upgrade()
    assert stuck.schema() == head.schema()


# C: the schema one step ahead of the ledger


def test_the_missing_stem_and_the_version_are_recorded_together(make_database: MakeDatabase) -> None:
    crashed = taken_by_go_to(make_database, "101")
    unrecord(crashed, STEMS["101"])
    ledger = crashed.ledger
    at_the_ledger = Boundary("schema_migrations", "INSERT")
    with stopped_at(crashed, at_the_ledger):
        runner = crashed.spawn("alembic", "upgrade", "head")
        wait_until(lambda: waits_at(crashed, at_the_ledger), "the adoption at the ledger")
        runner.kill()
        finish(runner, -signal.SIGKILL)
        end_what_is_left(crashed)
    assert crashed.revision is None
    assert crashed.ledger == ledger
    crashed.upgrade()
    assert crashed.revision == "104"
    assert STEMS["101"] in crashed.ledger


# D and E: past 104


@pytest.mark.parametrize("release", ["v0.3.5", "v0.3.17", "v0.4.23"])
def test_a_database_past_104_is_adopted_at_104_and_left_alone(
    make_database: MakeDatabase, release: str
) -> None:
    later = make_database(release)
    event(later.url, small_world(later.url), "2025-03-01 10:20+00", None)
    before = later.catalog()

    assert "at 104_drop_runtime_timezone" in adopted(later.upgrade())
    assert later.revision == "104"
    # Its window is called by name, for what is not rolled up; nothing that it has made is changed.
    assert later.value("SELECT watermark_at = 'epoch' FROM task_usage_hourly_rollup_state")
    assert "adopting" not in later.upgrade()
    later.execute("DROP TABLE alembic_version")
    assert later.catalog() == before


# F: ours, then the Go runner went on


@pytest.mark.parametrize("by_go", ["104", "105"])
def test_a_database_of_ours_that_the_go_runner_took_further_is_adopted_forward(
    make_database: MakeDatabase, head: Database, by_go: str
) -> None:
    ours = make_database("102")
    drop_legacy(ours)
    if by_go >= "104":
        drop_runtime_timezone(ours)
    record(ours, *(stem for r, stem in STEMS.items() if "102" < r <= by_go))
    if by_go == "105":
        record(ours, "105_issue_metadata")
    output = ours.upgrade()
    assert f"at {STEMS[min(by_go, '104')]}" in adopted(output)
    assert ours.revision == "104"
    assert ours.ledger - {"105_issue_metadata"} == {*V034_STEMS, *STEMS.values()}
    assert ours.schema() == head.schema()


def test_a_102_that_the_go_runner_put_on_our_101_is_replaced(
    make_database: MakeDatabase, head: Database
) -> None:
    ours = make_database("101")
    run_sql(ours, GO_102)
    record(ours, STEMS["102"])
    assert "adopting" not in ours.upgrade()
    assert ours.value(GO_FUNCTIONS) == 0
    assert ours.schema() == head.schema()


def test_a_101_that_the_go_runner_put_on_our_100_is_adopted(make_database: MakeDatabase) -> None:
    ours = make_database("100")
    run_sql(ours, (ROOT / "alembic" / "versions" / f"{STEMS['101']}.up.sql").read_text())
    record(ours, STEMS["101"])
    assert "at 101_task_usage_hourly_schema" in adopted(ours.upgrade())
    assert ours.revision == "104"


def test_a_version_stamped_back_is_brought_forward_to_where_the_ledger_stands(head: Database) -> None:
    before = head.schema()
    assert head.alembic("stamp", "100").returncode == 0
    assert "at 104_drop_runtime_timezone" in adopted(head.upgrade())
    assert head.revision == "104"
    assert head.schema() == before


def test_the_guard_speaks_and_its_hint_works_on_a_database_with_a_ledger(at_102: Database) -> None:
    event(at_102.url, small_world(at_102.url), "2025-03-01 10:20+00", None)
    at_102.execute("DROP TABLE task_usage_hourly_rollup_state")
    message = at_102.refused()
    assert "refusing to drop legacy daily rollups: the hourly pipeline is not installed" in message
    assert "alembic downgrade 100" in message

    at_102.downgrade("100")
    at_102.upgrade()
    assert at_102.revision == "104"
    assert at_102.value("SELECT sum(event_count) FROM task_usage_hourly") == 1


# Refused


@pytest.mark.parametrize(
    "ledger",
    [
        "CREATE TABLE schema_migrations (version varchar PRIMARY KEY);"
        "INSERT INTO schema_migrations VALUES ('20240101120000'), ('20250101120000')",
        "CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL);"
        "INSERT INTO schema_migrations VALUES (272, false)",
        "CREATE TABLE schema_migrations (filename text PRIMARY KEY);"
        "INSERT INTO schema_migrations VALUES ('104_drop_runtime_timezone')",
        "CREATE VIEW schema_migrations AS SELECT 1 AS version; CREATE TABLE orders (id int)",
    ],
    ids=["rails", "golang-migrate", "filename", "view"],
)
def test_another_applications_ledger_is_refused(empty: Database, ledger: str) -> None:
    run_sql(empty, ledger)
    assert_refused_unchanged(empty)


def test_a_ledger_without_any_row_is_refused(empty: Database) -> None:
    empty.execute("CREATE TABLE schema_migrations (version text PRIMARY KEY)")
    assert_refused_unchanged(empty, "not the product's database")


def test_a_recorded_101_without_its_tables_is_refused(make_database: MakeDatabase) -> None:
    bare = taken_by_go_to(make_database, "100")
    record(bare, STEMS["101"])
    assert_refused_unchanged(
        bare,
        "the ledger records 101_task_usage_hourly_schema, but the schema does not show it",
        " task_usage_hourly",
    )


def test_a_recorded_102_without_the_tables_of_101_is_refused(make_database: MakeDatabase) -> None:
    bare = taken_by_go_to(make_database, "102")
    bare.execute("DROP TABLE task_usage_hourly")
    assert_refused_unchanged(bare, "101_task_usage_hourly_schema", "task_usage_hourly")


def test_a_recorded_105_without_104_is_refused(make_database: MakeDatabase) -> None:
    gap = taken_by_go_to(make_database, "103")
    record(gap, "105_issue_metadata")
    assert_refused_unchanged(gap, "104_drop_runtime_timezone", "although 105_issue_metadata is")


# Other commands


@pytest.mark.parametrize("command", [["current"], ["history", "--indicate-current"], ["check"]])
def test_reading_commands_adopt_nothing_and_change_nothing(v034: Database, command: list[str]) -> None:
    before = v034.catalog()
    result = v034.alembic(*command)
    assert "Traceback" not in result.stdout
    assert "adopting" not in result.stdout
    assert v034.catalog() == before
    adopted(v034.upgrade("097"))


def test_stamp_adopts_nothing_and_leaves_the_ledger_alone(v034: Database) -> None:
    before, ledger = v034.schema(), v034.ledger
    result = v034.alembic("stamp", "097")
    assert result.returncode == 0, result.stdout
    assert "adopting" not in result.stdout
    assert v034.revision == "097"
    assert v034.ledger == ledger
    v034.execute("DROP TABLE alembic_version")
    assert v034.schema() == before


def test_stamp_adds_nothing_to_the_ledger_and_takes_nothing_away(at_102: Database) -> None:
    ledger = at_102.ledger
    for revision in ("103", "101", "102"):
        assert at_102.alembic("stamp", revision).returncode == 0
        assert (at_102.revision, at_102.ledger) == (revision, ledger)


@pytest.mark.parametrize("target", ["base", "097"])
def test_downgrade_adopts_nothing_and_takes_nothing_away(v034: Database, target: str) -> None:
    before = v034.catalog()
    result = v034.alembic("downgrade", target)
    assert "Traceback" not in result.stdout
    assert v034.revision is None
    v034.execute("DROP TABLE IF EXISTS alembic_version")
    assert v034.catalog() == before


# The decision itself

Decide = Callable[[str | None, frozenset[str] | None, Iterable[str]], Standing]


@pytest.fixture(scope="module")
def decide(server: Server) -> Iterator[Decide]:
    """Return a function that asks the decision about what was not seen anywhere."""
    question = decision().replace("%", "%%")
    with Session.connect(server.url(), autocommit=True) as connection:

        def decide(version: str | None, stems: frozenset[str] | None, objects: Iterable[str]) -> Standing:
            answer = connection.execute(
                "SELECT to_jsonb(d) FROM (SELECT %s::text AS v_version, NULL::text[] AS v_versions,"
                " %s::text[] AS v_ledger,"
                " false AS v_foreign_ledger, %s::text[] AS v_objects, NULL::text[] AS v_filled) AS seen"
                f" CROSS JOIN LATERAL ({question}) AS d",
                [version, None if stems is None else list(stems), list(objects)],
            ).fetchone()
            assert answer is not None
            return standing(answer[0])

        yield decide


def objects_at(revision: str, *, ours: bool = False) -> frozenset[str]:
    objects = BASELINE.names() | LEGACY.names()
    if revision >= "100":
        objects |= {USER_TIMEZONE}
    if revision >= "101":
        objects |= HOURLY.names()
    if revision >= "102":
        objects |= {PIPELINE, OURS} if ours else {PIPELINE}
    if revision >= "103":
        objects -= LEGACY.names()
    if revision >= "104":
        objects -= {RUNTIME_TIMEZONE}
    return objects


def stems_at(revision: str) -> frozenset[str]:
    return frozenset(V034_STEMS) | {stem for r, stem in STEMS.items() if r <= revision}


def expected_revision(ledger: str, schema: str) -> str | None:
    """Return where the chain goes on by the contract, None where it refuses."""
    if ledger == "104":
        # Nobody but a stamp leaves both legacy rollups behind.
        return "104" if schema >= "103" else None
    ahead = REVISIONS.index(schema) - REVISIONS.index(ledger)
    # Whether 102's functions are there does not matter: ours replace them.
    if ahead in {0, 1} or (ledger, schema) == ("102", "101"):
        return "101" if schema == "102" else schema
    return None


@pytest.mark.parametrize("schema", REVISIONS)
@pytest.mark.parametrize("ledger", REVISIONS)
def test_ledger_and_schema_decide_together(decide: Decide, ledger: str, schema: str) -> None:
    found = decide(None, stems_at(ledger), objects_at(schema))
    expected = expected_revision(ledger, schema)
    if expected is None:
        with pytest.raises(AdoptionRefused):
            found.adoption()
        return
    adoption = found.adoption()
    assert adoption is not None
    assert adoption.revision == found.start == expected
    assert set(adoption.missing_stems) == {stem for r, stem in STEMS.items() if ledger < r <= expected}


@pytest.mark.parametrize(
    ("last", "missing"),
    [(last, missing) for last in REVISIONS for missing in REVISIONS if "097" < missing < last],
)
def test_a_recorded_step_after_one_that_is_not_recorded_is_refused(
    decide: Decide, last: str, missing: str
) -> None:
    found = decide(None, stems_at(last) - {STEMS[missing]}, objects_at(last))
    with pytest.raises(AdoptionRefused, match=f"a step is missing in the middle: {STEMS[missing]} is not"):
        found.adoption()


@pytest.mark.parametrize("current", REVISIONS)
@pytest.mark.parametrize("reached", REVISIONS)
def test_a_database_of_ours_is_adopted_forward_only(decide: Decide, current: str, reached: str) -> None:
    found = decide(current, stems_at(reached), objects_at(reached, ours=True))
    if reached == current:
        assert found.adoption() is None
        assert found.start == current
        assert found.refused("downgrade") == []
    elif reached == "101" and current in ("102", "103"):
        with pytest.raises(AdoptionRefused, match="somebody else has undone"):
            found.adoption()
        assert found.refused("downgrade") == []
    elif reached < current:
        for about in ("upgrade", "downgrade"):
            (refusal,) = found.refused(about)
            assert refusal.message.startswith(
                f"alembic_version says {STEMS[current]}, but ledger and schema show {STEMS[reached]}"
            )
            assert refusal.hint == f"put it right, then run this again: alembic stamp --purge {reached}"
    elif (position := "101" if reached == "102" else reached) <= current:
        assert found.adoption() is None
    else:
        assert found.adoption() == Adoption(position, (), found.reason or "")
        (refusal,) = found.refused("downgrade")
        assert f"alembic_version says {current}, and ledger and schema show {position}" in refusal.message


@pytest.mark.parametrize("ledger", [stems_at("104"), None], ids=["with_ledger", "without_ledger"])
def test_a_head_that_lacks_the_pipeline_is_refused_and_can_go_back(
    decide: Decide, ledger: frozenset[str] | None
) -> None:
    found = decide("104", ledger, objects_at("104", ours=True) - {PIPELINE})
    with pytest.raises(AdoptionRefused, match="somebody else has undone"):
        found.adoption()
    assert found.refused("downgrade") == []


def test_a_later_release_may_do_without_the_pipeline(decide: Decide) -> None:
    found = decide("104", stems_at("104") | {"300_later"}, objects_at("104", ours=True) - {PIPELINE})
    assert found.adoption() is None


@pytest.mark.parametrize("current", REVISIONS)
def test_a_database_of_ours_without_a_ledger_stands_as_it_is(decide: Decide, current: str) -> None:
    found = decide(current, None, objects_at(current, ours=True))
    assert found.adoption() is None
    assert found.start == current
    assert found.refused("downgrade") == found.refused("base") == []


def test_what_contradicts_itself_in_a_database_of_ours_is_left_to_the_steps(decide: Decide) -> None:
    found = decide("102", stems_at("102"), objects_at("102", ours=True) - HOURLY.names())
    assert found.adoption() is None
    assert found.start == "102"


@pytest.mark.parametrize("name", sorted(BASELINE.names() | LEGACY.names()))
def test_every_single_object_of_v034_is_required_and_named(decide: Decide, name: str) -> None:
    found = decide(None, stems_at("097"), objects_at("097") - {name})
    with pytest.raises(AdoptionRefused) as refusal:
        found.adoption()
    assert refusal.value.refusal.message == f"this database is not a complete v0.3.4: missing {name}"


@pytest.mark.parametrize("name", sorted(HOURLY.names()))
def test_every_single_object_of_101_is_required_and_named(decide: Decide, name: str) -> None:
    found = decide(None, stems_at("101"), objects_at("101") - {name})
    with pytest.raises(AdoptionRefused) as refusal:
        found.adoption()
    assert name in str(refusal.value)


def test_indexes_of_101_that_a_killed_walk_of_ours_has_left_to_its_end_do_not_matter(decide: Decide) -> None:
    objects = objects_at("101") - {f"index {name}" for name in BUILT_BY_THE_WALK.split()}
    with pytest.raises(AdoptionRefused):
        decide(None, stems_at("101"), objects).adoption()
    found = decide(None, stems_at("101"), objects | {"table task_usage_hourly_backfill"}).adoption()
    assert found is not None
    assert found.revision == "101"


def test_of_much_that_is_missing_tables_come_first_and_their_columns_go_without_saying(
    decide: Decide,
) -> None:
    gone = {"task_usage_daily", "task_usage_daily_dirty", "task_usage_dashboard_daily"}
    missing = {f"table {table}" for table in gone} | {
        name
        for name in LEGACY.names()
        if name.startswith(("function", "trigger"))
        or name.split(".")[0] in {f"column {table}" for table in gone}
    }
    with pytest.raises(AdoptionRefused) as refusal:
        decide(None, stems_at("097"), objects_at("097") - missing).adoption()
    assert refusal.value.refusal.message == (
        "this database is not a complete v0.3.4: missing table task_usage_daily,"
        " table task_usage_daily_dirty, table task_usage_dashboard_daily,"
        " function enqueue_task_usage_daily_dirty_for_atq,"
        " function enqueue_task_usage_daily_dirty_for_tu,"
        " function enqueue_task_usage_dashboard_dirty_for_atq,"
        " function enqueue_task_usage_dashboard_dirty_for_issue_delete,"
        " function enqueue_task_usage_dashboard_dirty_for_issue_project and 13 more"
    )


def test_what_later_releases_add_or_take_away_does_not_matter_past_104(decide: Decide) -> None:
    stems = stems_at("104") | {*LATER_BELOW_100, *LATER_STEMS}
    assert decide(None, stems, {"table task_usage"}).adoption() == Adoption(
        "104",
        (),
        "adopting a database of the product's own runner at 104_drop_runtime_timezone"
        f" ({len(stems)} rows in its ledger)",
    )


def test_stems_are_compared_as_bytes_never_as_numbers(decide: Decide) -> None:
    # A locale would sort the underscore after the digits.
    adoption = decide(None, stems_at("103") | {"1031_later"}, objects_at("103")).adoption()
    assert adoption is not None
    assert adoption.revision == "103"
