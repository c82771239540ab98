"""Who may create in schema public gets no code of theirs run by this project, whatever it fits better.

What is planted are functions, operators, casts and views of pg_catalog's names, and functions of this
project's names with other arguments, each of which fits some call better than what is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from tests.support.closing import Session
from tests.support.database import Database
from tests.support.oracle import wrong_buckets
from tests.support.pg_cron import PG_CRON
from tests.support.product import event, small_world
from tests.support.roles import MakeRole, give_everything_to
from tests.support.shapes import make_products
from tests.support.v034 import generate_history
from tests.support.ways import WAYS, Way

# Signature, result. The types are those that a driver sends (smallint for small numbers), that literals
# have (integer), or that nobody means, which is what unknown literals are resolved to (text).
FUNCTIONS = [
    *(
        (f"pg_try_advisory{kind}_lock{shared}({number})", "boolean")
        for kind in ("", "_xact")
        for shared in ("", "_shared")
        for number in ("smallint", "integer")
    ),
    *(
        (f"pg_advisory_unlock{shared}({number})", "boolean")
        for shared in ("", "_shared")
        for number in ("smallint", "integer")
    ),
    ("unnest(text[])", "SETOF text"),
    ("unnest(integer[])", "SETOF integer"),
    ("unnest(uuid[])", "SETOF uuid"),
    ("format(text)", "text"),
    ("format(text, text)", "text"),
    ("format(text, name)", "text"),
    ("format(text, bigint)", "text"),
    ("format(text, text, text)", "text"),
    ("concat(text, text)", "text"),
    ("concat_ws(text, text, text)", "text"),
    ("num_nonnulls(regclass, regclass, regclass)", "integer"),
    ("num_nonnulls(regclass, regclass, regclass, regclass)", "integer"),
    ("num_nonnulls(timestamptz, uuid, uuid, uuid)", "integer"),
    ("num_nonnulls(uuid, uuid)", "integer"),
    ("num_nulls(oid, regprocedure)", "integer"),
    ("num_nulls(regclass, regclass, regclass)", "integer"),
    ("now()", "timestamptz"),
    ("clock_timestamp()", "timestamptz"),
    ("date_trunc(text, timestamp)", "timestamp"),
    ("timezone(text, timestamptz)", "timestamp"),
    ("timezone(text, timestamp)", "timestamptz"),
    ("to_regclass(text)", "regclass"),
    ("to_regprocedure(text)", "regprocedure"),
    ("set_config(text, text, boolean)", "text"),
    ("set_config(text, name, boolean)", "text"),
    ("current_setting(text)", "text"),
    ("current_setting(text, boolean)", "text"),
    ("array_agg(name)", "name[]"),
    ("count(uuid)", "bigint"),
    ("max(varchar)", "varchar"),
    ("string_agg(name, text)", "text"),
    ("quote_ident(name)", "text"),
    ("left(name, integer)", "text"),
    ("starts_with(name, text)", "boolean"),
    ("array_to_string(name[], text)", "text"),
    ("cardinality(text[])", "integer"),
    ("make_interval(secs double precision)", "interval"),
    ("has_schema_privilege(text, text)", "boolean"),
    ("has_table_privilege(regclass, text)", "boolean"),
    ("pg_has_role(name, text)", "boolean"),
    ("pg_get_userbyid(integer)", "name"),
    ("jsonb_array_elements_text(text)", "SETOF text"),
    ("lower(tstzrange)", "timestamptz"),
    ("div(numeric, bigint)", "numeric"),
    ("round(double precision, integer)", "numeric"),
    ("pg_get_functiondef(regprocedure)", "text"),
    ("version()", "text"),
    ("current_schema()", "name"),
    ("pg_backend_pid()", "integer"),
    # Of this project's names.
    ("rollup_task_usage_hourly_window(text, text)", "bigint"),
    ("rollup_task_usage_hourly_window(timestamptz, text)", "bigint"),
    ("rollup_task_usage_hourly_plan(timestamptz, integer)", "void"),
    ("rollup_task_usage_hourly_plan(timestamptz, smallint, timestamptz)", "void"),
    ("rollup_task_usage_hourly_plan(timestamptz, integer, timestamptz)", "void"),
    ("rollup_task_usage_hourly_plan_repair(integer)", "bigint"),
    ("rollup_task_usage_hourly_plan_repair(smallint)", "bigint"),
    ("rollup_task_usage_hourly_settle(timestamptz, timestamptz)", "bigint"),
    ("rollup_task_usage_hourly_drain(integer)", "public.task_usage_hourly_invalidation[]"),
    ("rollup_task_usage_hourly_aggregate(timestamptz, text)", "SETOF task_usage_hourly"),
    ("task_usage_hourly_horizon()", "timestamptz"),
    ("task_usage_hourly_horizon(text)", "timestamptz"),
    ("task_usage_hourly_differences()", "SETOF timestamptz"),
    ("task_usage_hourly_differences(boolean)", "SETOF timestamptz"),
    ("task_usage_hourly_differences(timestamptz)", "SETOF timestamptz"),
    ("task_usage_hourly_differences(timestamptz, timestamptz)", "SETOF timestamptz"),
    ("task_usage_hourly_differences(text, text, boolean)", "SETOF timestamptz"),
    ("task_usage_hourly_slices(tstzmultirange, integer)", "SETOF task_usage_hourly"),
    ("task_usage_hourly_slices(tstzmultirange, smallint)", "SETOF task_usage_hourly"),
    ("task_usage_hourly_sum(bigint)", "bigint"),
    ("task_usage_hourly_acl(aclitem)", "jsonb"),
    ("prune_task_usage_hourly_dirty()", "bigint"),
]

OPERATORS = [
    ("||", "name", "text"),
    ("||", "text", "name"),
    ("||", "text", "integer"),
    ("||", "text", "bigint"),
    ("*", "numeric", "integer"),
    ("*", "double precision", "integer"),
    ("*", "interval", "integer"),
    ("/", "interval", "integer"),
    ("/", "numeric", "integer"),
    ("-", "numeric", "integer"),
    ("+", "numeric", "bigint"),
    ("=", "smallint", "bigint"),
    ("=", "oid", "integer"),
    ("=", "oid", "smallint"),
    ("=", "oid", "regclass"),
    ("=", "regclass", "oid"),
    ("=", '"char"', "text"),
    ("=", "name", "name[]"),
    ("=", "varchar", "text"),
    ("<>", "smallint", "integer"),
    ("<", "timestamptz", "text"),
    (">=", "timestamptz", "text"),
    ("~~", "name", "name"),
    ("<<", "bigint", "bigint"),
    ("|", "bigint", "oid"),
]

VIEWS = ["pg_settings", "pg_locks", "pg_stat_activity", "pg_class", "pg_proc", "pg_roles", "pg_database"]


def plant(database: Database, role: str) -> None:
    """Plant all of it as `role`, who may do nothing but create in public; what is run says so in a log."""
    database.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
    database.execute(
        "CREATE SCHEMA seen; CREATE TABLE seen.log (what text, as_role text, query text);"
        "GRANT USAGE ON SCHEMA seen TO PUBLIC; GRANT INSERT ON seen.log TO PUBLIC"
    )
    with Session.connect(database.url_of(role), autocommit=True) as session:
        for signature, result in FUNCTIONS:
            _plant(session, signature, result)
        for number, (operator, left, right) in enumerate(OPERATORS):
            result = "boolean" if operator in {"=", "<>", "<", ">=", "~~"} else "text"
            _plant(session, f"op{number}({left}, {right})", result)
            session.execute(
                f"CREATE OPERATOR public.{operator} (FUNCTION = public.op{number}, LEFTARG = {left},"
                f" RIGHTARG = {right})"
            )
        _plant(session, "seen_view(text)", "boolean")
        for view in VIEWS:
            session.execute(
                f"CREATE VIEW public.{view} AS"
                f" SELECT * FROM pg_catalog.{view} WHERE public.seen_view('{view}')"
            )
            session.execute(f"GRANT SELECT ON public.{view} TO PUBLIC")


def _plant(session: psycopg.Connection[object], signature: str, result: str) -> None:
    try:
        session.execute(
            f"CREATE FUNCTION public.{signature} RETURNS {result} LANGUAGE plpgsql AS $f$ BEGIN"
            f" INSERT INTO seen.log VALUES ($s${signature}$s$, current_user, current_query());"
            f" {'RETURN;' if result.startswith('SETOF') or result == 'void' else 'RETURN NULL;'} END $f$"
        )
    except psycopg.errors.UndefinedObject:
        # A table of a later step.
        assert "task_usage_hourly" in result


# As pg_cron's, made by who may create schemas.
CRON = """
SET ROLE %s;
CREATE SCHEMA cron;
GRANT USAGE ON SCHEMA cron TO PUBLIC;
CREATE TABLE cron.job (
    jobid bigint, jobname name, command text, schedule text, database name, active boolean);
