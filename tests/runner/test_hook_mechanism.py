"""A revision's before_upgrade: when it runs, what it sees, and what its failure leaves behind.

Run by the real `alembic` on a chain of three small revisions, under the project's own env.py. They have
ids of the real chain, because the runner refuses a database at any other.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.database import ROOT, Database
from usage_rollup import revisions

# A hook that writes down, through a session of its own, what an outsider sees while it runs: the
# committed version, and what the migration connection is doing.
REVISION = """
import os
import psycopg
import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "{revision}"
down_revision = {down_revision!r}


def upgrade() -> None:
    op.execute(sa.text({up!r}), execution_options={{"no_parameters": True}})
    op.execute("CREATE TABLE public.made_by_{revision} ()")


def downgrade() -> None:
    op.execute("DROP TABLE public.made_by_{revision}")
    op.execute(sa.text({down!r}), execution_options={{"no_parameters": True}})
"""
HOOK = """

def before_upgrade(connection: sa.Connection, options: object) -> None:
    pid = connection.connection.dbapi_connection.info.backend_pid
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as observer:
        observer.execute(
            "INSERT INTO public.hook_call (revision, committed, state)"
            " SELECT %s, (SELECT version_num FROM public.alembic_version), state"
            " FROM pg_stat_activity WHERE pid = %s",
            ["{revision}", pid],
        )
    connection.execute(sa.text("SELECT 1"))
    if os.environ.get("HOOK_FAILS"):
        raise CommandError("the hook of {revision} has failed")
"""

# What the naive designs would be, written into env.py in place of the real lines.
AS_ONE_TRANSACTION = ("transaction_per_migration=True", "transaction_per_migration=False")
MATERIALISED = ("fn=steps,", "fn=lambda heads, context: list(steps(heads, context)),")
NAIVE_HOOKS = (
    "with_hooks(steps, session, run)",
    "(lambda real: lambda heads, context: ((before_upgrade(step) or (lambda *_: None))(session, run)"
    " or step for step in real(heads, context)))(steps)",
)
IMPORTED = ("import with_hooks", "import before_upgrade")
SAYS_ITS_WORK = ("mutating = ", "print('work:', work.__name__)\nmutating = ")


class Chain:
    """A script directory of its own: 097, 100 and 101, the last two with a hook."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.directory = directory
        self.database = database
        database.execute(
            "CREATE TABLE public.hook_call"
            " (n int GENERATED ALWAYS AS IDENTITY, revision text, committed text, state text)"
        )
        # Without a ledger, in which these would be no steps of the product.
        database.execute(
            "DROP TABLE public.schema_migrations;"
            "CREATE TABLE public.alembic_version (version_num varchar(32) PRIMARY KEY);"
            "CREATE TABLE public.made_by_097 (); INSERT INTO public.alembic_version VALUES ('097')"
        )
        (directory / "alembic" / "versions").mkdir(parents=True)
        shutil.copy(ROOT / "alembic.ini", directory)
        for down, revision in ((None, "097"), ("097", "100"), ("100", "101")):
            text = REVISION + (HOOK if down else "")
            (directory / "alembic" / "versions" / f"{revision}_step.py").write_text(
                text.format(
                    revision=revision,
                    down_revision=down,
                    up=real_sql(revision, "up") if down else "SELECT 1",
                    down=real_sql(revision, "down") if down else "SELECT 1",
                )
            )
        self.env()

    def env(self, *replacements: tuple[str, str]) -> None:
        """Install the project's env.py, with some text replaced."""
        text = (ROOT / "alembic" / "env.py").read_text()
        for old, new in replacements:
            assert text.count(old) >= 1, old
            text = text.replace(old, new)
        (self.directory / "alembic" / "env.py").write_text(text)

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return self.database.alembic("-c", str(self.directory / "alembic.ini"), *arguments, **extra)

    def upgrade(self) -> str:
        result = self.run("upgrade", "head")
        assert result.returncode == 0, result.stdout
        return result.stdout

    @property
    def calls(self) -> Sequence[tuple[str, str]]:
        """Return the hooks that ran, each with the version that was committed then."""
        return [
            (row[0], row[1])
            for row in self.database.execute("SELECT revision, committed FROM public.hook_call ORDER BY n")
        ]

    @property
    def states(self) -> set[str]:
        """Return what the migration connection was doing when hooks ran."""
        return {row[0] for row in self.database.execute("SELECT state FROM public.hook_call")}


def real_sql(revision: str, direction: str) -> str:
    """Return what the real revision does, which the checks before an upgrade look for; no bind parameters."""
    return revisions.sql(revision, direction).replace(":", "\\:")


@pytest.fixture
def chain(tmp_path: Path, v034: Database) -> Chain:
    return Chain(tmp_path, v034)


