"""A short soak finds nothing, and would find what is planted: `make soak` is the long one."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest

from tests.support.database import NOWHERE, ROOT
from tests.support.product import wait_until
from tests.support.soak.commands import Command
from tests.support.soak.findings import Finding
from tests.support.soak.judge import SESSIONS, judge
from tests.support.soak.plan import HEAD, KINDS, PIPELINE, V034, Fault, draw
from tests.support.soak.road import Road
from tests.support.soak.stage import Stage, set_up

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("soak")]

ALL = frozenset(KINDS)

# Its first cycle goes up by way of 102 and down again, through a pooler, and meets six kinds of faults.
SEED = "343"


@pytest.mark.offline
def test_same_seed_draws_the_same_plan_and_another_one_another() -> None:
    assert [*islice(draw("1", ALL), 20)] == [*islice(draw("1", ALL), 20)]
    assert [*islice(draw("1", ALL), 20)] != [*islice(draw("2", ALL), 20)]


@pytest.mark.offline
def test_what_cannot_be_had_is_left_out_and_changes_nothing_else() -> None:
    rest = ALL - {"disk full"}
    for whole, part in islice(zip(draw("1", ALL), draw("1", rest), strict=False), 20):
        for step, lesser in zip(whole.steps, part.steps, strict=True):
            assert lesser.command == step.command
            assert lesser.faults == tuple(fault for fault in step.faults if fault.kind in rest)


@pytest.mark.offline
def test_every_cycle_begins_where_the_last_one_ended_and_plans_play_every_kind_of_fault() -> None:
    cycles = [*islice(draw("1", ALL), 60)]
    assert all(one.end == other.start for one, other in pairwise(cycles))
    assert {cycle.end for cycle in cycles} == {V034, PIPELINE, HEAD}
    struck = Counter(fault.kind for cycle in cycles for step in cycle.steps for fault in step.faults)
    assert struck.keys() == KINDS.keys()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def road(listener: socket.socket) -> Iterator[Road]:
    road = Road(listener.getsockname()[1])
    yield road
    road.close()


def meet(road: Road, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection over the road."""
    here = socket.create_connection(("127.0.0.1", road.port), timeout=30)
    there, _ = listener.accept()
    there.settimeout(30)
    here.sendall(b"hello")
    assert there.recv(5) == b"hello"
    return here, there


def test_cut_road_resets_both_ends(road: Road, listener: socket.socket) -> None:
    here, there = meet(road, listener)
    assert road.ports() == [there.getpeername()[1]]
    road.cut()
    for end in (here, there):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    meet(road, listener)


def test_held_road_keeps_bytes_and_brings_them_afterwards(road: Road, listener: socket.socket) -> None:
    here, there = meet(road, listener)
    with road.held():
        here.sendall(b"later")
        there.setblocking(False)
        with pytest.raises(BlockingIOError):
            there.recv(5)
    there.settimeout(30)
    assert there.recv(5) == b"later"


def test_swallowed_reply_never_comes_though_its_request_arrived(road: Road, listener: socket.socket) -> None:
    here, there = meet(road, listener)
    with road.swallowing():
        here.sendall(b"commit")
        assert there.recv(6) == b"commit"
        there.sendall(b"done")
    with pytest.raises(ConnectionResetError):
        here.recv(4)


def test_closed_road_resets_whoever_comes(road: Road, listener: socket.socket) -> None:
    with road.closed(), pytest.raises(ConnectionResetError):
        socket.create_connection(("127.0.0.1", road.port), timeout=30).recv(1)
    meet(road, listener)


def run(tmp_path: Path, *arguments: str, struck: Fault | None = None) -> bool:
    """Run a command as the soak does; tell whether it has done its work."""
    command = Command(
        arguments, {"PATH": f"{Path(sys.executable).parent}", "DATABASE_URL": NOWHERE}, tmp_path / "said"
    )
    command.struck += [struck] if struck else []
    return command.end()


def test_status_that_no_fault_explains_is_a_finding(tmp_path: Path) -> None:
    with pytest.raises(Finding, match="ended with 2, which no fault explains"):
        run(tmp_path, "usage-rollup", "verify", "--since=never")


