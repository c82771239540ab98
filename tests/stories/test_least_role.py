"""The least role: what docs/upgrading.md lists is enough, and of each thing missing one sentence tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.support.catalog_snapshot import snapshot
from tests.support.database import ROOT, Database
from tests.support.product import event, small_world
from tests.support.roles import MakeRole
from tests.support.walks import write_history
from usage_rollup.contract import BASELINE, LEGACY

pytestmark = pytest.mark.server

# What the steps alter; of workspace and project they read nothing.
TABLES = sorted({*BASELINE.columns, *LEGACY.columns} - {"workspace", "project"})
FUNCTIONS = LEGACY.functions.split()


@dataclass(frozen=True)
class Least:
    """A database at v0.3.4, who owns what the steps alter, and who migrates."""

    database: Database
    owner: str
    login: str

    @property
    def url(self) -> str:
        return self.database.url_of(self.login)

    def alembic(self, *arguments: str, **extra: str) -> str:
        done = self.database.alembic(*arguments, DATABASE_URL=self.url, **extra)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def refused(self, *arguments: str, **extra: str) -> str:
        """Run a command that must fail before anything is changed; return what it said."""
        before = snapshot(self.database)
        said = self.database.refused(*arguments, DATABASE_URL=self.url, **extra)
        assert snapshot(self.database) == before
        return said

    def run(self, *arguments: str, status: int = 0) -> str:
        done = self.database.usage_rollup(*arguments, DATABASE_URL=self.url)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


def grant_the_least(database: Database, owner: str, login: str) -> Least:
    statements = [
        *(f'ALTER TABLE "{table}" OWNER TO {owner}' for table in TABLES),
        *(f"ALTER FUNCTION {function} OWNER TO {owner}" for function in FUNCTIONS),
        *(f"GRANT CREATE ON SCHEMA public TO {role}" for role in {owner, login}),
        # The ledger is somebody else's.
        f"GRANT SELECT, INSERT, DELETE ON schema_migrations TO {login}",
    ]
    database.execute("; ".join(statements))
    return Least(database, owner, login)


@pytest.fixture(params=["owner", "member"])
def least(request: pytest.FixtureRequest, v034: Database, make_role: MakeRole) -> Least:
    owner = make_role("product")
    return grant_the_least(
        v034, owner, owner if request.param == "owner" else make_role("migrator", f"IN ROLE {owner}")
    )


@pytest.fixture
def member(v034: Database, make_role: MakeRole) -> Least:
    owner = make_role("product")
    return grant_the_least(v034, owner, make_role("migrator", f"IN ROLE {owner}"))


def test_the_least_role_goes_to_head_and_back_and_runs_every_command(least: Least) -> None:
    write_history(least.database, 200, months=2)
    assert "would be refused" not in least.run("preflight")
    least.alembic("upgrade", "102")
    least.run("backfill", "--jobs", "2")
    least.run("upgrade")
    for command in ("tick", "verify", "status", "check", "unschedule"):
        least.run(command)
    least.run("backfill", "--repair")
    least.run("schedule", status=1)  # There is no pg_cron here.
    least.alembic("downgrade", "097")
    assert least.database.revision == "097"
    least.alembic("upgrade", "head")
    least.run("verify")


def test_who_may_only_add_to_the_ledger_goes_to_head(member: Least) -> None:
    _execute(member, f"REVOKE DELETE ON schema_migrations FROM {member.login}")
    member.alembic("upgrade", "head")
    assert member.database.revision == "104"


Take = Callable[[Least], None]


def owner_of(kind: str, name: str) -> Take:
    return lambda least: _execute(least, f"ALTER {kind} {name} OWNER TO CURRENT_USER")


def revoked(right: str, what: str, *, of_both: bool = False) -> Take:
    def take(least: Least) -> None:
        for role in {least.login, *([least.owner] if of_both else [])}:
            _execute(least, f"REVOKE {right} ON {what} FROM {role}")

    return take


def inheritance(least: Least) -> None:
    _execute(least, f"REVOKE {least.owner} FROM {least.login}")
    _execute(least, f"ALTER ROLE {least.login} NOINHERIT")
    _execute(least, f"GRANT {least.owner} TO {least.login}")


def membership(least: Least) -> None:
    _execute(least, f"REVOKE {least.owner} FROM {least.login}")


def _execute(least: Least, statement: str) -> None:
    least.database.execute(statement)


# What is taken away, which command it is for, and the sentence.
MISSING: dict[str, tuple[Take, tuple[str, ...], str]] = {
    "a table": (
        owner_of("TABLE", "agent"),
        ("upgrade", "head"),
        "not all that the steps alter or call belongs to the owner of task_usage, {owner}: table agent"
        " (postgres)",
    ),
    "a function": (
        owner_of("FUNCTION", "rollup_task_usage_daily"),
        ("upgrade", "head"),
        "not all that the steps alter or call belongs to the owner of task_usage, {owner}: function"
        " rollup_task_usage_daily() (postgres)",
    ),
    "membership": (membership, ("upgrade", "head"), "role {login} may not act for the owner of: agent, "),
    "inheritance": (inheritance, ("upgrade", "head"), "role {login} may not act for the owner of: agent, "),
    "create in public": (
        revoked("CREATE", "SCHEMA public", of_both=True),
        ("upgrade", "100"),
        "role {login} may not create objects in schema public",
    ),
    "read the ledger": (
        revoked("SELECT", "schema_migrations"),
        ("upgrade", "head"),
        "role {login} may not read schema_migrations",
    ),
    "add to the ledger": (
        revoked("INSERT", "schema_migrations"),
        ("upgrade", "head"),
        "role {login} may not write schema_migrations: it lacks INSERT",
    ),
    "delete from the ledger": (
        revoked("DELETE", "schema_migrations"),
        ("downgrade", "100"),
        "role {login} may not write schema_migrations: it lacks DELETE",
    ),
    "a schema to keep the legacy rollups in": (
        lambda _: None,
        ("-x", "keep-legacy=true", "upgrade", "head"),
        "role {login} may not create schema legacy_usage to keep the legacy rollups in",
    ),
}


@pytest.mark.parametrize("missing", MISSING)
def test_one_thing_missing_is_told_in_one_sentence_before_anything_is_changed(
    member: Least, missing: str
) -> None:
    take, command, sentence = MISSING[missing]
    if "downgrade" in command:
        member.alembic("upgrade", "101")
    take(member)
    said = member.refused(*command)
    told = said.removeprefix("FAILED: ").splitlines()
    assert told[0].startswith(sentence.format(owner=member.owner, login=member.login))
    assert told[1].startswith("HINT: ")
    assert len(told) == 2, said


def test_whose_transactions_cannot_be_seen_is_told_with_the_grant_that_shows_them(
    member: Least, make_role: MakeRole
) -> None:
    server = make_role("server")
    _execute(member, f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {server}")
    world = small_world(member.database.url)
    event(member.database.url, world)
    member.alembic("upgrade", "102")
    with member.database.connect() as writer:
        writer.execute(f"SET SESSION AUTHORIZATION {server}".encode())
        event(writer, world)
        said = member.refused("upgrade", "head")
        assert "no safe horizon: transactions are open whose start this role cannot see" in said
        assert f"or GRANT pg_read_all_stats TO {member.login}" in said
        _execute(member, f"GRANT pg_read_all_stats TO {member.login}")
        # The horizon is that transaction's start now; 103 itself waits for it, as for every writer.
        done = member.database.usage_rollup("backfill", DATABASE_URL=member.url)
        assert done.returncode == 0, done.stderr
        writer.commit()
    member.alembic("upgrade", "head")


def test_the_guide_names_what_is_asked_for() -> None:
    guide = (ROOT / "docs" / "upgrading.md").read_text("utf-8")
    section = guide.split("## The least role\n")[1].split("\n## ")[0]
    for table in TABLES:
        assert f"`{table}`" in section, table
    for right in (
        "CREATE ON SCHEMA public",
        "SELECT, INSERT, DELETE ON schema_migrations",
        "pg_read_all_stats",
    ):
        assert right in section
