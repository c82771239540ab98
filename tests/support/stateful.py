"""Replay schedules of several real sessions, statement by statement, and judge every commit.

A schedule is plain data: operations `(session, verb, a, b)`, where a and b choose among rows, dates
and gates. One thread replays it; what would wait fails at once and rolls its session back, which a
server has to live with too. A gate is a place inside a function of the pipeline where a call can be
stopped while other sessions go on; `verb@gate` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus

from tests.support.oracle import DIFFERING
from tests.support.product import COUNTS, counts

Operation = tuple[str, str, int, int]
Schedule = Sequence[Operation]
Substitution = tuple[str, str, str]  # function, text that occurs once in its definition, what to put there

WRITERS = ("w1", "w2", "w3")
SESSIONS = (*WRITERS, "ticker", "backfill", "worker")

# How a schedule begins: without usage; with usage that nobody has rolled up or queued, as before an
# upgrade; with the same usage rolled up.
STARTS = ("new", "history", "rolled_up")

# The history, and three slices of it that anybody may walk.
PLANNED = "planned"

LOCK = 4246

# How a session holds it: the end of the names of PostgreSQL's functions.
EXCLUSIVE, SHARED = "", "_shared"

# One thread: whatever blocks a statement stays there as long as the statement waits.
OPTIONS = (
    "-c lock_timeout=4ms -c statement_timeout=20s -c client_min_messages=error -c TimeZone=UTC"
    " -c synchronous_commit=off"
)

# What a server must expect from any of these statements, and then rolls back: not serializable,
# deadlock, lock not free, cancelled, terminated, a row that is gone, a row that is there, a backfill
# that is not finished, a tick in a transaction with an old snapshot. What RESTRICT restricts is
# 23503 until PostgreSQL 17.
LEGAL = {"40001", "40P01", "55P03", "57014", "57P01", "23001", "23503", "23505", "55000", "25000"}

WINDOW = "rollup_task_usage_hourly_window(timestamptz,timestamptz)"
SETTLE = "rollup_task_usage_hourly_settle(timestamptz,timestamptz,timestamptz)"
WRITE = "enqueue_task_usage_hourly_dirty_for_tu_write()"
TICK = "rollup_task_usage_hourly()"
SLICE = "rollup_task_usage_hourly_slice()"
HORIZON = "task_usage_hourly_horizon(interval)"
PRUNE = "prune_task_usage_hourly_dirty(interval)"

# A writer is young for four minutes and the horizon five minutes old, which no test can wait for. Here a
# writer is young until a horizon later than its start is read: what the minutes stand for, said by a
# sequence, which no transaction hides. A window that finds 4246 taken says so at once instead of after
# five seconds.
_HORIZON_READ = "CREATE SEQUENCE public.test_horizon MINVALUE 0"
YOUNG = "(SELECT last_value FROM public.test_horizon) < extract(epoch FROM v_now) * 1e6"
_IMPATIENT: tuple[Substitution, ...] = (
    (HORIZON, "interval '5 minutes'", "interval '0'"),
    (
        HORIZON,
        "BEGIN\n    LOOP",
        "BEGIN\n    PERFORM setval('public.test_horizon', (extract(epoch FROM v_start) * 1e6)::bigint);"
        "\n    LOOP",
    ),
    (
        WRITE,
        "pg_catalog.clock_timestamp()\n"
        "            OPERATOR(pg_catalog.<) (v_now OPERATOR(pg_catalog.+) '4 minutes'::pg_catalog.interval)",
        YOUNG,
    ),
    (WINDOW, "interval '5 seconds'", "interval '0'"),
)

# Gates, each before the text it is found by.
TICK_GATES = ("begun", "horizon", "rolled_up")
SETTLE_GATES = ("locked", "drained", "recomputed")
SLICE_GATES = ("slicing",)
_GATES = (
    (TICK, "begun", "IF NOT pg_try_advisory_xact_lock(4246) THEN"),
    (TICK, "horizon", "SELECT LEAST(\n"),
    (TICK, "rolled_up", "PERFORM public.prune_task_usage_hourly_dirty(interval '7 days');"),
    (SETTLE, "locked", "v_queued := public.rollup_task_usage_hourly_drain(v_portion);"),
    (SETTLE, "drained", "v_hours := ARRAY("),
    (SETTLE, "recomputed", "EXIT WHEN NOT isfinite(p_deadline)"),
    (SLICE, "slicing", "buckets := public.rollup_task_usage_hourly_range(\n"),
)

# The observer holds this lock on behalf of a backend that is to stop at its gate.
_GATE = """
CREATE FUNCTION public.test_gate(p_gate text) RETURNS void LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
    IF current_setting('test.gate', true) = p_gate THEN
        PERFORM pg_advisory_lock(77, pg_backend_pid());
        PERFORM pg_advisory_unlock(77, pg_backend_pid());
    END IF;
