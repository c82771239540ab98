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

import psycopg

from tests.support.catalog_snapshot import difference, pinned_session, read, snapshot
from tests.support.closing import Session
from tests.support.database import Database
from tests.support.hostile import CHANGES
from tests.support.oracle import differing_hours
from tests.support.server import Server
from tests.support.starts import STARTS
from usage_rollup.errors import Refusal
from usage_rollup.queries import beside, filled

_SQL = beside(__file__)

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
    reasons: list[Refusal]
    doubts: list[str]
    not_seen: list[str]
    preflight: str
    upgraded: bool
    upgrade: str
    applied: list[str]
    wrong: list[str] = field(default_factory=list)

    @property
    def was_doubted(self) -> bool:
        """Say whether the upgrade ended by what nobody can foresee, and preflight had named."""
        raised = [CHANGES[name].raises for name in self.applied]
        return bool(self.doubts) and any(text and text in self.upgrade for text in raised)


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
                + f"\n--- preflight\n{outcome.preflight[-1500:]}\n--- upgrade\n{outcome.upgrade[-1500:]}"
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
                # What nobody can foresee stops it wherever it is met.
                if not outcome.was_doubted and (changed := difference(after_preflight, snapshot(database))):
                    outcome.wrong.append(f"the refused upgrade changed: {'; '.join(changed)}")
            else:
                outcome.wrong += [
                    f"the upgrade left undone: {what}" for (what,) in read(database, _SQL["undone"])
                ]
                hours = differing_hours(database.url)
                outcome.wrong += [f"the oracle finds {len(hours)} wrong hours"] if hours else []
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
                self.server.create_role(role)
            if needs_space:
                with Session.connect(self.admin.url, autocommit=True) as session:
                    session.execute("SET allow_in_place_tablespaces = on")
                    session.execute(f"CREATE TABLESPACE {gaps['tablespace']} LOCATION ''")
            with contextlib.closing(pinned_session(database)) as session:
                session.execute(filled(_SQL["give_to_owner"], **gaps).encode())
                for statement in ROLES[draw.role]:
                    session.execute(filled(statement, **gaps).encode())
            yield database, database.url_of(login), gaps
        finally:
            self.server.drop_database(database.name)
            if needs_space:
                self.admin.execute(f"DROP TABLESPACE IF EXISTS {gaps['tablespace']}")
            for role in roles:
                self.server.drop_role(role)


def _apply(database: Database, changes: Sequence[str], gaps: dict[str, str]) -> list[str]:
    """Make the changes in one session, which no setting of theirs reaches; return those that were made."""
    applied = []
    with contextlib.closing(pinned_session(database)) as session:
        for name in changes:
            with contextlib.suppress(psycopg.Error):
                if CHANGES[name].sql:
                    session.execute(filled(CHANGES[name].sql, **gaps).encode())
                applied.append(name)
    return applied


def _wait_until_alone(database: Database) -> None:
    """Wait until a command's sessions are over in the server: they hold locks and count against limits."""
    with psycopg.connect(database.server.url("postgres"), autocommit=True) as session:
        pids = session.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()", [database.name]
        ).fetchall()
    if pids:
        database.server.wait_until_gone(*(pid for (pid,) in pids))


def _verdict(printed: str) -> tuple[bool, list[Refusal], list[str], list[str]]:
    """Return what preflight says: its verdict, its reasons, its doubts, what it has not seen."""
    try:
        found = json.loads(printed)
    except ValueError:
        return False, [], [], []
    if "goes_through" not in found:
        parts = (found.get(part) for part in ("error", "detail", "hint", "place"))
        return False, [Refusal(*parts)], [], []
    reasons = [Refusal(r["message"], r["detail"], r["hint"], r["place"]) for r in found["refusals"]]
    return found["goes_through"], reasons, [r["message"] for r in found["doubts"]], found["not_seen"]


def _judge(outcome: Outcome, status: int) -> Iterator[str]:
    """Say what of the two verdicts does not fit together."""
    if "Traceback" in outcome.preflight:
        yield "preflight ends in a traceback"
    if "Traceback" in outcome.upgrade:
        yield "the upgrade ends in a traceback"
    if (status == 0) != outcome.goes_through:
        yield f"preflight exits {status} and says {outcome.goes_through}"
    if outcome.goes_through and not outcome.upgraded and not outcome.was_doubted:
        yield "preflight says that it would go through, and the upgrade is refused"
    if not outcome.goes_through and outcome.upgraded:
        yield "preflight refuses, and the upgrade goes through"
    if not outcome.goes_through and not outcome.reasons:
        yield f"preflight refuses without a reason (not seen: {outcome.not_seen})"
    elif not outcome.goes_through and not outcome.upgraded:
        said = f"FAILED: {Refusal.of(outcome.reasons)}\n"
        # How long each of them waited for the server is its own.
        if not _untimed(outcome.upgrade).endswith(_untimed(said)):
            yield f"the upgrade does not end by saying:\n{said}"


def _untimed(said: str) -> str:
    return re.sub(r" after \d+ s: ", ": ", said)
