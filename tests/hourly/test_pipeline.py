"""What is lent where 102 is missing: whole parts of it, and nothing else is touched."""

from __future__ import annotations

import re

import pytest

from tests.support.database import Database, MakeDatabase
from usage_rollup import revisions
from usage_rollup.contract import BASELINE, HOURLY, LEGACY
from usage_rollup.hourly import pipeline
from usage_rollup.session.connection import transaction

OURS_IN_TEMP = """
SELECT relname AS name FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'
UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = pg_my_temp_schema()
"""

CREATED = re.compile(r"^CREATE\b.*? public\.(\w+)", re.MULTILINE)


def part_of_102(name: str) -> str:
    files = revisions.sql_files(revisions.scripts().get_revision("102").path, "up")
    return next(file for file in files if file.stem == name).read_text()


def created() -> set[str]:
    """Return what the lent parts make, without the help of what lends them."""
    return {name for part in pipeline.PARTS for name in CREATED.findall(part_of_102(part))}


@pytest.mark.parametrize("point", ["v034", "101"])
def test_all_that_a_lent_part_makes_is_lent_and_the_database_stays_as_it_was(
    make_database: MakeDatabase, point: str
) -> None:
    database = make_database(point)
    before = database.catalog()
    with database.migration_connection() as connection:
        assert pipeline.reading(connection).lent
        lent = set(connection.exec_driver_sql(OURS_IN_TEMP).scalars())
        assert database.catalog() == before
        # A second command in the same session.
        assert pipeline.reading(connection).lent
    assert lent == created()
    assert len(lent) >= 15


def test_nothing_is_lent_where_102_is_installed(at_102: Database) -> None:
    with at_102.migration_connection() as connection:
        reading = pipeline.reading(connection)
        assert not reading.lent
        assert list(connection.exec_driver_sql(OURS_IN_TEMP)) == []
    assert reading.sql("SELECT public.task_usage_hourly_undated()").text.count("public.") == 1


def test_lent_parts_name_only_themselves_101_and_the_product() -> None:
    named = {
        name for part in pipeline.PARTS for name in re.findall(r"\bpublic\.(\w+)", part_of_102(part))
    } | {name for part in pipeline.PARTS for name in re.findall(r"\brollup_\w+", part_of_102(part))}
    theirs = {*BASELINE.columns, *LEGACY.columns, *HOURLY.columns, "schema_migrations"}
    assert named - theirs == created()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("public.task_usage_hourly_sum(1)", "pg_temp.task_usage_hourly_sum(1)"),
        ("public.task_usage_hourly_invalidation[]", "pg_temp.task_usage_hourly_invalidation[]"),
        # The traps: 101's table, whose name begins many others; a longer name; other schemas; prose.
        ("public.task_usage_hourly", "public.task_usage_hourly"),
        ("public.task_usage_hourly.model", "public.task_usage_hourly.model"),
        ("public.task_usage_hourly_summary()", "public.task_usage_hourly_summary()"),
        ("public.old_task_usage_hourly_sum()", "public.old_task_usage_hourly_sum()"),
        ("republic.task_usage_hourly_sum()", "republic.task_usage_hourly_sum()"),
        ("-- as task_usage_hourly_sum() says", "-- as task_usage_hourly_sum() says"),
    ],
)
def test_whole_names_are_taken_to_where_they_are_lent(text: str, expected: str) -> None:
    assert pipeline.Reading(lent=True).sql(text).text == expected
    assert pipeline.Reading(lent=False).sql(text).text == text


IN_A_COMMENT = """
-- CREATE OR REPLACE FUNCTION public.only_told_of() would be another way, and public.lent() is this one.
CREATE OR REPLACE FUNCTION public.lent() RETURNS text LANGUAGE sql PARALLEL SAFE
AS $$ SELECT 'public.only_told_of' $$;
"""


def test_function_that_a_comment_tells_of_is_not_lent(v034: Database) -> None:
    with v034.migration_connection() as connection, transaction(connection):
        pipeline.lend(connection, [IN_A_COMMENT])
        assert list(connection.exec_driver_sql(OURS_IN_TEMP).scalars()) == ["lent"]
        assert connection.exec_driver_sql("SELECT pg_temp.lent()").scalar() == "public.only_told_of"
        parallel = "SELECT proparallel FROM pg_proc WHERE oid = 'pg_temp.lent'::regproc"
        assert connection.exec_driver_sql(parallel).scalar() == "r"


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("CREATE TABLE public.unusual (id int)", "unusual is not temporary"),
        (
            "DO $$ BEGIN CREATE FUNCTION public.hidden() RETURNS int LANGUAGE sql AS 'SELECT 1'; END $$",
            "hidden",
        ),
        ("ALTER TABLE public.task_usage REPLICA IDENTITY FULL", "task_usage is not temporary"),
        ("CREATE INDEX unusual ON public.task_usage (id)", "unusual is not temporary"),
        (
            "CREATE TABLE IF NOT EXISTS public.gone (id int);\n"
            "DO $$ BEGIN EXECUTE 'DROP TABLE pg_temp.' || 'gone'; END $$",
            "gone is missing",
        ),
    ],
)
def test_part_that_cannot_be_lent_is_refused_and_leaves_nothing(
    v034: Database, part: str, wrong: str
) -> None:
    before = v034.catalog()
    with v034.migration_connection() as connection:
        with pytest.raises(AssertionError, match="cannot be lent: .*" + wrong), transaction(connection):
            pipeline.lend(connection, [part])
        assert v034.catalog() == before


def test_part_that_writes_is_caught_when_it_is_named_for_lending(make_database: MakeDatabase) -> None:
    # It alters the contract's tables.
    parts = [part_of_102(part) for part in ("10_tables", "12_legacy_settings", "15_contract_tables")]
    with (
        make_database("101").migration_connection() as connection,
        pytest.raises(AssertionError, match="task_usage_hourly is not temporary"),
        transaction(connection),
    ):
        pipeline.lend(connection, parts)