END
$$
"""

_RAW_TABLES = (
    *("task_usage", "agent_task_queue", "issue", "project", "agent", "agent_runtime", "workspace"),
    *("task_usage_hourly", "task_usage_hourly_dirty", "task_usage_hourly_invalidation"),
    *("task_usage_hourly_backfill", "task_usage_hourly_set_aside"),
)


def _id(kind: str, number: int) -> str:
    """Return the same id of the same row in every schedule."""
    return f"'{'wragpitu'.index(kind):08x}-0000-4000-8000-{number:012x}'::uuid"


# Two workspaces; the second has one runtime, agent, project and issue, the first the others.
_WORLD = "; ".join(
    [
        *(
            f"INSERT INTO workspace (id, name, slug) VALUES ({_id('w', n)}, 'w{n}', 'w{n}')"
            " ON CONFLICT DO NOTHING"
            for n in range(2)
        ),
        *(
            "INSERT INTO agent_runtime (id, workspace_id, daemon_id, name, runtime_mode, provider)"
            f" VALUES ({_id('r', n)}, {_id('w', n // 2)}, 'r{n}', 'r{n}', 'local', 'claude')"
            " ON CONFLICT DO NOTHING"
            for n in range(3)
        ),
        *(
            "INSERT INTO agent (id, workspace_id, name, runtime_mode, runtime_id)"
            f" VALUES ({_id('a', n)}, {_id('w', n // 2)}, 'a{n}', 'local', {_id('r', n)})"
            " ON CONFLICT DO NOTHING"
            for n in range(3)
        ),
        *(
            "INSERT INTO project (id, workspace_id, title)"
            f" VALUES ({_id('p', n)}, {_id('w', n // 2)}, 'p{n}') ON CONFLICT DO NOTHING"
            for n in range(3)
        ),
        *(
            "INSERT INTO issue (id, workspace_id, title, creator_type, creator_id, number, project_id)"
            f" VALUES ({_id('i', n)}, {_id('w', n // 3)}, 'i{n}', 'member', {_id('u', 0)}, {n},"
            f" {('NULL', _id('p', 0), _id('p', 1), _id('p', 2))[n]}) ON CONFLICT DO NOTHING"
            for n in range(4)
        ),
        *(
            "INSERT INTO agent_task_queue (id, agent_id, runtime_id, issue_id, status)"
            f" VALUES ({_id('t', n)}, {_id('a', n % 3)}, {_id('r', n % 3)},"
            f" {(_id('i', 1), _id('i', 0), _id('i', 3), 'NULL')[n]}, 'completed') ON CONFLICT DO NOTHING"
            for n in range(4)
        ),
    ]
)


def _counts(tokens: int) -> str:
    return ", ".join(map(str, counts(tokens).values()))


_USAGE = (
    f"INSERT INTO task_usage (task_id, provider, model, {COUNTS}, created_at, updated_at) VALUES"
    f" ({_id('t', 0)}, 'claude', 'm0', {_counts(100)}, '2025-03-01 10:15+00', '2025-03-01 10:15+00'),"
    f" ({_id('t', 0)}, 'claude', 'm1', {_counts(200)}, '2025-03-01 11:15+00', '2025-03-03 11:15+00'),"
    f" ({_id('t', 1)}, 'claude', 'm0', {_counts(300)}, '2025-03-01 10:45+00', NULL),"
    f" ({_id('t', 2)}, 'claude', 'm0', {_counts(400)}, now() - interval '3 hours',"
    " now() - interval '1 hour'),"
    f" ({_id('t', 3)}, 'claude', 'm1', {_counts(500)}, '2025-03-07 10:45+00', NULL);"
    # The triggers see a replica's session too.
    " DELETE FROM task_usage_hourly_invalidation"
)

_RESET = (
    "BEGIN; SET LOCAL session_replication_role = replica;"
    + "".join(f" DELETE FROM {table};" for table in _RAW_TABLES)
    + f" {_WORLD};"
)
_START = {
    "new": "",
    "history": f" {_USAGE};",
    "rolled_up": f" {_USAGE}; SELECT rollup_task_usage_hourly_range('2025-03-01', '2025-04-01'),"
    " rollup_task_usage_hourly_range(date_trunc('day', now()) - interval '1 day',"
    " date_trunc('hour', now()));",
    PLANNED: f" {_USAGE}; UPDATE task_usage_hourly_rollup_state SET watermark_at = 'epoch';"
    " SELECT rollup_task_usage_hourly_plan(clock_timestamp(), 2);",
}

_WATERMARK = "UPDATE task_usage_hourly_rollup_state SET watermark_at = {}; COMMIT"

DATES = (
    *("'2025-03-01 10:30+00'::timestamptz", "'2025-03-01 11:30+00'::timestamptz"),
    *("'2025-03-05 10:30+00'::timestamptz", "now() - interval '26 hours'"),
    *(
        "now() - interval '1 second'",
        "now()",
        "'2200-01-01 10:30+00'::timestamptz",
        "'infinity'::timestamptz",
    ),
)


def statement(verb: str, a: int, b: int, step: int) -> str:
    """Return the SQL of a writer's or ticker's verb; `step` makes every number of tokens new."""
    return _STATEMENTS[verb](a, b, step)


def _upsert(task: int, model: int, step: int, created_at: str, updated_at: str) -> str:
    reported = ", ".join(f"{column} = EXCLUDED.{column}" for column in counts(step))
    return (
        f"INSERT INTO task_usage (task_id, provider, model, {COUNTS}, created_at, updated_at)"
        f" VALUES ({_id('t', task % 4)}, 'claude', 'm{model % 2}', {_counts(step)},"
        f" {created_at}, {updated_at})"
        f" ON CONFLICT (task_id, provider, model) DO UPDATE SET {reported}, updated_at = EXCLUDED.updated_at"
    )


def _one_count(step: int) -> str:
    """Return what sets one of the counts, another one in another step."""
    return f"{[*counts(step)][step % 4]} = {step}"


def _dated(a: int, b: int, step: int) -> str:
    date = DATES[b % len(DATES)]
    return _upsert(a, b, step, date, (date, "NULL", "now()")[a // 4])


def _which(a: int, b: int) -> str:
    return f"task_id = {_id('t', a % 4)} AND model = 'm{b % 2}'"


def _set_task(column: str, kind: str, count: int) -> Callable[[int, int, int], str]:
    def move(a: int, b: int, step: int) -> str:
        value = "NULL" if kind == "i" and b == 7 else _id(kind, b % count)
        return f"UPDATE agent_task_queue SET {column} = {value} WHERE id = {_id('t', a % 4)}"

    return move


def _delete(table: str, kind: str, count: int) -> Callable[[int, int, int], str]:
    return lambda a, b, step: f"DELETE FROM {table} WHERE id = {_id(kind, a % count)}"


_STATEMENTS: dict[str, Callable[[int, int, int], str]] = {
    # Usage, as the server reports it and as it does not.
    "report": lambda a, b, step: _upsert(a, b, step, "now()", "now()"),
    "import": _dated,
    "correct": lambda a, b, step: (
        f"UPDATE task_usage SET {_one_count(step)}, updated_at = now() WHERE {_which(a, b)}"
    ),
    "correct_silently": lambda a, b, step: f"UPDATE task_usage SET {_one_count(step)} WHERE {_which(a, b)}",
    "correct_with_a_date": lambda a, b, step: (
        f"UPDATE task_usage SET {_one_count(step)},"
        f" updated_at = {(*DATES, 'NULL')[a % (len(DATES) + 1)]} WHERE {_which(a, b)}"
    ),
    "move_usage_in_time": lambda a, b, step: (
        f"UPDATE task_usage SET created_at = {DATES[b % len(DATES)]} WHERE task_id = {_id('t', a % 4)}"
    ),
    "move_usage_to_task": lambda a, b, step: (
        f"UPDATE task_usage SET task_id = {_id('t', b % 4)} WHERE {_which(a, b)}"
    ),
    "rename_model": lambda a, b, step: f"UPDATE task_usage SET model = 'm{b % 3}' WHERE {_which(a, b + 1)}",
    "delete_usage": lambda a, b, step: f"DELETE FROM task_usage WHERE task_id = {_id('t', a % 4)}",
    "truncate_usage": lambda a, b, step: "TRUNCATE task_usage",
    "truncate_tasks": lambda a, b, step: "TRUNCATE agent_task_queue CASCADE",
    # What usage belongs to.
    "delete_task": _delete("agent_task_queue", "t", 4),
    "delete_issue": _delete("issue", "i", 4),
    "delete_project": _delete("project", "p", 3),
    "delete_agent": _delete("agent", "a", 3),
    "delete_runtime": lambda a, b, step: (
        f"DELETE FROM agent WHERE runtime_id = {_id('r', a % 3)};"
        f" DELETE FROM agent_runtime WHERE id = {_id('r', a % 3)}"
    ),
    "delete_runtime_only": _delete("agent_runtime", "r", 3),
    "delete_workspace": _delete("workspace", "w", 2),
    "put_back": lambda a, b, step: _WORLD,
    # What the server says in every edit, and nothing else.
    "touch": lambda a, b, step: (
        f"UPDATE issue SET project_id = project_id, title = 'step {step}' WHERE id = {_id('i', a % 4)};"
        " UPDATE agent_task_queue SET runtime_id = runtime_id, status = 'failed'"
        f" WHERE id = {_id('t', b % 4)}"
    ),
    "move_issue": lambda a, b, step: (
        f"UPDATE issue SET project_id = {'NULL' if b == 7 else _id('p', b % 3)} WHERE id = {_id('i', a % 4)}"
    ),
    "move_task_to_issue": _set_task("issue_id", "i", 4),
    "move_task_to_agent": _set_task("agent_id", "a", 3),
    "move_task_to_runtime": _set_task("runtime_id", "r", 3),
    "merge_runtimes": lambda a, b, step: (
        f"UPDATE agent_task_queue SET runtime_id = {_id('r', b % 3)} WHERE runtime_id = {_id('r', a % 3)}"
    ),
    "move_agent": lambda a, b, step: (
        f"UPDATE agent SET workspace_id = {_id('w', b % 2)} WHERE id = {_id('a', a % 3)}"
    ),
    # The pipeline.
    "tick": lambda a, b, step: "SELECT rollup_task_usage_hourly()",
    "tick_without_time": lambda a, b, step: (
        "SELECT set_config('usage_rollup.tick_budget', '0', true); SELECT rollup_task_usage_hourly()"
    ),
    "window_of_the_queue": lambda a, b, step: (
        "SELECT rollup_task_usage_hourly_window('-infinity', '-infinity')"
    ),
    "window_of_everything": lambda a, b, step: (
        "SELECT rollup_task_usage_hourly_window('-infinity', 'infinity')"
    ),
    "prune": lambda a, b, step: f"SELECT prune_task_usage_hourly_dirty('{a % 2} days')",
}

_GATED = {
    "tick": (*TICK_GATES, *SETTLE_GATES),
    "tick_without_time": (*TICK_GATES, *SETTLE_GATES),
    "window_of_the_queue": SETTLE_GATES,
    "window_of_everything": SETTLE_GATES,
    "slice": SLICE_GATES,
}

# After these, how writers hold their locks is looked at even inside a transaction.
_ROLLS_UP = {"tick", "tick_without_time", "window_of_the_queue", "window_of_everything", "slice", "repair"}

_CHECK = f"""
PREPARE judge (timestamptz) AS
WITH held AS (
    SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND classid = 0 AND objid = {LOCK} AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT
    (SELECT string_agg(d.bucket_hour::text, ', ') FROM ({DIFFERING}) AS d),
    s.watermark_at::text, s.watermark_at < $1, s.watermark_at > clock_timestamp(),
    (SELECT string_agg(pid::text, ' ') FROM held),
    (SELECT string_agg(l.pid::text, ' ') FROM pg_locks l
     WHERE l.relation = 'task_usage_hourly'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.pid <> pg_backend_pid() AND l.pid NOT IN (SELECT pid FROM held))
FROM task_usage_hourly_rollup_state s
"""

_QUEUED = (
    "SELECT (SELECT count(*) FROM task_usage_hourly_invalidation)"
    " + (SELECT count(*) FROM task_usage_hourly_dirty) + (SELECT count(*) FROM task_usage_hourly_set_aside)"
)

_BEHIND = (
    "SELECT EXISTS (SELECT FROM task_usage, task_usage_hourly_rollup_state"
    " WHERE COALESCE(updated_at, created_at) BETWEEN watermark_at AND clock_timestamp())"
)


class Violation(AssertionError):
    """An invariant was broken; the message is the schedule until then, ready to be replayed."""


class Session:
    """One backend: what it was last told, whether it waits at a gate, how it holds 4246 on purpose."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.connect()

    def connect(self) -> None:
        self.connection: psycopg.Connection[Any] = psycopg.connect(
            self._url, autocommit=True, options=OPTIONS
        )
        self.pgconn = self.connection.pgconn
        self.pid = self.connection.info.backend_pid
        self.at_gate = self.savepoint = False
        self.held: str | None = None

    @property
    def in_transaction(self) -> bool:
        return self.pgconn.transaction_status != TransactionStatus.IDLE

    def run(self, sql: str) -> tuple[str | None, list[str | None]]:
        """Run statements; return the SQLSTATE of a failure and the first row of the last result."""
        return self._outcome(self.pgconn.exec_(sql.encode()))

    def send(self, sql: str) -> None:
        """Send a statement without waiting for its result."""
        self.pgconn.send_query(sql.encode())

    @property
    def busy(self) -> bool:
        self.pgconn.consume_input()
        return bool(self.pgconn.is_busy())

    def result(self) -> tuple[str | None, list[str | None]]:
        """Wait for the result of what was sent."""
        last: tuple[str | None, list[str | None]] = (None, [])
        while (result := self.pgconn.get_result()) is not None:
            last = self._outcome(result)
        return last

    def _outcome(self, result: Any) -> tuple[str | None, list[str | None]]:
        if result.status == ExecStatus.FATAL_ERROR:
            state = result.error_field(DiagnosticField.SQLSTATE)
            self.message = result.error_field(DiagnosticField.MESSAGE_PRIMARY)
            return (state or b"57P01").decode(), []
        if result.status != ExecStatus.TUPLES_OK or result.ntuples == 0:
            return None, []
        values = [result.get_value(0, column) for column in range(result.nfields)]
        return None, [None if value is None else value.decode() for value in values]


@dataclass
class Count:
    """What a machine has done, to see that schedules do not die of their own conflicts."""

    schedules: int = 0
    operations: int = 0
    refused: int = 0
    gated: int = 0
    together: int = 0  # slices begun while another session was in one
    judged: int = 0


class Machine:
    """Several sessions on one database at 102 or head, an observer, and the schedule being replayed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.count = Count()
        self.observer = Session(url)
        self._must(self.observer, "SET plan_cache_mode = force_generic_plan")
        for table in (*_RAW_TABLES, "task_usage_hourly_rollup_state"):
            # A vacuum that comes by makes TRUNCATE fail, or not.
            self._must(self.observer, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        self._must(self.observer, f"{_GATE}; {_HORIZON_READ}")
        self.substitute(_IMPATIENT)
        self.substitute(
            tuple(
                (function, text, f"PERFORM public.test_gate('{gate}');\n    {text}")
                for function, gate, text in _GATES
            )
        )
        self._must(self.observer, _CHECK)
        self.sessions = {name: Session(url) for name in SESSIONS}
        self._watermark: str | None = None
        self._start = ""
        self._done: list[Operation] = []

    def close(self) -> None:
        """Close every session; what they had open is rolled back."""
        for session in (self.observer, *self.sessions.values()):
            session.connection.close()

    def substitute(self, substitutions: Sequence[Substitution]) -> None:
        """Replace text that occurs exactly once in an installed function's definition, by another."""
        for function, text, replacement in substitutions:
            definition = self._definition(function)
            assert definition.count(text) == 1, (function, text, definition.count(text))
            self._must(self.observer, definition.replace(text, replacement))

    @contextmanager
    def mutated(self, substitutions: Sequence[Substitution]) -> Iterator[None]:
        """Run the block on functions that are wrong on purpose."""
        before = {function: self._definition(function) for function, _, _ in substitutions}
        self.substitute(substitutions)
        try:
            yield
        finally:
            self._abort()
            for definition in before.values():
                self._must(self.observer, definition)

    def replay(self, start: str, schedule: Schedule) -> None:
        """Reset the database to `start`, replay the schedule, judge every commit and the end."""
        self._reset(start)
        for operation in schedule:
            self._done.append(operation)
            self._perform(operation, len(self._done))
        self._finish()
        self.count.schedules += 1

    # One schedule

    def _reset(self, start: str) -> None:
        self._abort()
        if self.count.schedules % 20 == 0:
            self._must(self.observer, f"VACUUM {', '.join((*_RAW_TABLES, 'task_usage_hourly_rollup_state'))}")
        self._must(self.observer, _RESET + _START[start])
        self._must(
            self.observer, _WATERMARK.format("clock_timestamp()" if start == "rolled_up" else "'epoch'")
        )
        self._watermark = None
        self._start = start
        self._done = []

    def _abort(self) -> None:
        for session in self.sessions.values():
            if session.at_gate:
                self._must(self.observer, f"SELECT pg_cancel_backend({session.pid})")
                session.result()
                self._open_gate(session)
            if session.in_transaction:
                self._must(session, "ROLLBACK")
            self._unlock(session)

    def _perform(self, operation: Operation, step: int) -> None:
        name, verb, a, b = operation
        session = self.sessions[name]
        self.count.operations += 1
        if verb == "terminate":
            self._terminate(session)
        elif verb == "cancel":
            if session.at_gate:
                self._must(self.observer, f"SELECT pg_cancel_backend({session.pid})")
                self._arrive(session)
        else:
            if session.at_gate:
                self._resume(session)
            if verb != "resume":
                self._tell(session, verb, a, b, step)
        if not session.at_gate and (not session.in_transaction or verb.partition("@")[0] in _ROLLS_UP):
            self._judge()

    def _tell(self, session: Session, verb: str, a: int, b: int, step: int) -> None:
        inside = session.in_transaction
        if verb in {"begin", "begin_with_a_snapshot"}:
            if not inside:
                session.savepoint = False
                self._run(
                    session,
                    "BEGIN"
                    if verb == "begin"
                    else "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM workspace",
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
        elif verb.partition("@")[0] in {"plan", "lead", "slice", "finish", "repair", "let_go"}:
            verb, _, gate = verb.partition("@")
            self._backfill(session, verb, a, b, gate or self._gate(verb, b))
        else:
            verb, _, gate = verb.partition("@")
            self._run(session, statement(verb, a, b, step), gate or self._gate(verb, b))

    def _gate(self, verb: str, b: int) -> str | None:
        """Return where to stop: half of all calls run through."""
        gates = _GATED.get(verb, ())
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
        if gate is None:
            self._settle(session, session.run(sql)[0])
            return
        self._must(self.observer, f"SELECT pg_advisory_lock(77, {session.pid})")
        self._must(session, f"SET test.gate = '{gate}'")
        session.send(sql)
        session.at_gate = True
        while session.busy:
            waits = (
                f"SELECT EXISTS (SELECT FROM pg_locks WHERE pid = {session.pid} AND NOT granted"
                " AND locktype = 'advisory' AND classid = 77)"
            )
            if self._must(self.observer, waits) == ["t"]:
                self.count.gated += 1
                return
        self._arrive(session)

    def _resume(self, session: Session) -> None:
        self._open_gate(session)
        self._arrive(session)

    def _arrive(self, session: Session) -> None:
        state, _ = session.result()
        self._open_gate(session)
        if self._settle(session, state):
            self._must(session, "SET test.gate = ''")

    def _open_gate(self, session: Session) -> None:
        if session.at_gate:
            session.at_gate = False
            self._must(self.observer, f"SELECT pg_advisory_unlock(77, {session.pid})")

    def _settle(self, session: Session, state: str | None) -> bool:
        """Roll back what failed in a way that a server expects; anything else is a violation."""
        if state is None:
            return True
        self.count.refused += 1
        if state not in LEGAL:
            self._violated(f"unexpected error {state}: {session.message}")
        if session.in_transaction:
            self._must(session, "ROLLBACK")
        return False

    def _terminate(self, session: Session) -> None:
        pid = session.pid
        self._must(self.observer, f"SELECT pg_terminate_backend({pid})")
        gone = f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})"
        while self._must(self.observer, gone) != ["t"]:
            pass
        if session.at_gate:
            self._open_gate(session)
        session.connection.close()
        session.connect()

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
            self._must(session, f"SELECT pg_advisory_unlock{session.held}({LOCK})")
            session.held = None

    def _finish(self) -> None:
        for name, session in self.sessions.items():
            if session.at_gate:
                self._resume(session)
            if session.in_transaction:
                self._done.append((name, "commit", 0, 0))
                self._run(session, "commit")
            self._unlock(session)
            self._judge()
        ticker = self.sessions["ticker"]
        for _ in range(2):
            self._must(ticker, statement("tick", 0, 0, 0))
            self._judge()
        if self._must(self.observer, _QUEUED) != ["0"]:
            self._violated("the queue is not empty after two ticks")
        for _ in range(20):
            if self._must(self.observer, _BEHIND) == ["f"]:
                break
            self._must(ticker, statement("tick", 0, 0, 0))
            self._judge()
        else:
            self._violated("the watermark does not arrive")
        # Nothing is excused any more: what is dated in the future has long been queued.
        self._must(
            self.observer, "BEGIN; UPDATE task_usage_hourly_rollup_state SET watermark_at = 'infinity'"
        )
        differing = self._must(self.observer, "EXECUTE judge(NULL)")[0]
        ours = self._must(
            self.observer, "SELECT string_agg(d::text, ', ') FROM task_usage_hourly_differences() d"
        )
        self._must(self.observer, "ROLLBACK")
        if differing or ours != [None]:
            self._violated(f"at the end hours differ: {differing}; by the product's own oracle: {ours[0]}")

    # What must hold

    def _judge(self) -> None:
        self.count.judged += 1
        previous = "NULL" if self._watermark is None else f"'{self._watermark}'"
        state, row = self.observer.run(f"EXECUTE judge({previous})")
        if state == "55P03":
            # An open TRUNCATE keeps readers out; the next commit is judged in its place.
            return
        assert state is None, self.observer.message
        differing, watermark, backwards, future, holders, unlocked = row
        self._watermark = watermark
        if differing:
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
        if leaked := set((holders or "").split()) - known:
            self._violated(f"advisory lock {LOCK} is held by sessions without a transaction: {leaked}")
        if unlocked:
            self._violated(f"task_usage_hourly was written without advisory lock {LOCK}")

    def _violated(self, what: str) -> None:
        script = "\n".join(f"    {operation!r}," for operation in self._done)
        raise Violation(f"{what}\nreplay:\nMachine(url).replay({self._start!r}, [\n{script}\n])")

    def _definition(self, function: str) -> str:
        return str(self._must(self.observer, f"SELECT pg_get_functiondef('{function}'::regprocedure)")[0])

    def _must(self, session: Session, sql: str) -> list[str | None]:
        state, row = session.run(sql)
        assert state is None, (sql, state, session.message)
        return row
