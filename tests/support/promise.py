"""Hold the promise: what preflight says of a database is what the upgrade then does, whatever was done to it.

A draw is a start, a role that migrates, and changes of the catalogue (hostile.py). keep() replays one.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.support.database import Database, MakeDatabase
from tests.support.go_runner import taken_by_go_to
from tests.support.hostile import CHANGES, Change
from tests.support.later_release import apply_later_release
from tests.support.legacy import lose_raw_rows, roll_up_as_v034
from tests.support.oracle import differing_hours
from tests.support.product import event, small_world
from tests.support.server import Server
from tests.support.shapes import make_products
from tests.support.v034 import build_v034
from tests.support.walks import write_history
from usage_rollup.queries import beside, filled

SNAPSHOT = beside(__file__.replace("promise", "catalog_snapshot"))["snapshot"]

# Whatever the database sets; a superuser's, so that no policy and no limit binds it.
PINNED = (
    "-c search_path=public -c row_security=off -c TimeZone=UTC -c DateStyle=ISO -c statement_timeout=0"
    " -c lock_timeout=10s -c default_transaction_read_only=off"
    " -c default_transaction_isolation=read\\ committed"
    " -c session_replication_role=replica -c default_tablespace="
    " -c standard_conforming_strings=on -c local_preload_libraries= -c xmlbinary=base64"
    " -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0 -c client_min_messages=warning"
)

BEFORE_100 = frozenset({"legacy", "timezone", "before_100", "no_hourly", "no_pipe", "not_ours", "no_version"})

# What is on a start, and is not, for a change to ask for.
START_TRAITS: dict[str, frozenset[str]] = {
    "v034": BEFORE_100,
    "v034_with_losses": BEFORE_100,
    "v034_without_usage": BEFORE_100,
    "stuck_at_103": frozenset({"legacy", "timezone", "hourly", "piped", "go", "not_ours", "no_version"}),
    "ours_at_100": frozenset({"legacy", "timezone", "no_hourly", "no_pipe", "not_ours", "version"}),
    "ours_at_101": frozenset({"legacy", "timezone", "hourly", "no_pipe", "not_ours", "version"}),
    "half_way": frozenset({"legacy", "timezone", "hourly", "piped", "ours", "version"}),
    "head": frozenset({"hourly", "piped", "ours", "version"}),
    "later_release": frozenset({"hourly", "piped", "ours", "version"}),
    "go_104": frozenset({"hourly", "piped", "not_ours", "no_version"}),
    "go_later": frozenset({"hourly", "piped", "not_ours", "no_version"}),
    "v034_in_sql_ascii": BEFORE_100,
    "v034_in_latin1": BEFORE_100,
}

Statements = tuple[str, ...]

# What makes :login migrate for :owner; who owns schema and database besides the objects.
ROLES: dict[str, Statements] = {
    "superuser": ("ALTER ROLE :login SUPERUSER",),
    "superuser_for_the_owner": ("ALTER ROLE :login SUPERUSER",),
    "owner": ("ALTER SCHEMA public OWNER TO :owner", "ALTER DATABASE :database OWNER TO :owner"),
    "owner_with_few_rights": (),
    "member": ("GRANT :owner TO :login", "GRANT CREATE ON DATABASE :database TO :login"),
    "member_who_must_set_role": ("ALTER ROLE :login NOINHERIT", "GRANT :owner TO :login"),
    "member_who_becomes_the_owner": ("GRANT :owner TO :login", "ALTER ROLE :login SET role = :owner"),
}
# Where :login owns everything itself.
OWN = {"superuser", "owner", "owner_with_few_rights"}

GIVE_TO_OWNER = """
DO $$ DECLARE o record; BEGIN
    FOR o IN SELECT format('ALTER TABLE %s OWNER TO :owner', oid::regclass) AS change FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm')
        UNION ALL SELECT format('ALTER ROUTINE %s OWNER TO :owner', oid::regprocedure) FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    LOOP EXECUTE o.change; END LOOP;
