"""Who owns the product's objects: what tests of roles share. Roles are made by the fixture make_role."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.database import Database

# From a prefix, and attributes of CREATE ROLE where wanted, to the role's name.
MakeRole = Callable[..., str]


def give_everything_to(database: Database, role: str) -> None:
    """Make `role` the owner of the product's objects, as when its server connects as that role."""
    database.execute(f"GRANT ALL ON SCHEMA public TO {role}")
    give_objects_to(database, role)


def give_objects_to(database: Database, role: str) -> None:
    """Make `role` the owner of the product's objects, without any right in their schema."""
    statements = database.execute(
        "SELECT format('ALTER TABLE %s OWNER TO %I', oid::regclass, %s::text) FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        " UNION ALL SELECT format('ALTER FUNCTION %s OWNER TO %I', oid::regprocedure, %s::text)"
        " FROM pg_proc WHERE pronamespace = 'public'::regnamespace".replace("%s::text", f"'{role}'")
    )
    database.execute("; ".join(statement for (statement,) in statements))


def owners(database: Database) -> dict[str, set[str]]:
    """Return who owns which relations and functions of schema public, except alembic_version."""
    result: dict[str, set[str]] = {}
    for owner, name in database.execute(
        "SELECT pg_get_userbyid(relowner), relname FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE 'alembic_version%'"
        " UNION ALL SELECT pg_get_userbyid(proowner), proname FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace"
    ):
        result.setdefault(owner, set()).add(name)
    return result
