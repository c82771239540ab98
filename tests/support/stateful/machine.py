"""Replay schedules of several real sessions, statement by statement, and judge every commit.

A schedule is plain data: operations `(session, verb, a, b)`, where a and b choose among rows, dates
and gates. One thread replays it; what would wait fails at once and rolls its session back, which a
server has to live with too. `verb@gate` names the gate where a call stops. While the runner runs a real
command, the operations that follow are performed between its statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.stateful import chain, commands
from tests.support.stateful.chain import AT_101, AT_102, HEAD
from tests.support.stateful.commands import COMMANDS, LOSE
from tests.support.stateful.judge import BEHIND, DATED_LATER, JUDGE, QUEUED
from tests.support.stateful.pipeline import (
    GATED,
    GATES,
    IMPATIENT,
    LATER_PIPELINE,
    LATER_TABLES,
    SCAFFOLD,
    TICK,
    TRIGGERS_OF_OURS,
    WINDOW,
    Substitution,
)
from tests.support.stateful.session import EXCLUSIVE, SHARED, Session
from tests.support.stateful.world import DAMAGED, QUIET, STATISTICS, TABLES, beginning, statement
from usage_rollup.errors import ConfigurationError, SessionLost, UsageRollupError
from usage_rollup.session.outages import MOST_LOSSES

Operation = tuple[str, str, int, int]
Schedule = Sequence[Operation]

WRITERS = ("w1", "w2", "w3")
SESSIONS = (*WRITERS, "ticker", "backfill", "worker", "migrator")
# Of commands, which open their own.
RUNNER = "runner"

LOCK = 4246

# What a server must expect from any of these statements, and then rolls back: not serializable,
# deadlock, lock not free, cancelled, terminated, a row that is gone, a row that is there, a backfill
# that is not finished, a tick in a transaction with an old snapshot. What RESTRICT restricts is
# 23503 until PostgreSQL 17.
LEGAL = {"40001", "40P01", "55P03", "57014", "57P01", "23001", "23503", "23505", "55000", "25000"}

# What a call may meet besides that was stopped in a pipeline which is taken away meanwhile.
_GONE = {"42883", "42P01", "XX000"}

# After these, how writers hold their locks is looked at even inside a transaction.
_ROLLS_UP = {"tick", "tick_without_time", "window_of_the_queue", "window_of_everything", "slice", "repair"}

_OF_COMMANDS = (
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'usage-rollup'"
)
_SESSIONS_OF_COMMANDS = f"SELECT count(*) {_OF_COMMANDS}"
_END_SESSIONS_OF_COMMANDS = f"SELECT count(pg_terminate_backend(pid, 10000)) {_OF_COMMANDS}"

# Why a key stays wrong that a repair has sent through a later release's window.
_QUEUED_MEANWHILE = "somebody else has queued it meanwhile"

# Why it repairs nothing for several sessions at once.
_SERVES_ONE = "its window serves one session"

# A later release's window takes no lock: whoever calls it does.
_LATER_WINDOWS = {
    verb: "SELECT CASE WHEN pg_try_advisory_xact_lock(4246) THEN"
    f" rollup_task_usage_hourly_window('-infinity', '{to}') END"
    for verb, to in {"window_of_the_queue": "-infinity", "window_of_everything": "infinity"}.items()
}


class Violation(AssertionError):
    """An invariant was broken; the message is the schedule until then, ready to be replayed."""


@dataclass
class Count:
    """What a machine has done, to see that schedules do not die of their own conflicts."""

    schedules: int = 0
    operations: int = 0
    refused: int = 0
    gated: int = 0
    together: int = 0  # slices begun while another session was in one
    judged: int = 0
    # What else has happened, by name: commands and their ends, steps of the chain, what crews did.
    steps: Counter[str] = field(default_factory=Counter)


class Machine:
    """Several sessions on one database at head, an observer, and the schedule being replayed.

    Where it stands is `level`; `later` says that a later release's pipeline is installed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.count = Count()
        self.observer = Session(url)
        self.observer.must("SET plan_cache_mode = force_generic_plan")
        self.observer.must(f"{QUIET}; {SCAFFOLD}; {LATER_TABLES}")
        # What is not as 102 makes it, by function; and the SQL of steps, where that is not the chain's.
        self._definitions: dict[str, str] = {}
        self._steps: dict[tuple[str, str], str] = {}
        self.substitute((*IMPATIENT, *GATES))
        self.observer.must(JUDGE)
        self.sessions = {name: Session(url) for name in SESSIONS}
        self.level, self.later = HEAD, False
        self._taken, self._unproven, self._renewed = 0, False, False
        self._leader: int | None = None
        self._losses = 0
        self._found: Violation | None = None
        self._acted = False
        self._watermark: str | None = None
        self._start = ""
        self._done: list[Operation] = []
        self._left: Iterator[Operation] = iter(())

    def close(self) -> None:
        """Close every session; what they had open is rolled back."""
        for session in (self.observer, *self.sessions.values()):
            session.connection.close()

    def substitute(self, substitutions: Sequence[Substitution]) -> None:
        """Replace text that occurs exactly once in an installed function's definition, by another."""
        for function, text, replacement in substitutions:
            definition = self._definition(function)
            assert definition.count(text) == 1, (function, text, definition.count(text))
            self._definitions[function] = definition.replace(text, replacement)
            self.observer.must(self._definitions[function])

    @contextmanager
    def mutated(
        self, substitutions: Sequence[Substitution], step: tuple[str, str, str] | None = None
    ) -> Iterator[None]:
        """Run the block on functions that are wrong on purpose, or a step up: number, text, replacement."""
        before = {function: self._definition(function) for function, _, _ in substitutions}
        self.substitute(substitutions)
        if step:
            number, text, replacement = step
            assert chain.up(number).count(text) == 1, text
            self._steps[number, "up"] = chain.up(number).replace(text, replacement)
        try:
            yield
        finally:
            self._reset("new")
            self._steps.clear()
            for function, definition in before.items():
                self._definitions[function] = definition
                self.observer.must(definition)

    def replay(self, start: str, schedule: Schedule) -> None:
        """Reset the database to `start`, replay the schedule, judge every commit and the end.

        Replayed again it is the same, but for what crews of commands do in their threads.
        """
        with commands.hurried(self._url):
            self._reset(start)
            self._left = iter(schedule)
            for operation in self._left:
                self._perform(operation)
            self._finish()
        self.count.schedules += 1

    # One schedule

    def _reset(self, start: str) -> None:
        self._abort()
        if self.later:
            ours = "; ".join(self._definitions[function] for function in (WINDOW, TICK))
            self.observer.must(f"{ours}; {TRIGGERS_OF_OURS}")
            self.later = False
        if self.level == AT_101:
            assert self._take("102", "up")
        if self.level != HEAD:
            self.observer.must(beginning("new"))
            while self.level != HEAD:
                assert self._take(self._next_level(), "up")
        if self._taken:
            self.observer.must(chain.FORGET_KEPT)
        if self.count.schedules % 20 == 0:
            self.observer.must(f"VACUUM {', '.join(TABLES)}")
        if start == DAMAGED:
            self.observer.must(STATISTICS)
        self.observer.must(beginning(start))
        self._taken, self._unproven, self._renewed = 0, start == DAMAGED, False
        self._found = None
        self._watermark = None
        self._start = start
        self._done = []
        self._losses = 0

    def _abort(self) -> None:
        for session in self.sessions.values():
            if session.at_gate:
                self.observer.must(f"SELECT pg_cancel_backend({session.pid})")
                session.result()
                self._open_gate(session)
            if session.in_transaction:
                session.must("ROLLBACK")
            self._unlock(session)

    def _perform(self, operation: Operation) -> None:
        self._done.append(operation)
        name, verb, a, b = operation
        self.count.operations += 1
        if name == RUNNER:
            self._command(verb, a, b)
            return
        session, step = self.sessions[name], len(self._done)
        self._acted = False
        if verb == "terminate":
            self._terminate(session)
        elif verb == "cancel":
            if session.at_gate:
                self.observer.must(f"SELECT pg_cancel_backend({session.pid})")
                self._arrive(session)
        elif name == "migrator":
            self._migrate(verb, a)
        else:
            if session.at_gate:
                self._resume(session)
            if verb != "resume":
                self._tell(session, *verb.partition("@")[::2], a, b, step)
        # What did nothing needs no judge.
        if (
            self._acted
            and not session.at_gate
            and (not session.in_transaction or verb.partition("@")[0] in _ROLLS_UP)
        ):
            self._judge()

    def _tell(self, session: Session, verb: str, gate: str, a: int, b: int, step: int) -> None:
        inside = session.in_transaction
        if verb in {"begin", "begin_with_a_snapshot"}:
            if not inside:
                session.savepoint = False
                session.has_snapshot = verb == "begin_with_a_snapshot"
                self._run(
                    session,
                    "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM workspace"
                    if session.has_snapshot
                    else "BEGIN",
                )
        elif verb in {"commit", "rollback"}:
            if inside:
                self._run(session, verb)
        elif verb == "savepoint":
            if inside:
                session.savepoint = True
                self._run(session, "SAVEPOINT s")
        elif verb == "rollback_to_savepoint":
            if inside and session.savepoint:
                self._run(session, "ROLLBACK TO s")
        elif verb in {"plan", "lead", "slice", "finish", "repair", "let_go"}:
            # Commands of ours walk nothing where the pipeline is not ours.
            if verb == "let_go" or self._is_ours:
                self._backfill(session, verb, a, b, gate or self._gate(verb, b))
        elif verb in GATED or verb == "prune":
            if self.level == AT_101 or (self.later and inside and session.has_snapshot):
                return
            sql = _LATER_WINDOWS.get(verb) if self.later else None
            self.count.steps["later ticks"] += self.later and verb == "tick"
            self._run(session, sql or statement(verb, a, b, step), gate or self._gate(verb, b))
        else:
            self.count.steps["teardowns"] += verb == "tear_down"
            self._run(session, statement(verb, a, b, step))

    @property
    def _is_ours(self) -> bool:
        return self.level != AT_101 and not self.later

    # Steps of the chain, and of the product's

    def _migrate(self, verb: str, a: int) -> None:
        session = self.sessions["migrator"]
        if self.later:
            return
        if verb == "later_release":
            if self.level == HEAD:
                state, _ = session.run(f"BEGIN; {LATER_PIPELINE}; COMMIT")
                self._acted = True
                self.later = self._settle(session, state)
                self.count.steps["later releases"] += self.later
        elif verb == "downgrade":
            while self.level > (AT_101, AT_102)[a % 2] and self._take(self.level, "down"):
                pass
        else:
            while self.level < (AT_102, HEAD, HEAD)[a % 3] and self._take(self._next_level(), "up"):
                pass

    @property
    def _left_to_a_proof(self) -> bool:
        """Usage dated in the future when 102 came: ticks do not find it, but an upgrade's proof does."""
        return self._renewed and self.observer.must(DATED_LATER) == ["t"]

    def _proven(self) -> None:
        self._unproven = self._renewed = False

    def _next_level(self) -> str:
        return str(int(self.level) + 1)

    def _take(self, number: str, direction: str) -> bool:
        """Take one step in one transaction, and say whether it was taken."""
        session = self.sessions["migrator"]
        self._acted = True
        sql = self._steps.get((number, direction)) or getattr(chain, direction)(number)
        if (number, direction) == ("102", "up"):
            sql += ";".join(["", *self._definitions.values(), QUIET])
        state, _ = session.run(f"BEGIN; {sql}; COMMIT")
        if (
            state == "55000"
            and "does not match" in session.said
            and not (self._unproven or self._left_to_a_proof)
        ):
            self._violated(f"103 refuses what nobody finds wrong: {session.said}")
        if not self._settle(session, state):
            return False
        if number == "102":
            # Back at 1970, it may go forward again.
            self._watermark = None
            self._renewed = True
        elif (number, direction) == ("103", "up"):
            # The guard has compared everything.
            self._proven()
        self.level = number if direction == "up" else str(int(number) - 1)
        self._taken += 1
        self.count.steps[f"{direction} {number}"] += 1
        return True

    # Commands

    def _command(self, verb: str, a: int, b: int) -> None:
        if verb == LOSE:
            self._lose()
            return
        # One at a time; where there is no pipeline it refuses.
        if self._leader is not None or self.level == AT_101:
            return
        # A third of them lose their session about where they begin to write.
        rhythm, lost_at, told = 1 + b % 4, 20 + 4 * b if a % 3 == 0 else 0, 0
        was_ours, losses, taken = self._is_ours, self._losses, self._taken

        def statement_comes(pid: int) -> None:
            nonlocal told
            self._leader = pid
            told += 1
            if told == lost_at:
                self._lose()
            if told % rhythm == 0 and (operation := next(self._left, None)):
                self._perform(operation)

        def commit_comes(pid: int) -> None:
            self._leader = pid
            self._judge()

        # From its first statement on.
        self._leader = 0
        try:
            with commands.overheard(statement_comes, commit_comes, self.count.steps):
                COMMANDS[verb]()
        except UsageRollupError as error:
            self._settle_command(error, self._losses - losses, has_stepped=self._taken > taken)
        else:
            self.count.steps[verb] += 1
            self.count.steps["losses survived"] += self._losses > losses
            if was_ours and self._is_ours and self._taken == taken:
                self._proven()
        finally:
            self._leader = None
            if self._found:
                # Whatever it has become on its way through the command, which may not close its sessions now.
                self.observer.must(_END_SESSIONS_OF_COMMANDS)
                raise self._found
            while self.observer.must(_SESSIONS_OF_COMMANDS) != ["0"]:
                pass
        self._judge()

    def _lose(self) -> None:
        """End the session of the command that runs, if one does."""
        if self._leader is not None:
            self._end_process(self._leader)
            self._losses += 1
            self.count.steps["losses"] += 1

    def _settle_command(self, error: UsageRollupError, losses: int, *, has_stepped: bool) -> None:
        """Take note of a refusal that an operator expects; anything else is a violation."""
        self.count.refused += 1
        if isinstance(error, SessionLost):
            expected = losses >= MOST_LOSSES
        elif isinstance(error, ConfigurationError):
            expected = self.later and _SERVES_ONE in str(error)
        else:
            # Who finishes has seen every slice walked: there 55000 is no conflict.
            state = commands.sqlstate(error)
            expected = (
                has_stepped or state in LEGAL - {"55000"} or (self.later and _QUEUED_MEANWHILE in str(error))
            )
        if not expected:
            self._violated(f"a command ends with {type(error).__name__}: {error}")

    def _gate(self, verb: str, b: int) -> str | None:
        """Return where to stop: half of all calls run through."""
        gates = GATED.get(verb, ())
        return gates[b // 2 % len(gates)] if gates and b % 2 else None

    def _backfill(self, session: Session, verb: str, a: int, b: int, gate: str | None) -> None:
        if verb == "let_go":
            if not session.in_transaction:
                self._unlock(session)
            return
        if not self._lock(session, SHARED if verb == "slice" else EXCLUSIVE):
            return
        if verb in {"plan", "lead"}:
            state, row = session.run("SELECT task_usage_hourly_horizon('0')")
            if self._settle(session, state) and row != ["-infinity"]:
                rows = (1, 2, 100)[a % 3]
                self._run(session, f"SELECT rollup_task_usage_hourly_plan('{row[0]}', {rows})")
            # A leader lets others walk with it.
            if verb == "lead" and not session.in_transaction:
                self._unlock(session)
                self._lock(session, SHARED)
        elif verb == "slice":
            self.count.together += any(
                other.held is not None and other.in_transaction
                for other in self.sessions.values()
                if other is not session
            )
            self._run(session, "SELECT rollup_task_usage_hourly_slice()", gate)
        elif verb == "finish":
            self._run(session, "SELECT rollup_task_usage_hourly_finish()")
        else:
            self._run(session, statement("window_of_the_queue", a, b, 0))
            self._run(session, f"SELECT rollup_task_usage_hourly_plan_repair({(1, 2, 100)[a % 3]})")

    def _run(self, session: Session, sql: str, gate: str | None = None) -> None:
        self._acted = True
        if gate is None:
            self._settle(session, session.run(sql)[0])
            return
        self.observer.must(f"SELECT pg_advisory_lock(77, {session.pid})")
        session.must(f"SET test.gate = '{gate}'")
        session.at_gate = True
        if session.stops(sql):
            self.count.gated += 1
        else:
            self._arrive(session)

    def _resume(self, session: Session) -> None:
        self._open_gate(session)
        self._arrive(session)

    def _arrive(self, session: Session) -> None:
        self._acted = True
        state, _ = session.result()
        self._open_gate(session)
        if self._settle(session, state):
            session.must("SET test.gate = ''")

    def _open_gate(self, session: Session) -> None:
        if session.at_gate:
            session.at_gate = False
            self.observer.must(f"SELECT pg_advisory_unlock(77, {session.pid})")

    def _settle(self, session: Session, state: str | None) -> bool:
        """Roll back what failed in a way that a server expects; anything else is a violation."""
        if state is None:
            return True
        self.count.refused += 1
        if state not in LEGAL and not (self._taken and state in _GONE):
            self._violated(f"unexpected error {state}: {session.said}")
        if session.in_transaction:
            session.must("ROLLBACK")
        return False

    def _terminate(self, session: Session) -> None:
        self._acted = True
        self._end_process(session.pid)
        if session.at_gate:
            self._open_gate(session)
        session.connection.close()
        session.connect()

    def _end_process(self, pid: int) -> None:
        self.observer.must(f"SELECT pg_terminate_backend({pid})")
        gone = f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})"
        while self.observer.must(gone) != ["t"]:
            pass

    def _lock(self, session: Session, how: str) -> bool:
        """Hold 4246 like this, or exclusively, which is as good; a transaction keeps what it began with."""
        if session.held == SHARED != how and not session.in_transaction:
            self._unlock(session)
        if session.held is None:
            _, row = session.run(f"SELECT pg_try_advisory_lock{how}({LOCK})")
            session.held = how if row == ["t"] else None
        return session.held in {how, EXCLUSIVE}

    def _unlock(self, session: Session) -> None:
        if session.held is not None:
            self._acted = True
            session.must(f"SELECT pg_advisory_unlock{session.held}({LOCK})")
            session.held = None

    def _finish(self) -> None:
        for name, session in self.sessions.items():
            self._acted = False
            if session.at_gate:
                self._resume(session)
            if session.in_transaction:
                self._done.append((name, "commit", 0, 0))
                self._run(session, "commit")
            self._unlock(session)
            if self._acted:
                self._judge()
        if self.level == AT_101 and not self._take("102", "up"):
            self._violated("102 cannot be applied though nobody is in the way")
        ticker = self.sessions["ticker"]
        ticks = 2
        if self.later:
            # Their tick takes a day, and one more to hand over what ours has queued.
            ticks += 1
            self._end_with("run_backfill")
        for _ in range(ticks):
            ticker.must(statement("tick", 0, 0, 0))
            self._judge()
        if self.observer.must(QUEUED) != ["0"]:
            self._violated(f"the queue is not empty after {ticks} ticks")
        for _ in range(20):
            if self.observer.must(BEHIND) == ["f"]:
                break
            ticker.must(statement("tick", 0, 0, 0))
            self._judge()
        else:
            self._violated("the watermark does not arrive")
        if self._unproven or self._left_to_a_proof:
            self._end_with("run_repair")
        # Nothing is excused any more: what is dated in the future has long been queued.
        self.observer.must("BEGIN; UPDATE task_usage_hourly_rollup_state SET watermark_at = 'infinity'")
        (differing, *_) = self.observer.must(f"EXECUTE judge(NULL, {self.later})")
        (ours,) = self.observer.must(
            "SELECT string_agg(d::text, ', ') FROM task_usage_hourly_differences() d"
        )
        self.observer.must("ROLLBACK")
        if differing or ours:
            self._violated(f"at the end hours differ: {differing}; by the product's own oracle: {ours}")

    def _end_with(self, verb: str) -> None:
        """Run a command to its end, which nothing is against any more."""
        refused = self.count.refused
        self._done.append((RUNNER, verb, 1, 0))
        self._command(verb, 1, 0)
        if self.count.refused > refused:
            self._violated(f"{verb} is refused though nobody is in the way")
        self._proven()

    # What must hold

    def _judge(self) -> None:
        self.count.judged += 1
        if self.level == AT_101:
            if self.observer.must("SELECT watermark_at = 'epoch' FROM task_usage_hourly_rollup_state") != [
                "t"
            ]:
                self._violated("a watermark claims something where nothing keeps the rollup")
            return
        previous = "NULL" if self._watermark is None else f"'{self._watermark}'"
        state, row = self.observer.run(f"EXECUTE judge({previous}, {self.later})")
        if state == "55P03":
            # An open TRUNCATE keeps readers out; the next commit is judged in its place.
            return
        assert state is None, self.observer.said
        differing, watermark, backwards, future, holders, unlocked = row
        self._watermark = watermark
        if differing and not self._unproven:
            self._violated(f"rollup and raw usage differ in {differing}; watermark {watermark}")
        if backwards == "t":
            self._violated(f"the watermark went back from {previous} to {watermark}")
        if future == "t":
            self._violated(f"the watermark lies beyond the clock: {watermark}")
        known = {
            str(session.pid)
            for session in self.sessions.values()
            if session.held is not None or session.at_gate or session.in_transaction
        }
        leaked = set((holders or "").split()) - known
        # Those of a command, at work or closed a moment ago, have been its own to hold.
        if leaked and (self._leader is None or self._are_strangers(leaked)):
            self._violated(f"advisory lock {LOCK} is held by sessions without a transaction: {leaked}")
        if unlocked:
            self._violated(f"task_usage_hourly was written without advisory lock {LOCK}")

    def _are_strangers(self, pids: set[str]) -> bool:
        (ours,) = self.observer.must(
            f"SELECT count(*) FROM pg_stat_activity WHERE pid IN ({', '.join(pids)})"
            " AND application_name <> 'usage-rollup'"
        )
        return ours != "0"

    def _violated(self, what: str) -> None:
        script = "\n".join(f"    {operation!r}," for operation in self._done)
        self._found = Violation(f"{what}\nreplay:\nMachine(url).replay({self._start!r}, [\n{script}\n])")
        raise self._found

    def _definition(self, function: str) -> str:
        return str(self.observer.must(f"SELECT pg_get_functiondef('{function}'::regprocedure)")[0])
