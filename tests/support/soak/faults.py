"""Strike: what each kind of fault does to the stage, and to the command that runs on it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg

from tests.support.soak.commands import Command
from tests.support.soak.plan import POOLER, Fault
from tests.support.soak.stage import Stage

# A lock that nobody gives a fault: it tries no longer than that, and did not strike.
_LOCK_TIMEOUT = "3s"

_ROWS = {
    "ledger row": "INSERT INTO public.schema_migrations (version) VALUES ('999_soak')",
    "version row": "UPDATE public.alembic_version SET version_num = version_num",
    "state row": "UPDATE public.task_usage_hourly_rollup_state SET last_error = last_error",
}


def strike(stage: Stage, fault: Fault, running: Command) -> bool:
    """Do what `fault` says, for as long as it says; tell whether there was anybody or anything to strike."""
    return _STRIKES[fault.kind](stage, fault, running)


def _restart(stage: Stage, fault: Fault, running: Command) -> bool:
    stage.server.stop("immediate" if fault.target == "immediate" else "fast")
    time.sleep(fault.lasts_s)
    stage.server.restart()
    return True


def _terminate(stage: Stage, fault: Fault, running: Command) -> bool:
    whom = {
        # Behind a pooler the port is the pooler's.
        "runner": "client_port = ANY(%(ports)s) OR application_name = 'usage-rollup'",
        "writer": "pid = (SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'soak writer')",
        "everybody": "datname = current_database() AND pid <> pg_backend_pid()",
    }[fault.target]
    with stage.admin() as session:
        ended = session.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {whom}".encode(),
            {"ports": stage.road.ports()},
        ).fetchall()
    return bool(ended)


def _signal(stage: Stage, fault: Fault, running: Command) -> bool:
    if running.process.poll() is not None:
        return False
    with suppress(ProcessLookupError):
        os.killpg(running.process.pid, signal.Signals[f"SIG{fault.target}"])
    return True


def _network(stage: Stage, fault: Fault, running: Command) -> bool:
    if fault.target == "cut":
        hit = bool(stage.road.ports())
        stage.road.cut()
        return hit
    hold = {
        "hold": stage.road.held,
        "swallow": stage.road.swallowing,
        "refuse": stage.road.closed,
    }[fault.target]
    with hold():
        time.sleep(fault.lasts_s)
    return True


def _lock(stage: Stage, fault: Fault, running: Command) -> bool:
    statement = _ROWS.get(fault.target, f"LOCK TABLE public.{fault.target} IN ACCESS EXCLUSIVE MODE")
    with stage.admin() as session:
        session.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'".encode())
        try:
            with session.transaction(force_rollback=True):
                session.execute(statement.encode())
                time.sleep(fault.lasts_s)
        except (
            psycopg.errors.UndefinedTable,
            psycopg.errors.LockNotAvailable,
            psycopg.errors.UniqueViolation,
        ):
            return False
    return True


def _rival(stage: Stage, fault: Fault, running: Command) -> bool:
    if fault.target == "command":
        running.add_rival()
        return True
    with stage.admin() as session:
        give_up = time.monotonic() + fault.lasts_s
        attempt = "SELECT pg_try_advisory_lock(%s::bigint)"
        while session.execute(attempt, [fault.target]).fetchone() != (True,):
            if time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        time.sleep(fault.lasts_s)
    return True


def _disk_full(stage: Stage, fault: Fault, running: Command) -> bool:
    assert stage.disk is not None
    with stage.disk.full():
        time.sleep(fault.lasts_s)
    return True


def _pooler_restart(stage: Stage, fault: Fault, running: Command) -> bool:
    assert stage.pooler is not None
    stage.pooler.restart()
    return True


def _clock(stage: Stage, fault: Fault, running: Command) -> bool:
    assert stage.clock is not None
    with stage.clock.stepped(int(fault.target)):
        time.sleep(fault.lasts_s)
    return True


_STRIKES: dict[str, Callable[[Stage, Fault, Command], bool]] = {
    "restart": _restart,
    "terminate": _terminate,
    "signal": _signal,
    "network": _network,
    "lock": _lock,
    "rival": _rival,
    "disk full": _disk_full,
    "clock": _clock,
    POOLER: _pooler_restart,
}