END $$;
GRANT USAGE, CREATE ON SCHEMA public TO :owner
"""


@dataclass(frozen=True)
class Draw:
    """What is played: printed, it is the call that plays it again."""

    start: str
    role: str
    changes: tuple[str, ...] = ()


class Broken(AssertionError):
    """Preflight and upgrade do not agree."""


@dataclass
class Outcome:
    """What the commands said; `applied` are the changes that could be made where others had been made."""

    goes_through: bool
    reasons: list[str]
    not_seen: list[str]
    preflight: str
    upgraded: bool
    upgrade: str
    applied: list[str]
    wrong: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------
# Starts


def _with_usage(database: Database) -> Database:
    write_history(database, 200, months=3)
    roll_up_as_v034(database)
    return database


def _with_losses(database: Database) -> Database:
    lose_raw_rows(
        _with_usage(database), "created_at < (SELECT min(created_at) + interval '9 days' FROM task_usage)"
    )
    return database


def _half_way(database: Database) -> Database:
    with _with_usage(database).connect() as connection:
        connection.execute(
            "SELECT rollup_task_usage_hourly_plan(task_usage_hourly_horizon(), 30, '-infinity')"
        )
        connection.execute("SELECT rollup_task_usage_hourly_slice()")
    assert database.value("SELECT count(*) FROM task_usage_hourly_backfill WHERE walked_at IS NULL") > 0
    return database


def _at_head(make: MakeDatabase) -> Database:
    database = _with_usage(make("v034"))
    database.upgrade()
    return database


def _in_encoding(make: MakeDatabase, encoding: str) -> Database:
    database = make(f"encoding {encoding}")
    with database.connect(client_encoding="UTF8") as connection:
        build_v034(connection)
    world = small_world(database.url)
    for day in range(1, 9):
        event(database.url, world, f"2026-0{day}-05 10:15+00")
    bytes_of_no_utf8 = (
        r"convert_from('\x636166e9'::bytea, 'LATIN1')" if encoding == "LATIN1" else r"E'caf\xe9'"
    )
    database.execute(
        "INSERT INTO task_usage (task_id, provider, model, created_at)"
        f" SELECT task_id, provider, {bytes_of_no_utf8}, created_at FROM task_usage"
    )
    roll_up_as_v034(database)
    return database


STARTS: dict[str, Callable[[MakeDatabase], Database]] = {
    "v034": lambda make: _with_usage(make("v034")),
    "v034_with_losses": lambda make: _with_losses(make("v034")),
    "v034_without_usage": lambda make: make("v034"),
    "stuck_at_103": lambda make: _with_usage(taken_by_go_to(make, "102")),
    "ours_at_100": lambda make: _with_usage(make("100")),
    "ours_at_101": lambda make: _with_usage(make("101")),
    "half_way": lambda make: _half_way(make("102")),
    "head": _at_head,
    "later_release": lambda make: apply_later_release(_at_head(make)),
    "go_104": lambda make: make_products(_at_head(make), later=False),
    "go_later": lambda make: make_products(_at_head(make), later=True),
    "v034_in_sql_ascii": lambda make: _in_encoding(make, "SQL_ASCII"),
    "v034_in_latin1": lambda make: _in_encoding(make, "LATIN1"),
}
assert STARTS.keys() == START_TRAITS.keys()


def fits(change: Change, start: str) -> bool:
    """Say whether all that a change asks for is on a start."""
    return change.on <= START_TRAITS[start]


class Stage:
    """Templates of all starts on one server, and draws played on clones of them: nothing is left behind."""

    def __init__(self, server: Server, templates: Callable[[str], str]) -> None:
        self.server = server
        self.templates = templates
        self.admin = Database(server, "postgres")
        self.built: dict[str, Database] = {}
        self.counted: dict[bool, int] = {True: 0, False: 0}

    def close(self) -> None:
        for database in self.built.values():
            self.server.drop_database(database.name)

    def start(self, start: str) -> Database:
        """Return the template of a start, after building it where it was not yet asked for."""
        if start not in self.built:
            database = STARTS[start](self._make)
            database.end_sessions()
            self.built[start] = database
        return self.built[start]

    def _make(self, point: str) -> Database:
        name = f"start_{uuid.uuid4().hex[:12]}"
        if point.startswith("encoding "):
            encoding = point.split()[1]
            self.admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        else:
            self.server.create_database(name, template=self.templates(point))
        return Database(self.server, name)

    def keep(self, start: str, role: str, *changes: str) -> Outcome:
        """Play a draw; raise Broken, with the call that plays it again, when the promise is broken."""
        outcome = self.play(Draw(start, role, changes))
        self.counted[outcome.goes_through] += 1
        if outcome.wrong:
            call = ", ".join(map(repr, (start, role, *changes)))
            raise Broken(
                f"stage.keep({call})\napplied: {', '.join(outcome.applied) or 'nothing'}\n"
                + "\n".join(outcome.wrong)
                + f"\n--- preflight\n{outcome.preflight}\n--- upgrade\n{outcome.upgrade}"
            )
        return outcome

    def play(self, draw: Draw) -> Outcome:
        """Play a draw and say what happened, and what of it is `wrong`."""
        with self._scene(draw) as (database, url, gaps):
            applied = _apply(database, draw.changes, gaps)
            environment = {"DATABASE_URL": url, "DATABASE_STARTUP_TIMEOUT": "2s", "LOCK_TIMEOUT": "5s"}
            for name in applied:
                environment |= CHANGES[name].environment
            before = snapshot(database)
            said = database.usage_rollup("preflight", "--json", **environment)
            _wait_until_alone(database)
            after_preflight = snapshot(database)
            done = database.alembic("upgrade", "head", **environment)
            _wait_until_alone(database)
            outcome = Outcome(
                *_verdict(said.stdout),
                f"{said.stdout}{said.stderr}",
                done.returncode == 0,
                done.stdout,
                applied,
            )
            outcome.wrong += _judge(outcome, said.returncode)
            if changed := difference(before, after_preflight):
                outcome.wrong.append(f"preflight changed: {'; '.join(changed)}")
            if not outcome.upgraded:
                if changed := difference(after_preflight, snapshot(database)):
                    outcome.wrong.append(f"the refused upgrade changed: {'; '.join(changed)}")
            else:
                version = _read(database, "SELECT version_num FROM public.alembic_version")
                outcome.wrong += [f"the upgrade ended at {version}"] if version != [("104",)] else []
                hours = differing_hours(database.url)
                outcome.wrong += (
                    [f"the oracle finds {len(hours)} wrong hours after the upgrade"] if hours else []
                )
            return outcome

    @contextlib.contextmanager
    def _scene(self, draw: Draw) -> Iterator[tuple[Database, str, dict[str, str]]]:
        """Lend a clone of a start and its cast of roles; all is gone when the block is left."""
        tag = uuid.uuid4().hex[:8]
        login = f"login_{tag}"
        gaps = {
            "database": f"play_{tag}",
            "login": login,
            "owner": login if draw.role in OWN else f"owner_{tag}",
            "stranger": f"stranger_{tag}",
            "tablespace": f"space_{tag}",
        }
        database = Database(self.server, gaps["database"])
        roles = {gaps["login"], gaps["owner"], gaps["stranger"]}
        needs_space = any(":tablespace" in CHANGES[name].sql for name in draw.changes)
        try:
            self.server.create_database(database.name, template=self.start(draw.start).name)
            for role in roles:
                self.admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
            if needs_space:
                with psycopg.connect(self.admin.url, autocommit=True) as session:
                    session.execute("SET allow_in_place_tablespaces = on")
                    session.execute(f"CREATE TABLESPACE {gaps['tablespace']} LOCATION ''")
            with contextlib.closing(_session(database)) as session:
                session.execute(filled(GIVE_TO_OWNER, **gaps).encode())
                for statement in ROLES[draw.role]:
                    session.execute(filled(statement, **gaps).encode())
            yield database, database.url_of(login), gaps
        finally:
            self.server.drop_database(database.name)
            if needs_space:
                self.admin.execute(f"DROP TABLESPACE IF EXISTS {gaps['tablespace']}")
            for role in roles:
                self.admin.execute(f"DROP ROLE IF EXISTS {role}")


def _session(database: Database) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(database.url, autocommit=True, options=PINNED, client_encoding="SQL_ASCII")


def _apply(database: Database, changes: Sequence[str], gaps: dict[str, str]) -> list[str]:
    """Make the changes in one session, which no setting of theirs reaches; return those that were made."""
    applied = []
    with contextlib.closing(_session(database)) as session:
        for name in changes:
            with contextlib.suppress(psycopg.Error):
                if CHANGES[name].sql:
                    session.execute(filled(CHANGES[name].sql, **gaps).encode())
                applied.append(name)
    return applied


def snapshot(database: Database) -> list[tuple[str, ...]]:
    """Return all that a refusal must leave as it was."""
    return _read(database, SNAPSHOT)


def _read(database: Database, query: str) -> list[tuple[str, ...]]:
    """Return rows of text, whatever their encoding."""
    with contextlib.closing(_session(database)) as session:
        rows = session.execute(query.encode()).fetchall()
    return [tuple(bytes(value).decode("utf-8", "replace") for value in row) for row in rows]


def difference(before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> list[str]:
    """Say what came and what went, by catalog: the names of a few, and how many more."""
    lines = []
    for sign, some in (("-", set(before) - set(after)), ("+", set(after) - set(before))):
        named: dict[str, list[str]] = {}
        for what, line in sorted(some):
            found = _NAME.search(line)
            named.setdefault(what, []).append(found[1] if found else line[:80])
        for what, names in named.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{sign} {what}: {', '.join(names[:3])}{more}")
    return lines


# What a row of a catalog, or a digest of a table, goes by.
_NAME = re.compile(r'"(?:\w+name|table)": "((?:[^"\\]|\\.)*)"')


def _wait_until_alone(database: Database) -> None:
    """Wait until a command's sessions are over in the server: they hold locks and count against limits."""
    with psycopg.connect(database.server.url("postgres"), autocommit=True) as session:
        pids = session.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()", [database.name]
        ).fetchall()
    if pids:
        database.server.wait_until_gone(*(pid for (pid,) in pids))


