"""Tick as a server does, and as cron does with `usage-rollup tick`."""

from __future__ import annotations

import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable

import psycopg

from tests.support.database import ROOT, Database
from tests.support.deadline import DEADLINE_S
from tests.support.soak.findings import Finding
from tests.support.soak.writers import LOST
from usage_rollup.errors import TRY_AGAIN

_SERVER_RESTS_S = 1.0
_CRON_RESTS_S = 4.0

# The functions come and go while revisions do; no table of theirs is there without them for long.
_GONE = {"42883", "42P01"}

# What cron may be told, with another status than 75.
_EXCUSES = r"there is no hourly rollup in this database|SQLSTATE (42883|42P01|53100)"

_LEGACY = ("rollup_task_usage_daily", "rollup_task_usage_dashboard_daily")


class Ticks:
    """Two threads that tick, and rest together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._may, self._ends = threading.Event(), threading.Event()
        self._idle: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []
        self.finding: Finding | None = None
        self.count: Counter[str] = Counter()
        for name, tick, rest_s in (
            ("server", self._as_server, _SERVER_RESTS_S),
            ("cron", self._as_cron, _CRON_RESTS_S),
        ):
            self._idle[name] = threading.Event()
            self._threads.append(
                threading.Thread(target=self._run, args=(name, tick, rest_s), daemon=True, name=name)
            )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def go_on(self) -> None:
        self._may.set()

    def pause(self) -> None:
        """Let both finish their ticks; raise what they have found."""
        self._may.clear()
        for name, idle in self._idle.items():
            if not idle.wait(DEADLINE_S):
                raise Finding(f"the tick of {name} has not ended within 120 s")
        self.raise_findings()

    def stop(self) -> None:
        self._ends.set()
        self._may.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def raise_findings(self) -> None:
        if self.finding is not None:
            raise self.finding

    def _run(self, name: str, tick: Callable[[], None], rest_s: float) -> None:
        try:
            while not self._ends.is_set():
                if not self._may.is_set():
                    self._idle[name].set()
                    self._may.wait()
                    self._idle[name].clear()
                    continue
                tick()
                self._ends.wait(rest_s) if self._may.is_set() else None
        except Finding as finding:
            self.finding = finding
        except Exception as error:
            self.finding = Finding(f"the tick of {name}: {error!r}")
            raise
        finally:
            self._idle[name].set()

    def _as_server(self) -> None:
        """Call what there is, on a session of its own: the hourly tick, or both of v0.3.4."""
        for function in ("rollup_task_usage_hourly", *_LEGACY):
            try:
                with psycopg.connect(
                    self._database.url, autocommit=True, application_name="soak tick", connect_timeout=10
                ) as session:
                    session.execute(f"SELECT public.{function}()".encode())
                    self.count["ticks"] += 1
            except psycopg.Error as error:
                if error.sqlstate not in LOST | _GONE:
                    raise Finding(f"SELECT {function}() got SQLSTATE {error.sqlstate}: {error}") from error

    def _as_cron(self) -> None:
        done = subprocess.run(
            ["usage-rollup", "tick"],
            cwd=ROOT,
            env=self._database.environment(DATABASE_STARTUP_TIMEOUT="30s"),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        said = done.stdout + done.stderr
        self.count["ticks"] += done.returncode == 0
        if "Traceback" in said or (done.returncode not in {0, TRY_AGAIN} and not re.search(_EXCUSES, said)):
            raise Finding(f"usage-rollup tick ended with {done.returncode}:\n{said}")
