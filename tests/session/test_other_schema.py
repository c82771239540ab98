"""A second task_usage: which one the product's server works on is told by the login's search_path."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.support.database import Database
from tests.support.roles import MakeRole, give_everything_to
from tests.support.ways import WAYS


@pytest.fixture
def owned(v034: Database, make_role: MakeRole) -> tuple[Database, str]:
    """Return a v0.3.4 database whose owner is no superuser, and that role."""
    role = make_role("owner")
    give_everything_to(v034, role)
    return v034, role


@dataclass
class As(Database):
    """A database that is reached as `role`."""

    role: str = ""

    @property
    def url(self) -> str:
        return self.url_of(self.role)


def copy_to(database: Database, schema: str, role: str) -> None:
    database.execute(
        f'CREATE SCHEMA "{schema}" AUTHORIZATION {role};'
        f'CREATE TABLE "{schema}".task_usage (LIKE task_usage);'
        f'ALTER TABLE "{schema}".task_usage OWNER TO {role}'
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("app", "app, public"),
        ("The, App", '"nobody", "The, App", public'),
        ("{role}", '"$user", public'),
    ],
)
def test_copy_in_public_beside_the_one_in_use_is_refused(
    owned: tuple[Database, str], schema: str, path: str, way: str
) -> None:
    database, role = owned
    schema = schema.format(role=role)
    copy_to(database, schema, role)
    database.execute(f'ALTER ROLE {role} IN DATABASE "{database.name}" SET search_path = {path}')
    before = database.catalog()
    said = WAYS[way].fails(As(database.server, database.name, role=role), "upgrade", "097", "head")
    assert (
        f"task_usage is in schema {schema} for role {role}, by its search_path, and another one is in public"
        in " ".join(said.split())
    )
    assert database.catalog() == before


def test_preflight_refuses_in_the_same_words_and_its_hint_cures_it(owned: tuple[Database, str]) -> None:
    database, role = owned
    copy_to(database, "app", role)
    database.execute(f'ALTER DATABASE "{database.name}" SET search_path = app')
    url = database.url_of(role)
    result = database.usage_rollup("preflight", DATABASE_URL=url)
    assert result.returncode == 1
    assert f"task_usage is in schema app for role {role}, by its search_path" in result.stdout
    database.execute(f'ALTER ROLE {role} IN DATABASE "{database.name}" SET search_path = public')
    assert database.usage_rollup("preflight", DATABASE_URL=url).returncode == 0


@pytest.mark.parametrize("path", ["''", '"$user", public', "public, app", "nowhere"])
def test_copy_that_the_login_does_not_find_is_nobodys_business(
    owned: tuple[Database, str], path: str
) -> None:
    database, role = owned
    copy_to(database, "app", role)
    database.execute(f'ALTER ROLE {role} IN DATABASE "{database.name}" SET search_path = {path}')
    database.upgrade(DATABASE_URL=database.url_of(role))