INSERT INTO cron.job VALUES (1, 'rollup_task_usage_daily', '', '', current_database(), true),
    (2, 'rollup_task_usage_hourly', '', '', current_database(), true);
GRANT SELECT ON cron.job TO PUBLIC;
CREATE FUNCTION cron.unschedule(bigint) RETURNS boolean LANGUAGE sql AS
$$INSERT INTO seen.log VALUES ('cron.unschedule', current_user, ''); SELECT true$$;
RESET ROLE
"""

OF_OUR_NAMES = """
SELECT oid::regprocedure::text FROM pg_proc
WHERE proowner = %s::regrole AND proname::text ~ 'task_usage'
"""


def uproot(database: Database, role: str) -> None:
    database.execute(f"DROP OWNED BY {role}")


def seen(database: Database) -> list[tuple[object, ...]]:
    return database.execute("SELECT DISTINCT what, as_role, left(query, 100) FROM seen.log")


@dataclass
class Hostile(Database):
    """The same database as `role` reaches it, with public before pg_catalog."""

    role: str = ""
    stranger: str = ""

    @property
    def url(self) -> str:
        url = self.server.url(self.name) if self.role == "postgres" else self.url_of(self.role)
        return f"{url}&options=-csearch_path%3Dpublic,pg_catalog"


@pytest.fixture(params=["a superuser", "the owner"])
def hostile(request: pytest.FixtureRequest, make_role: MakeRole) -> Iterator[Callable[[Database], Hostile]]:
    """Return a function that gives a database to an owner, plants, and says how it is reached then.

    When the test ends what was planted is gone, because the oracle looks in public.
    """
    planted = []

    def make(database: Database) -> Hostile:
        owner = make_role("owner")
        give_everything_to(database, owner)
        database.execute(f"GRANT CREATE ON DATABASE {database.name} TO {owner}")
        stranger = make_role("stranger")
        plant(database, stranger)
        planted.append((database, stranger))
        return Hostile(
            database.server,
            database.name,
            role=owner if request.param == "the owner" else "postgres",
            stranger=stranger,
        )

    yield make
    for database, stranger in planted:
        uproot(database, stranger)


def test_what_is_planted_is_called_by_who_looks_in_public(
    v034: Database, hostile: Callable[[Database], Hostile]
) -> None:
    # The trap.
    with Session.connect(hostile(v034).url) as session:
        assert session.execute("SELECT * FROM pg_settings").fetchall() == []
        session.execute("SELECT pg_try_advisory_lock(%s), format('%%s', 'a'::text)", (4246,))
        session.execute("SELECT FROM pg_catalog.pg_class WHERE oid = %s", (4246,))
    assert {what for what, *_ in seen(v034)} >= {
        "pg_try_advisory_lock(smallint)",
        "format(text, text)",
        "seen_view(text)",
        "op13(oid, smallint)",
    }


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_revision_runs_what_is_planted_on_the_way_up_or_down(
    v034: Database, hostile: Callable[[Database], Hostile], way: Way
) -> None:
    with v034.connect() as connection:
        generate_history(connection, 200)
    reached = hostile(v034)
    v034.execute(f"GRANT CREATE ON DATABASE {v034.name} TO {reached.stranger}")
    v034.execute(CRON % reached.stranger)
    # Where a function bears a name of ours, nothing is begun.
    assert "is in the way" in way.fails(reached, "upgrade", "097", "head")
    assert seen(v034) == []
    for (function,) in v034.execute(OF_OUR_NAMES, reached.stranger):
        v034.execute(f"DROP FUNCTION {function}")
    way.upgrade(reached, "097", "head", keep_legacy="true")
    assert seen(v034) == []
    way.downgrade(reached, "104", "097")
    assert seen(v034) == []
    way.upgrade(reached, "097", "head")
    assert seen(v034) == []
    assert v034.revision == "104"
    assert v034.value("SELECT sum(event_count) FROM task_usage_hourly") == 200


COMMANDS = [
    ("preflight",),
    ("status",),
    ("verify",),
    ("check",),
    ("schedule",),
    ("tick",),
    ("backfill", "--dry-run"),
    ("backfill",),
    ("backfill", "--repair"),
    ("unschedule",),
]


def test_no_command_tick_or_trigger_runs_what_is_planted(
    head: Database, hostile: Callable[[Database], Hostile]
) -> None:
    head.execute(PG_CRON)
    head.execute("GRANT USAGE ON SCHEMA cron TO PUBLIC")
    world = small_world(head.url)
    event(head.url, world, "2025-03-01 10:15+00")
    head.execute("GRANT SELECT ON alembic_version TO PUBLIC")
    reached = hostile(head)
    # Whatever differs is repaired, and what is written meanwhile goes through the triggers.
    head.execute("DELETE FROM task_usage_hourly")
    with Session.connect(reached.url, autocommit=True) as server:
        server.execute("UPDATE task_usage SET input_tokens = 7, updated_at = created_at")
        server.execute("UPDATE agent_task_queue SET issue_id = NULL")
        server.execute("UPDATE issue SET project_id = NULL")
        server.execute("DELETE FROM issue")
    for command in COMMANDS:
        done = reached.usage_rollup(*command)
        assert "Traceback" not in done.stderr, done.stderr
        # All is pending before the first tick; the catalog holds what is planted under names of ours.
        assert done.returncode in ({0, 3} if command[0] in {"verify", "check"} else {0}), (
            command,
            done.stdout,
            done.stderr,
        )
    for asked in ("current", "check", "history"):
        assert reached.alembic(asked).returncode in (0, 255)
    with Session.connect(reached.url, autocommit=True) as server:
        server.execute("DELETE FROM task_usage")
        server.execute("TRUNCATE task_usage CASCADE")
        server.execute("SELECT public.rollup_task_usage_hourly()")
    assert seen(head) == []


@pytest.mark.parametrize("later", [False, True])
def test_functions_of_the_product_are_not_called_where_somebody_has_planted(
    head: Database, hostile: Callable[[Database], Hostile], later: bool
) -> None:
    event(head.url, small_world(head.url), "2025-03-01 10:15+00")
    make_products(head, later=later)
    head.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch'")
    reached = hostile(head)
    for command in ("tick", "backfill"):
        done = reached.usage_rollup(command)
        assert done.returncode == 1
        assert f" of role {reached.stranger}" in done.stderr
        assert "Traceback" not in done.stderr
        assert "REVOKE CREATE ON SCHEMA public FROM PUBLIC" in done.stderr
    assert seen(head) == []
    uproot(head, reached.stranger)
    for command in ("backfill", "tick"):
        done = reached.usage_rollup(command)
        assert done.returncode == 0, done.stderr
    assert wrong_buckets(head.url) == []