def test_hook_runs_after_the_previous_revision_has_committed(chain: Chain) -> None:
    chain.env(AS_ONE_TRANSACTION, NAIVE_HOOKS, IMPORTED)
    chain.upgrade()
    assert chain.calls == [("100", "097"), ("101", "097")]

    assert chain.run("downgrade", "097").returncode == 0
    chain.database.execute("TRUNCATE public.hook_call")
    chain.env()
    chain.upgrade()
    assert chain.calls == [("100", "097"), ("101", "100")]
    assert chain.database.revision == "101"


def test_hook_finds_the_migration_connection_outside_a_transaction(chain: Chain) -> None:
    chain.env(NAIVE_HOOKS, IMPORTED)
    chain.upgrade()
    assert "idle in transaction" in chain.states

    assert chain.run("downgrade", "097").returncode == 0
    chain.database.execute("TRUNCATE public.hook_call")
    chain.env()
    chain.upgrade()
    assert chain.calls == [("100", "097"), ("101", "100")]
    assert chain.states == {"idle"}


def test_alembic_iterates_its_work_function_lazily(chain: Chain) -> None:
    chain.env(MATERIALISED)
    chain.upgrade()
    assert chain.calls == [("100", "097"), ("101", "097")]

    assert chain.run("downgrade", "097").returncode == 0
    chain.env()
    chain.upgrade()
    assert chain.calls[2:] == [("100", "097"), ("101", "100")]


def test_hook_runs_every_time_its_revision_is_about_to_be_applied(chain: Chain) -> None:
    chain.env(SAYS_ITS_WORK)
    assert "work: upgrade\n" in chain.upgrade()
    chain.upgrade()
    assert chain.run("downgrade", "100").returncode == 0
    assert [revision for revision, _ in chain.calls] == ["100", "101"]
    chain.upgrade()
    assert [revision for revision, _ in chain.calls] == ["100", "101", "101"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("downgrade base", "downgrade"),
        ("stamp head", "do_stamp"),
        ("current", "display_version"),
        ("check", "retrieve_migrations"),
        ("upgrade 097:head --sql", "upgrade"),
        ("history", "_display_current_history"),
        ("heads", None),
    ],
)
def test_hook_does_not_run_on_other_commands(chain: Chain, command: str, name: str | None) -> None:
    # env.py knows a command by this name alone.
    chain.env(SAYS_ITS_WORK)
    result = chain.run(*command.split())
    assert re.findall("work: (.*)", result.stdout) == ([name] if name else [])
    assert chain.calls == []
    assert chain.database.value("SELECT to_regclass('public.made_by_100') IS NULL")


def test_script_without_the_sql_of_a_hook_is_refused_and_with_it_runs_that(chain: Chain) -> None:
    made = chain.run("upgrade", "097:head", "--sql")
    assert made.returncode != 0
    assert "100_step.py has a hook, and no 100_step.sql beside it does the same" in made.stdout
    assert "BEGIN" not in made.stdout
    for revision in ("100", "101"):
        beside = chain.directory / "alembic" / "versions" / f"{revision}_step.sql"
        beside.write_text("INSERT INTO hook_call (revision) VALUES ('of a script');\n")
    made = chain.run("upgrade", "097:head", "--sql")
    assert made.returncode == 0, made.stdout
    # Outside the step's transaction, before it.
    assert made.stdout.count("COMMIT;\n\nINSERT INTO hook_call") == 2


def test_failing_hook_leaves_the_version_and_the_next_run_retries(chain: Chain) -> None:
    result = chain.run("upgrade", "head", HOOK_FAILS="1")
    assert result.returncode != 0
    assert "the hook of 100 has failed" in result.stdout
    assert "Traceback" not in result.stdout
    assert chain.database.revision == "097"
    assert chain.database.value("SELECT to_regclass('public.made_by_100') IS NULL")

    chain.upgrade()
    assert chain.database.revision == "101"
    assert chain.calls == [("100", "097"), ("100", "097"), ("101", "100")]


def test_failing_hook_keeps_the_revisions_before_it(chain: Chain) -> None:
    versions = chain.directory / "alembic" / "versions"
    third = (versions / "101_step.py").read_text()
    (versions / "101_step.py").write_text(third.replace('os.environ.get("HOOK_FAILS")', "True"))
    assert chain.run("upgrade", "head").returncode != 0
    assert chain.database.revision == "100"
    assert chain.database.value("SELECT to_regclass('public.made_by_100') IS NOT NULL")

    (versions / "101_step.py").write_text(third)
    chain.upgrade()
    assert chain.calls == [("100", "097"), ("101", "100"), ("101", "100")]
