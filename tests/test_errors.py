"""Every refusal, reached through the real command line: one message, what to do next, no traceback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.database import ROOT, Database
from tests.support.processes import finish, read_until
from tests.support.product import event, small_world
from usage_rollup import errors

Refusal = tuple[tuple[str, ...], dict[str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the migrations that a test may break, run by `-c <copy>/alembic.ini`."""
    shutil.copytree(ROOT / "alembic", tmp_path / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    return tmp_path


def in_project(project: Path, *command: str) -> tuple[str, ...]:
    return ("-c", str(project / "alembic.ini"), *command)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def failed(output: str) -> list[str]:
    """Return the lines of the one message."""
    assert output.count("FAILED: ") == 1, output
    message = output[output.index("FAILED: ") + len("FAILED: ") :].rstrip("\n").splitlines()
    # Told once, and not a second time by a logger.
    assert output.count(message[0]) == 1, output
    return message


def configuration_error(database: Database, project: Path) -> Refusal:
    return ("upgrade", "head"), {"DATABASE_URL": ""}


def database_unavailable(database: Database, project: Path) -> Refusal:
    return ("upgrade", "head"), {
        "DATABASE_URL": "postgres://127.0.0.1:1/multica",
        "DATABASE_STARTUP_TIMEOUT": "0",
    }


def login_refused(database: Database, project: Path) -> Refusal:
    return ("upgrade", "head"), {"DATABASE_URL": database.url.replace(":multica@", ":wr0ng@")}


def unsuitable_database(database: Database, project: Path) -> Refusal:
    database.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
    return ("upgrade", "head"), {}


def adoption_refused(database: Database, project: Path) -> Refusal:
    database.execute("DROP TABLE alembic_version, schema_migrations")
    return ("upgrade", "head"), {}


def downgrade_refused(database: Database, project: Path) -> Refusal:
    return ("downgrade", "base"), {}


def lock_busy(database: Database, project: Path) -> Refusal:
    database.connect(autocommit=True).execute("SELECT pg_advisory_lock(7244554146635925501)")
    return ("upgrade", "head"), {"LOCK_TIMEOUT": "0"}


def table_lock_busy(database: Database, project: Path) -> Refusal:
    database.connect().execute("SELECT FROM task_usage_daily")
    return ("upgrade", "head"), {"LOCK_TIMEOUT": "0"}


def backfill_refused(database: Database, project: Path) -> Refusal:
    database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = now() + interval '1 day'")
    return ("upgrade", "head"), {}


def statement_failed(database: Database, project: Path) -> Refusal:
    # Without the hook, the guard speaks.
    event(database.url, small_world(database.url))
    rewrite(
        project / "alembic" / "versions" / "103_drop_legacy_daily_rollups.py",
        "before_upgrade = backfill_before_103",
        "before_upgrade = None",
    )
    return in_project(project, "upgrade", "head"), {}


CASES: dict[Callable[[Database, Path], Refusal], tuple[type[errors.UsageRollupError], str]] = {
    configuration_error: (errors.ConfigurationError, "no database given: DATABASE_URL is not set"),
    database_unavailable: (errors.DatabaseUnavailable, "cannot connect to the database: "),
    login_refused: (errors.LoginRefused, "cannot connect to the database: the password, or the role, was "),
    unsuitable_database: (errors.UnsuitableDatabase, "sessions of role postgres are read-only here"),
    adoption_refused: (errors.AdoptionRefused, "this database holds tables but no ledger"),
    downgrade_refused: (errors.DowngradeRefused, "refusing to remove the v0.3.4 baseline: "),
    lock_busy: (errors.LockBusy, "advisory lock 7244554146635925501 (migration run) was not free"),
    table_lock_busy: (errors.LockBusy, "could not lock agent_task_queue, "),
    backfill_refused: (errors.BackfillRefused, "the watermark of the hourly rollup lies in the future: "),
    statement_failed: (
        errors.StatementFailed,
        "103_drop_legacy_daily_rollups.up.sql: refusing to drop legacy daily rollups: ",
    ),
}


def test_every_error_is_provoked_here() -> None:
    assert {error for error, _ in CASES.values()} == set(errors.UsageRollupError.__subclasses__())
    assert errors.UsageRollupError.__doc__
    for error in errors.UsageRollupError.__subclasses__():
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("provoke", "error", "beginning"),
    [(provoke, *told) for provoke, told in CASES.items()],
    ids=[provoke.__name__ for provoke in CASES],
)
def test_error_is_one_message_with_a_hint(
    at_102: Database,
    project: Path,
    provoke: Callable[[Database, Path], Refusal],
    error: type[errors.UsageRollupError],
    beginning: str,
) -> None:
    command, environment = provoke(at_102, project)
    before = at_102.catalog()
    result = at_102.alembic(*command, **environment)
    may_pass = error.exit_status == errors.TRY_AGAIN
    assert result.returncode == (errors.TRY_AGAIN if may_pass else 255), result.stdout
    assert "Traceback" not in result.stdout
    message = failed(result.stdout)
    assert message[0].startswith(beginning)
    assert len([line for line in message if line.startswith("HINT: ")]) == 1
    assert message[-1].startswith("HINT: ")
    assert at_102.catalog() == before


