"""Write as the product's server does, on sessions that are lost now and then, and know what must be there."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from tests.support.deadline import DEADLINE_S
from tests.support.soak.findings import Finding
from tests.support.soak.world import VERBS, Statement, World, change_zone, read, tear_down

# Longer than any pause a server may be made to wait (I7), however busy the machine: 57014 is a finding.
_PATIENCE = "60s"

# What a server expects of its database: the session ended, the server goes down or starts, its disk is full.
LOST = {None, "57P01", "57P02", "57P03", "53100"}

# What it expects of workspace deletion, which waits ten seconds. RESTRICT is 23503 until PostgreSQL 17.
_TEARDOWN = {"55P03", "23503", "23001"}

# v0.3.4 writes a column that 104 takes away.
_COLUMN_GONE = "42703"

_APPLICATION = "soak writer"
_RETRY_S = 0.05
_BETWEEN_S = 0.04  # on average


@dataclass
class Writers:
    """Threads, each with a session and workspaces of its own."""

    url: str
    all: list[Writer] = field(default_factory=list)

    def start(self, homes: list[UUID], seed: str) -> None:
        """Begin to write, a writer for each home."""
        self.all = [
            Writer(self.url, home, Random(f"{seed}/writer/{number}")) for number, home in enumerate(homes)
        ]
        for writer in self.all:
            writer.start()

    def pause(self) -> None:
        """Let every writer finish its transaction; return when all have."""
        for writer in self.all:
            writer.may_write.clear()
        for writer in self.all:
            if not writer.rests.wait(DEADLINE_S):
                raise Finding(f"{writer.name} has not ended its transaction within 120 s")
        self.raise_findings()

    def go_on(self) -> None:
        for writer in self.all:
            writer.may_write.set()

    def stop(self) -> None:
        for writer in self.all:
            writer.ends = True
            writer.may_write.set()
        for writer in self.all:
            writer.join(DEADLINE_S)

    def raise_findings(self) -> None:
        """Raise what a writer has found."""
        for writer in self.all:
            if writer.finding is not None:
                raise writer.finding

    def require_rows(self) -> None:
        """Compare what is there with what was acknowledged, while all rest."""
        for writer in self.all:
            with psycopg.connect(self.url) as connection:
                there = read(connection, writer.world.home, writer.known)
            if difference := writer.world.difference(there):
                raise Finding(f"{writer.name}: what was committed is not what is there: {difference}")

    @property
    def count(self) -> Counter[str]:
        return sum((writer.count for writer in self.all), Counter())


class Writer(threading.Thread):
    """One session of the product's server, opened anew whenever it is lost."""

    def __init__(self, url: str, home: UUID, rng: Random) -> None:
        super().__init__(daemon=True, name=f"writer in {home}")
        self._url, self._rng = url, rng
        self._session: psycopg.Connection[Any] | None = None
        self._pid = 0
        self.may_write, self.rests = threading.Event(), threading.Event()
        self.ends = False
        self.finding: Finding | None = None
        self.count: Counter[str] = Counter()
        self.known = {home}
        with psycopg.connect(url) as connection:
            self.world = read(connection, home, self.known)

    def run(self) -> None:
        try:
            while True:
                if not self.may_write.is_set():
                    self.rests.set()
                    self.may_write.wait()
                    self.rests.clear()
                if self.ends:
                    break
                self._write()
                time.sleep(self._rng.expovariate(1 / _BETWEEN_S))
        except Finding as finding:
            self.finding = finding
        except Exception as error:
            self.finding = Finding(f"{self.name}: {error!r}")
            raise
        finally:
            self.rests.set()
            if self._session is not None:
                self._session.close()

    def _write(self) -> None:
        """Draw a verb and play it in one transaction; know afterwards whether it was committed."""
        (verb,) = self._rng.choices(list(VERBS), list(VERBS.values()))
        after = self.world.copy()
        statements = verb(self._rng, after)
        takes_back, lingers_s = self._rng.random() < 0.03, self._rng.random()
        # One transaction in twenty is open for a while before it commits.
        lingers_s = lingers_s * 20 if lingers_s < 0.05 else 0.0
        if not statements:
            return
        self.known |= after.workspaces
        session = self._opened()
        try:
            for statement in statements:
                _execute(session, statement)
            time.sleep(lingers_s)
            if takes_back:
                session.rollback()
                self.count["rolled back"] += 1
                return
        except psycopg.Error as error:
            self._refused(error, is_teardown=verb is tear_down, is_zone=verb is change_zone)
            return
        try:
            session.commit()
        except psycopg.Error as error:
            if error.sqlstate not in LOST:
                raise self._unexpected(error) from error
            self._resolve(after)
            return
        self.world = after
        self.count["committed"] += 1

    def _refused(self, error: psycopg.Error, *, is_teardown: bool, is_zone: bool) -> None:
        """Forget a transaction that did not come to its commit; raise Finding where no server expects it."""
        state = error.sqlstate
        if is_teardown and state in _TEARDOWN:
            self.count["teardown refused"] += 1
        elif state == _COLUMN_GONE and is_zone:
            self.count["column gone"] += 1
        elif state in LOST:
            self.count["lost"] += 1
        else:
            raise self._unexpected(error) from error
        assert self._session is not None
        if self._session.closed:
            return
        if self._session.info.transaction_status == TransactionStatus.UNKNOWN:
            self._session.close()
            return
        try:
            self._session.rollback()
        except psycopg.Error:
            self._session.close()

    def _unexpected(self, error: psycopg.Error) -> Finding:
        return Finding(f"{self.name} got SQLSTATE {error.sqlstate}: {error}\n{error.diag.context or ''}")

    def _resolve(self, after: World) -> None:
        """Look whether a commit that nobody has acknowledged took place."""
        self.count["outcome looked up"] += 1
        lost = self._pid
        assert self._session is not None
        self._session.close()
        while True:
            session = self._opened()
            try:
                while session.execute(_ALIVE, [lost, _APPLICATION]).fetchall():
                    session.rollback()
                    time.sleep(_RETRY_S)
                session.rollback()
                there = read(session, after.home, self.known)
                session.rollback()
                break
            except psycopg.Error as error:
                if error.sqlstate not in LOST:
                    raise self._unexpected(error) from error
                session.close()
        if not after.difference(there):
            self.world = after
        elif difference := self.world.difference(there):
            raise Finding(f"{self.name}: an unacknowledged transaction was committed by half: {difference}")

    def _opened(self) -> psycopg.Connection[Any]:
        """Return the session, a new one where it was lost, however long the server stays away."""
        while self._session is None or self._session.closed:
            try:
                self._session = psycopg.connect(
                    self._url,
                    application_name=_APPLICATION,
                    options=f"-c statement_timeout={_PATIENCE}",
                    connect_timeout=10,
                )
                self._pid = self._session.info.backend_pid
            except psycopg.OperationalError:
                time.sleep(_RETRY_S)
        return self._session


_ALIVE = "SELECT FROM pg_stat_activity WHERE pid = %s AND application_name = %s"


def _execute(session: psycopg.Connection[Any], statement: Statement) -> None:
    text, parameters = statement
    session.execute(text.encode(), parameters or None)
