"""Say whether all is as it must be, while writers and ticks rest."""

from __future__ import annotations

import re
from functools import partial

from tests.support.oracle import WRONG, differing_hours
from tests.support.product import wait_until
from tests.support.soak.findings import Finding
from tests.support.soak.plan import HEAD, V034
from tests.support.soak.stage import Stage
from tests.support.v034 import V034_STEMS
from usage_rollup.contract import STEMS

# A tick does a day of events; what is queued is a matter of one or two.
_TICKS = 100

SESSIONS = (
    "SELECT pid, application_name, state, query FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'usage-rollup'"
)
_ADVISORY = (
    "SELECT l.pid, l.objid, a.application_name FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
    " WHERE l.locktype = 'advisory'"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_PENDING = (
    "SELECT (SELECT count(*) FROM task_usage_hourly_invalidation)"
    " + (SELECT count(*) FROM task_usage_hourly_dirty)"
)
_STATE = (
    "SELECT watermark_at, watermark_at > clock_timestamp(), last_error FROM task_usage_hourly_rollup_state"
)

# The one thing that a way back leaves behind.
_VERSION_TABLE = re.compile("alembic_version|version_num")

# What no server may say, whatever is done to it.
_ALARMS = re.compile(
    r"^.*(?:PANIC|TRAP:|terminated by signal (?:6|11)\b|invalid memory alloc).*$", re.MULTILINE
)


def judge(stage: Stage, place: str) -> None:
    """Raise Finding unless everything holds at the end of a cycle, where the database stands at `place`."""
    _require_nobody_left(stage)
    _require_agreement(stage, place)
    stage.writers.require_rows()
    if place != V034:
        _require_rollup(stage)
    if alarm := _ALARMS.search((stage.server.directory / "log").read_text(errors="replace")):
        raise Finding(f"the server's log says: {alarm.group()}")


def _require_nobody_left(stage: Stage) -> None:
    """I4: no session of ours is left, nor an advisory lock, soon after the last command has ended."""
    for what, query in (("session", SESSIONS), ("advisory lock", _ADVISORY)):
        try:
            wait_until(partial(_is_empty, stage, query), what)
        except AssertionError:
            left = stage.database.execute(query)
            raise Finding(f"{what} is left after the last command has ended: {left}") from None


def _is_empty(stage: Stage, query: str) -> bool:
    return not stage.database.execute(query)


def _require_agreement(stage: Stage, place: str) -> None:
    """I8: alembic_version, the ledger and the catalog say the same."""
    database = stage.database
    revision = "104" if place == HEAD else place
    if database.revision != revision:
        raise Finding(f"alembic_version says {database.revision}, the last command ended at {revision}")
    ledger = {*V034_STEMS, *(stem for number, stem in STEMS.items() if number <= revision)}
    if database.ledger != ledger:
        raise Finding(f"at {revision} the ledger has {database.ledger ^ ledger} too many or too few")
    if place == HEAD:
        done = database.usage_rollup("check")
        if done.returncode != 0:
            raise Finding(f"usage-rollup check ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    elif place == V034:
        there = {line for line in database.schema(in_order=False) if not _VERSION_TABLE.search(line)}
        if difference := there ^ set(stage.schema):
            raise Finding(f"the schema is not that of v0.3.4 any more: {sorted(difference)}")


def _require_rollup(stage: Stage) -> None:
    """Settle the ticks, then ask the oracle; then again as if all time had passed.

    The second time nothing is excused: a window from the watermark on must be all that is missing (I1, I2),
    and leave nothing behind that raw usage does not hold (I3). It is rolled back.
    """
    database = stage.database
    for _ in range(_TICKS):
        database.execute("SELECT rollup_task_usage_hourly()")
        if database.value(_PENDING) == 0:
            break
    else:
        raise Finding(f"{_TICKS} ticks have not emptied the queues: {database.value(_PENDING)} rows")
    watermark, in_future, error = database.execute(_STATE)[0]
    if in_future or error:
        raise Finding(f"the watermark is {watermark}, last_error is {error}")
    if hours := differing_hours(database.url):
        raise Finding(f"rollup and raw usage differ in {len(hours)} hours: {hours[:10]}")
    with database.connect(options="-c TimeZone=UTC -c search_path=public") as session:
        session.execute("SELECT rollup_task_usage_hourly_window(%s, 'infinity')", [watermark])
        wrong = session.execute(WRONG).fetchall()
        ours = session.execute("SELECT task_usage_hourly_differences()").fetchall()
        session.rollback()
    if wrong or ours:
        raise Finding(
            f"below the watermark {watermark} something was neither rolled up nor queued:"
            f" {wrong[:10]} {ours[:10]}"
        )
    if aside := database.execute("SELECT * FROM task_usage_hourly_set_aside"):
        raise Finding(f"set aside: {aside[:10]}")
