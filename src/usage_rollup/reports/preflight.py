"""Tell what `alembic upgrade head` would do to a database, without doing any of it.

What it costs: one snapshot, and ACCESS SHARE on what it reads. Usage is read once by a sequential scan, for
oddities, and once by the index of created_at, for the months to roll up; where the legacy rollups hold rows,
once more, joined to its tasks, to compare. A million rows took 1.5 s, and 5 s more for the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from ..contract import HOURLY_ROLLUP, MIGRATION_RUN
from ..errors import Refusal, SessionLost, UsageRollupError, explain
from ..hourly import pipeline, slices, unseen
from ..hourly.pipeline import Reading
from ..queries import beside, filled
from ..runner import checks, table_locks
from ..session import advisory_lock, blockers, suitability
from ..session.connection import snapshot
from ..session.options import Options
from . import estimate, forecast_103, hidden, odd_usage, place, trigger_rights

_SQL = beside(__file__)

_HOLDERS = filled(_SQL["holders"], conflicts=blockers.CONFLICTS)

_ACTING = suitability.query(suitability.SQL["acting"])

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """Server and database as this role sees them; the owner of task_usage is whom the upgrade acts for.

    Where this role `may_act` for it: nobody else can migrate.
    """

    version: str
    database: str
    role: str
    owner: str | None
    bytes: int
    may_act: bool


@dataclass
class Preflight:
    """The answer: reasons for refusal, then facts. None is what was not asked, or not seen.

    `only_locks`: nothing but locks of other sessions keeps the upgrade from going through.
    """

    refusals: list[Refusal] = field(default_factory=list)
    not_seen: list[str] = field(default_factory=list)
    only_locks: bool = False
    doubts: list[Refusal] = field(default_factory=list)
    in_the_way: list[str] = field(default_factory=list)
    server: Server | None = None
    place: place.Place | None = None
    guard: forecast_103.Guard | None = None
    backfill: estimate.Estimate | None = None
    legacy: forecast_103.Legacy | None = None
    oddities: list[odd_usage.Oddity] = field(default_factory=list)
    trigger_rights: list[trigger_rights.TriggerRights] = field(default_factory=list)
    unseen: list[unseen.Unseen] = field(default_factory=list)

    @property
    def goes_through(self) -> bool:
        """Say whether the upgrade would go through; what could not be seen counts against its steps."""
        if self.place is not None and not self.place.pending:
            return not self.refusals
        return not self.refusals and not self.not_seen

    def is_pending(self, *revisions: str) -> bool:
        """Say whether one of `revisions` is still to be applied."""
        return self.place is not None and any(step.name[:3] in revisions for step in self.place.pending)


def preflight(session: sa.Connection, options: Options) -> Preflight:
    """Collect every refusal and every fact in one REPEATABLE READ, READ ONLY snapshot.

    Entered and left outside a transaction, on a session that keeps the functions lent to it. Takes no
    advisory lock and waits at most half a second for a table.
    """
    look = _Look(session, options)
    look.lend()
    with snapshot(session):
        session.exec_driver_sql("SET LOCAL lock_timeout = '500ms'")
        look.around()
    found = look.found
    found.not_seen = look.hidden.lines()
    found.only_locks = not found.goes_through and look.hidden.only_locks(found.refusals)
    return found


class _Look:
    """One look at a database: each question in a savepoint, so that a refused one is noted and no more."""

    def __init__(self, session: sa.Connection, options: Options) -> None:
        self.session = session
        self.options = options
        self.found = Preflight()
        self.reading: Reading | None = None
        self.not_lent: Refusal | None = None
        self.hidden = hidden.Hidden()
        self.in_snapshot = False
        # As the upgrade does: reasons that only the data tells count where the catalog is against nothing.
        self.reads_data = True

    def lend(self) -> None:
        """Lend this session what reads usage, or keep why not: the upgrade makes it in public."""
        try:
            self.reading = pipeline.reading(self.session)
        except SessionLost:
            raise
        except UsageRollupError as error:
            self.not_lent = error.refusal
        except DBAPIError as error:
            if not isinstance(error.orig, psycopg.Error):
                raise
            if error.orig.sqlstate == hidden.LOCKED:
                self.hidden.note(self.session, "what reads usage", error.orig)
            else:
                self.not_lent = explain(error.orig)

    def around(self) -> None:
        """Ask everything: what is quick first, because it is about this moment."""
        found = self.found
        self.in_snapshot = True
        found.server = self.ask("the server", self.server, None)
        checked = self.ask("the catalog", self.checks, None)
        if checked:
            found.refusals.extend(checked.refusals)
            found.doubts.extend(checked.doubts)
            found.place = place.find(checked)
        self.reads_data = not found.refusals
        found.in_the_way = self.ask("locks", self.in_the_way, [])
        found.trigger_rights = self.ask("trigger rights", lambda: trigger_rights.find(self.session), [])
        found.unseen = self.ask("subscriptions and triggers", lambda: unseen.find(self.session), [])
        if found.server and not found.server.owner and found.is_pending("103"):
            found.guard = forecast_103.NOTHING
        elif found.server and found.server.owner and found.place and self.reading:
            self.usage(self.reading)
        elif found.place and self.not_lent and self.reads_data:
            steps = [step.name[:3] for step in found.place.pending]
            stops = checks.looks_ahead(self.session, steps, self.options)
            (found.refusals if stops else found.doubts).append(self.not_lent)
        if found.guard and found.guard.held_back and self.reading:
            who, hint = self.session.execute(self.reading.sql(slices.HELD_BACK_BY)).one()
            found.refusals.append(
                Refusal(
                    f"the watermark cannot follow usage to within an hour; it is held back by {who}",
                    hint=hint,
                )
            )

    def ask(self, what: str, question: Callable[[], T], otherwise: T) -> T:
        """Return the answer, or note a refusal, or that it cannot be seen, and return `otherwise`."""
        try:
            # Before the snapshot each statement stands alone.
            with self.session.begin_nested() if self.in_snapshot else nullcontext():
                return question()
        except SessionLost:
            raise
        except UsageRollupError as error:
            self.found.refusals.append(error.refusal)
        except DBAPIError as error:
            if not isinstance(error.orig, psycopg.Error):
                raise
            if self.reads_data and error.orig.sqlstate not in hidden.NOTED:
                raise
            self.hidden.note(self.session, what, error.orig)
        return otherwise

    def server(self) -> Server:
        found = self.session.execute(sa.text(_SQL["server"])).mappings().one()
        return Server(**found, may_act=not suitability.ask(self.session, _ACTING))

    def checks(self) -> checks.Found:
        """Ask what the upgrade itself asks before its first write."""
        return checks.find(self.session, "upgrade", place.revisions_after, self.options)

    def in_the_way(self) -> list[str]:
        """Name who holds what a pending step needs; refuse for what would outlast the step's patience."""
        steps_pending = self.found.place.pending if self.found.place else []
        wanted = [(t, mode) for step in steps_pending for mode, tables in step.locks.items() for t in tables]
        if steps_pending:
            ledgers = table_locks.ledgers(self.options.version_table)
            wanted += [(ledger, table_locks.LEDGER_MODE) for ledger in ledgers]
        keys = [MIGRATION_RUN]
        if self.found.is_pending("103"):
            keys.append(HOURLY_ROLLUP)
        waited_for = []
        patience_s = self.options.patience_s(table_locks.PATIENCE_S)
        parameters = {
            "tables": [table for table, _ in wanted],
            "modes": [mode for _, mode in wanted],
            "keys": keys,
            "names": [f"advisory lock {key} ({advisory_lock.NAMES[key]})" for key in keys],
            "patience_s": patience_s,
        }
        for holder in self.session.execute(sa.text(_HOLDERS), parameters).all():
            who = blockers.describe(self.session, [(holder.pid, holder.virtualtransaction)])
            if holder.in_vain:
                self.found.refusals.append(
                    Refusal(
                        f"{holder.what} would not be free within {patience_s:.0f} s: held by {who}",
                        hint=who.hint,
                        facts={"sqlstate": hidden.LOCKED},
                    )
                )
            else:
                waited_for.append(f"{holder.what}: {who}")
        return waited_for

    def usage(self, reading: Reading) -> None:
        """Ask about usage: what the guard would say, what would be rolled up, what would be lost."""
        found, session = self.found, self.session
        drops = found.is_pending("103")
        has_schema, has_pipeline = not found.is_pending("101"), not found.is_pending("102")
        found.guard = guard = self.ask(
            "the guard of 103",
            lambda: forecast_103.guard(
                session, reading, drops=drops, has_schema=has_schema, has_pipeline=has_pipeline
            ),
            None,
        )
        found.oddities = self.ask("oddities in raw usage", lambda: odd_usage.find(session), [])
        if guard and guard.walks:
            # Until 103 the window is ours, or will be.
            walks = estimate.Walk.of(guard, ours=drops)
            found.backfill = self.ask(
                "the history to roll up", lambda: estimate.estimate(session, reading, walks), None
            )
        if drops:
            found.legacy = self.ask(
                "the legacy rollups",
                lambda: forecast_103.legacy(session, reading, self.options.keep_legacy),
                None,
            )
        for asked in (guard, found.legacy):
            found.refusals.extend(asked.refusals if asked and self.reads_data else [])