def _verdict(printed: str) -> tuple[bool, list[str], list[str]]:
    """Return what preflight says: whether it goes through, each part of each reason, what it has not seen."""
    try:
        found = json.loads(printed)
    except ValueError:
        return False, [], []
    if "goes_through" not in found:
        return False, [part for part in (found["error"], found.get("detail"), found.get("hint")) if part], []
    parts = [r[part] for r in found["refusals"] for part in ("message", "detail", "hint") if r[part]]
    return found["goes_through"], parts, found["not_seen"]


def _judge(outcome: Outcome, status: int) -> Iterator[str]:
    """Say what of the two verdicts does not fit together."""
    if "Traceback" in outcome.preflight:
        yield "preflight ends in a traceback"
    if "Traceback" in outcome.upgrade:
        yield "the upgrade ends in a traceback"
    if (status == 0) != outcome.goes_through:
        yield f"preflight exits {status} and says {outcome.goes_through}"
    if outcome.goes_through and not outcome.upgraded:
        yield "preflight says that it would go through, and the upgrade is refused"
    if not outcome.goes_through and outcome.upgraded:
        yield "preflight refuses, and the upgrade goes through"
    if not outcome.goes_through and not outcome.reasons:
        yield f"preflight refuses without a reason (not seen: {outcome.not_seen})"
    if not outcome.goes_through and not outcome.upgraded:
        printed = "".join(outcome.upgrade.split())
        for reason in outcome.reasons:
            if "".join(reason.split()) not in printed:
                yield f"the upgrade does not say: {reason}"
