"""The functions that keep the rollup, ours or a later release's: minutes taken out, gates put in.

A gate is a place inside a function where a call can be stopped while other sessions go on.
"""

from __future__ import annotations

from tests.support import later_release

Substitution = tuple[str, str, str]  # function, text that occurs once in its definition, what to put there

WINDOW = "rollup_task_usage_hourly_window(timestamptz,timestamptz)"
SETTLE = "rollup_task_usage_hourly_settle(timestamptz,timestamptz,timestamptz)"
WRITE = "enqueue_task_usage_hourly_dirty_for_tu_write()"
GONE = "enqueue_task_usage_hourly_dirty_for_tu_gone()"
MOVE = "enqueue_task_usage_hourly_dirty_for_move()"
TICK = "rollup_task_usage_hourly()"
SLICE = "rollup_task_usage_hourly_slice()"
HORIZON = "task_usage_hourly_horizon(interval)"
PRUNE = "prune_task_usage_hourly_dirty(interval)"
PAIRS = "rollup_task_usage_hourly_pairs(task_usage_hourly_invalidation[])"

# A writer is young for four minutes and the horizon five minutes old, which no test can wait for. Here a
# writer is young until a horizon later than its start is read: what the minutes stand for, said by a
# sequence, which no transaction hides. A window that finds 4246 taken says so at once instead of after
# five seconds.
YOUNG = "(SELECT last_value FROM public.test_horizon) < extract(epoch FROM v_now) * 1e6"
IMPATIENT: tuple[Substitution, ...] = (
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

# Where calls stop, by what is called; each gate before the text it is found by.
TICK_GATES = ("begun", "horizon", "rolled_up")
SETTLE_GATES = ("locked", "drained", "recomputed")
_GATES = (
    (TICK, "begun", "IF NOT pg_try_advisory_xact_lock(4246) THEN"),
    (TICK, "horizon", "SELECT LEAST(\n"),
    (TICK, "rolled_up", "PERFORM public.prune_task_usage_hourly_dirty(interval '7 days');"),
    (SETTLE, "locked", "v_queued := public.rollup_task_usage_hourly_drain(v_portion);"),
    (SETTLE, "drained", "v_hours := ARRAY("),
    (SETTLE, "recomputed", "EXIT WHEN NOT isfinite(p_deadline)"),
    (SLICE, "slicing", "buckets := public.rollup_task_usage_hourly_range(\n"),
)
GATES: tuple[Substitution, ...] = tuple(
    (function, text, f"PERFORM public.test_gate('{gate}');\n    {text}") for function, gate, text in _GATES
)
GATED = {
    "tick": (*TICK_GATES, *SETTLE_GATES),
    "tick_without_time": (*TICK_GATES, *SETTLE_GATES),
    "window_of_the_queue": SETTLE_GATES,
    "window_of_everything": SETTLE_GATES,
    "slice": ("slicing",),
}

# The observer holds this lock on behalf of a backend that is to stop at its gate, and says so.
SCAFFOLD = """
CREATE SEQUENCE public.test_horizon MINVALUE 0;
CREATE FUNCTION public.test_gate(p_gate text) RETURNS void LANGUAGE plpgsql
SET lock_timeout = 0 SET client_min_messages = notice AS $$
BEGIN
    IF current_setting('test.gate', true) = p_gate THEN
        RAISE NOTICE 'at the gate';
        PERFORM pg_advisory_lock(77, pg_backend_pid());
        PERFORM pg_advisory_unlock(77, pg_backend_pid());
    END IF;
END
$$
"""


def gated(text: str, *gates: tuple[str, str]) -> str:
    """Return `text` with a gate before each text that occurs in it once."""
    for gate, before in gates:
        assert text.count(before) == 1, before
        text = text.replace(before, f"PERFORM public.test_gate('{gate}');\n    {before}")
    return text


def _step(number: str) -> str:
    (text,) = (text for stem, text in later_release.STEPS.items() if stem.startswith(number))
    return text


def _function(number: str) -> str:
    (stem,) = (stem for stem in later_release.STEPS if stem.startswith(number))
    return later_release.function_of(stem)


# What later releases do to tables is done once, before the first schedule: nothing of ours depends on it, and
# a table has no room for as many columns as there are schedules.
LATER_TABLES = _step("213").partition("-- Key by key")[0] + _step("251")

# Their steps as the product's runner applies them, one transaction. Nobody who writes stays open for the five
# minutes that their tick trails: here it asks for the horizon.
LATER_PIPELINE = "; ".join(
    [
        gated(_function("213").rstrip("; \n"), ("recomputed", "WITH keys AS (\n        SELECT d.* FROM")),
        _step("243").rstrip("; \n"),
        gated(
            _function("272")
            .rstrip("; \n")
            .replace(
                "now() - interval '5 minutes'", "public.task_usage_hourly_horizon(interval '2 seconds')"
            ),
            ("begun", "IF NOT pg_try_advisory_xact_lock(4246) THEN"),
            ("rolled_up", "PERFORM prune_task_usage_hourly_dirty();"),
        ),
    ]
)
# What 243 made of triggers, as 102 has them.
TRIGGERS_OF_OURS = """
CREATE OR REPLACE TRIGGER trg_tu_dirty_hourly BEFORE DELETE ON public.task_usage
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_tu();
CREATE OR REPLACE TRIGGER trg_atq_dirty_hourly BEFORE UPDATE OF runtime_id, issue_id OR DELETE
    ON public.agent_task_queue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_atq();
CREATE OR REPLACE TRIGGER trg_issue_delete_dirty_hourly BEFORE DELETE ON public.issue
    FOR EACH ROW EXECUTE FUNCTION public.enqueue_task_usage_hourly_dirty_for_issue_delete()
"""