def test_failure_is_told_once_and_not_on_two_streams(empty: Database) -> None:
    result = subprocess.run(
        ["alembic", "upgrade", "head"],
        cwd=ROOT,
        env=empty.environment(DATABASE_URL=""),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout + result.stderr).count("DATABASE_URL is not set") == 1


# A revision that fails.


def break_101(project: Path, sql: str) -> Path:
    """Put `sql` where 101 has created its first table."""
    path = project / "alembic" / "versions" / "101_task_usage_hourly_schema.up.sql"
    rewrite(path, "CREATE TABLE public.task_usage_hourly_dirty (", f"{sql}\nCREATE TABLE broken (")
    return path


def refused_in_101(database: Database, project: Path) -> list[str]:
    message = failed(database.refused(*in_project(project, "upgrade", "head")))
    # What came before is kept, what came with it is not.
    assert database.revision == "100"
    assert "100_user_timezone" in database.ledger
    assert "101_task_usage_hourly_schema" not in database.ledger
    assert database.value("SELECT to_regclass('public.task_usage_hourly') IS NULL")
    return message


@pytest.mark.parametrize(
    "before", ["", "-- \u00e9\u4e2d\U0001f600 50% of :this\n", "SELECT '\u4e2d\u6587', "]
)
def test_syntax_error_is_shown_with_its_line_and_a_caret(v034: Database, project: Path, before: str) -> None:
    path = break_101(project, f"{before}CREATE TABEL t ();")
    message = refused_in_101(v034, project)
    assert message[0] == (
        '101_task_usage_hourly_schema.up.sql: syntax error at or near "CREATE" (SQLSTATE 42601)'
        if before.startswith("SELECT")
        else '101_task_usage_hourly_schema.up.sql: syntax error at or near "TABEL" (SQLSTATE 42601)'
    )
    line, caret = message[-2:]
    label, _, text = line.partition(": ")
    number = int(label.removeprefix("LINE "))
    assert path.read_text().splitlines()[number - 1] == text
    word = "CREATE" if before.startswith("SELECT") else "TABEL"
    assert caret == " " * line.index(word) + "^"


def test_missing_table_is_shown_with_its_line_and_a_caret(v034: Database, project: Path) -> None:
    break_101(project, "INSERT INTO public.task_usage_hourly\nSELECT * FROM no_such_table;")
    message = refused_in_101(v034, project)
    assert message[0].endswith('relation "no_such_table" does not exist (SQLSTATE 42P01)')
    assert message[-2].endswith(": SELECT * FROM no_such_table;")
    assert message[-1].index("^") == message[-2].index("no_such_table")


def test_detail_and_hint_are_shown(v034: Database, project: Path) -> None:
    break_101(
        project,
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'UR001', MESSAGE = '100 % of :what',"
        " DETAIL = 'Measured: 7.', HINT = 'Type this.'; END $$;",
    )
    assert refused_in_101(v034, project) == [
        "101_task_usage_hourly_schema.up.sql: 100 % of :what (SQLSTATE UR001)",
        "DETAIL: Measured: 7.",
        "HINT: Type this.",
    ]


@pytest.mark.parametrize(
    ("state", "hint"), [("57014", errors.AGAIN), ("53100", f"make room on the server, then {errors.AGAIN}")]
)
def test_what_is_no_fault_of_the_statement_has_a_hint(
    v034: Database, project: Path, state: str, hint: str
) -> None:
    break_101(project, f"DO $$ BEGIN RAISE EXCEPTION 'stopped' USING ERRCODE = '{state}'; END $$;")
    assert refused_in_101(v034, project) == [
        f"101_task_usage_hourly_schema.up.sql: stopped (SQLSTATE {state})",
        f"HINT: {hint}",
    ]
    v034.upgrade()


def test_statement_that_somebody_cancels_says_to_begin_again(v034: Database) -> None:
    reader = v034.connect()
    reader.execute("SELECT FROM task_usage_daily")
    process = v034.spawn("alembic", "upgrade", "head")
    said = read_until(process, "waiting for table locks")
    assert v034.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)",
        reader.info.backend_pid,
    ) == [(True,)]
    said += finish(process, 255)
    assert failed(said)[0].endswith("(SQLSTATE 57014)")
    assert failed(said)[-1] == f"HINT: {errors.AGAIN}"
    reader.rollback()
    v034.upgrade()


def test_broken_constraint_shows_the_row(v034: Database, project: Path) -> None:
    break_101(
        project,
        "INSERT INTO public.schema_migrations VALUES ('twice'), ('twice');",
    )
    assert refused_in_101(v034, project) == [
        "101_task_usage_hourly_schema.up.sql: duplicate key value violates unique constraint"
        ' "schema_migrations_pkey" (SQLSTATE 23505)',
        "DETAIL: Key (version)=(twice) already exists.",
    ]


def test_failed_revision_is_retried_by_the_next_run(v034: Database, project: Path) -> None:
    break_101(project, "SELECT 1 / 0;")
    assert refused_in_101(v034, project)[0].endswith("division by zero (SQLSTATE 22012)")
    v034.upgrade()
    assert v034.revision == "104"