def test_fault_explains_only_what_it_may_cause(tmp_path: Path) -> None:
    with pytest.raises(Finding, match="ended with 2, which no fault explains"):
        run(tmp_path, "usage-rollup", "verify", "--since=never", struck=Fault("restart", "fast"))


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Return a stage at head where writers and ticks rest."""
    with set_up("1", rows=200) as stage:
        stage.database.upgrade()
        yield stage


@pytest.fixture
def impatient(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what is left no time to go, once what ran before has gone."""
    wait_until(lambda: not stage.database.execute(SESSIONS), "no session is left")
    monkeypatch.setattr("tests.support.product.DEADLINE_S", 0.1)


def test_judge_finds_nothing_where_nothing_is_wrong(stage: Stage) -> None:
    judge(stage, HEAD)


def test_judge_finds_an_hour_that_differs(stage: Stage) -> None:
    stage.database.execute("UPDATE task_usage_hourly SET input_tokens = input_tokens + 1")
    with pytest.raises(Finding, match="rollup and raw usage differ in"):
        judge(stage, HEAD)
    stage.database.execute("UPDATE task_usage_hourly SET input_tokens = input_tokens - 1")
    judge(stage, HEAD)


def test_judge_finds_a_watermark_that_was_stamped(stage: Stage) -> None:
    restore = stage.database.value("SELECT watermark_at FROM task_usage_hourly_rollup_state")
    known = [key[0] for writer in stage.writers.all for key in writer.world.usage]
    task = stage.database.value("SELECT task_id FROM task_usage WHERE task_id <> ALL (%s) LIMIT 1", known)
    stage.database.execute("INSERT INTO task_usage (task_id, model) VALUES (%s, 'stamped')", task)
    stage.database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = clock_timestamp()")
    with pytest.raises(Finding, match="rollup and raw usage differ in"):
        judge(stage, HEAD)
    stage.database.execute("DELETE FROM task_usage WHERE model = 'stamped'")
    stage.database.execute("UPDATE task_usage_hourly_rollup_state SET watermark_at = %s", restore)
    judge(stage, HEAD)


def test_judge_finds_acknowledged_usage_that_is_gone(stage: Stage) -> None:
    (task, provider, model), tokens = next(iter(stage.writers.all[0].world.usage.items()))
    key = (task, provider, model)
    which = "WHERE (task_id, provider, model) = (%s, %s, %s)"
    stage.database.execute(f"UPDATE task_usage SET input_tokens = input_tokens + 1 {which}", *key)
    with pytest.raises(Finding, match="what was committed is not what is there: usage: 1 rows missing"):
        judge(stage, HEAD)
    stage.database.execute(f"UPDATE task_usage SET input_tokens = %s {which}", tokens, *key)
    judge(stage, HEAD)


def test_judge_finds_a_ledger_that_does_not_agree(stage: Stage) -> None:
    stage.database.execute("INSERT INTO schema_migrations (version) VALUES ('999_soak')")
    with pytest.raises(Finding, match="999_soak"):
        judge(stage, HEAD)
    stage.database.execute("DELETE FROM schema_migrations WHERE version = '999_soak'")
    judge(stage, HEAD)


@pytest.mark.usefixtures("impatient")
def test_judge_finds_an_advisory_lock_that_was_left(stage: Stage) -> None:
    with stage.database.connect() as session:
        session.execute("SELECT pg_advisory_lock(4246)")
        with pytest.raises(Finding, match="advisory lock is left"):
            judge(stage, HEAD)


@pytest.mark.usefixtures("impatient")
def test_judge_finds_a_session_that_was_left(stage: Stage) -> None:
    with (
        stage.database.connect(application_name="usage-rollup"),
        pytest.raises(Finding, match="session is left"),
    ):
        judge(stage, HEAD)


def test_watch_sees_a_rollup_that_is_written_without_its_lock(stage: Stage) -> None:
    with stage.database.connect() as session:
        session.execute("DELETE FROM task_usage_hourly WHERE false")
        wait_until(lambda: stage.watch.finding, "the watch has seen it")
    with pytest.raises(Finding, match="written without advisory lock 4246"):
        stage.raise_findings()


def test_writer_that_is_refused_something_no_server_expects_is_a_finding(stage: Stage) -> None:
    stage.database.execute("ALTER TABLE task_usage ADD CONSTRAINT absurd CHECK (input_tokens < 0) NOT VALID")
    stage.writers.go_on()
    wait_until(lambda: any(writer.finding for writer in stage.writers.all), "a writer was refused")
    with pytest.raises(Finding, match="SQLSTATE 23514"):
        stage.writers.pause()


@pytest.mark.long
def test_short_soak_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", f"--seed={SEED}", "--cycles=1", "--rows=4000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing found: 1 cycles" in done.stdout
