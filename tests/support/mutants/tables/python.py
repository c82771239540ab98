"""Mistakes in src/, in the SQL beside its modules and in entrypoint.sh; most of them no test once noticed."""

from __future__ import annotations

from tests.support.mutants.mutant import Mutant

_SRC = "src/usage_rollup"

_HOOK = "tests/hourly/test_backfill_hook.py"
_JOBS = "tests/hourly/test_jobs.py"
_PRODUCTS = "tests/hourly/test_products_pipeline.py"
_COMMAND = "tests/hourly/test_backfill_command.py"
_VERIFY = "tests/hourly/test_verify.py"
_TICK = "tests/hourly/test_tick_command.py"
_LOCK = "tests/session/test_advisory_lock.py"
_OPTIONS = "tests/session/test_options.py"
_CONNECTION = "tests/session/test_connection.py"
_MODES = "tests/stories/test_entrypoint_modes.py"
_PREFLIGHT = "tests/reports/test_preflight.py"
_OTHERS = "tests/stories/test_other_runners.py"
_LOGS = "tests/test_logs.py"
_RUNS = "tests/runner/test_runner_lock.py"
_PROBES = "tests/reports/test_probes.py"
_BOTH_WAYS = "tests/stories/test_upgrade_both_ways.py"

_SESSION = [
    Mutant(
        "the environment wins over -x",
        f"{_SRC}/session/options.py",
        'given |= {name: ("-x {name}={value}", value) for name, value in (x or {}).items()}',
        'given = {name: ("-x {name}={value}", value) for name, value in (x or {}).items()} | given',
        _OPTIONS,
    ),
    Mutant(
        "-x wins over what was typed as an option",
        f"{_SRC}/session/options.py",
        'given |= {name: ("--{name} {value}", value) for name, value in typed.items()}',
        'given = {name: ("--{name} {value}", value) for name, value in typed.items()} | given',
        _OPTIONS,
    ),
    Mutant(
        "a lock timeout of 0 waits for ever",
        f"{_SRC}/session/options.py",
        "min(max(patience_ms, _SHORTEST_MS), _LONGEST_MS)",
        "min(patience_ms, _LONGEST_MS)",
        _OPTIONS,
    ),
    Mutant(
        "a long lock timeout is more than PostgreSQL takes",
        f"{_SRC}/session/options.py",
        "min(max(patience_ms, _SHORTEST_MS), _LONGEST_MS)",
        "max(patience_ms, _SHORTEST_MS)",
        _OPTIONS,
    ),
    Mutant(
        "a duration is its last part",
        f"{_SRC}/session/options.py",
        "total = sum(float(number) * _UNIT_S[unit] for number, unit in parts) if parts else float(text)",
        "total = [float(number) * _UNIT_S[unit] for number, unit in parts][-1] if parts else float(text)",
        _OPTIONS,
    ),
    Mutant(
        "keep-legacy=false is told to SQL as nothing",
        f"{_SRC}/session/options.py",
        "if self.keep_legacy is not None:",
        "if self.keep_legacy:",
        _OPTIONS,
    ),
    Mutant(
        "an empty variable counts as given",
        f"{_SRC}/session/options.py",
        "for name, value in variables.items() if value",
        "for name, value in variables.items() if value is not None",
        _OPTIONS,
    ),
    Mutant(
        "prepared statements are left on",
        f"{_SRC}/session/opening.py",
        "    connection.prepare_threshold = None\n",
        "",
        f"{_CONNECTION} -k prepared",
    ),
    Mutant(
        "what the server says as INFO is not logged",
        f"{_SRC}/session/opening.py",
        '{"WARNING": logging.WARNING, "INFO": logging.INFO}',
        '{"WARNING": logging.WARNING}',
        f"{_CONNECTION} -k server_says",
    ),
    Mutant(
        "a refused login is waited for",
        f"{_SRC}/session/opening.py",
        "if failed.refused or left_s < LAST_ATTEMPT_S:",
        "if left_s < LAST_ATTEMPT_S:",
        f"{_CONNECTION} -k refused_login",
    ),
    Mutant(
        "a transaction is a snapshot",
        f"{_SRC}/session/connection.py",
        '_isolated(session, "READ COMMITTED"), session.begin()',
        '_isolated(session, "REPEATABLE READ"), session.begin()',
        f"{_CONNECTION} -k transaction_reads",
    ),
    Mutant(
        "a snapshot is of each statement",
        f"{_SRC}/session/connection.py",
        '_isolated(session, "REPEATABLE READ", read_only=True)',
        '_isolated(session, "READ COMMITTED", read_only=True)',
        f"{_CONNECTION} -k transaction_reads",
    ),
    Mutant(
        "a snapshot may write",
        f"{_SRC}/session/connection.py",
        '"REPEATABLE READ", read_only=True',
        '"REPEATABLE READ"',
        f"{_CONNECTION} -k snapshot_writes",
    ),
    Mutant(
        "a writing snapshot is of each statement",
        f"{_SRC}/session/connection.py",
        'with _isolated(session, "REPEATABLE READ"), session.begin():',
        'with _isolated(session, "READ COMMITTED"), session.begin():',
        f"{_CONNECTION} -k transaction_reads",
    ),
    Mutant(
        "the isolation before a block is not put back",
        f"{_SRC}/session/connection.py",
        "session.execution_options(isolation_level=before, postgresql_readonly=False)",
        "session.execution_options(postgresql_readonly=False)",
        f"{_CONNECTION} -k transaction_reads",
    ),
    Mutant(
        "what is open before a hook is rolled back",
        f"{_SRC}/session/connection.py",
        "    session.commit()\n",
        "    session.rollback()\n",
        f"{_OTHERS} -k few_hours",
    ),
    Mutant(
        "policies hide rows from here on",
        f"{_SRC}/session/connection.py",
        'session.execute(sa.text(pinned.statement("row_security", "off")))',
        "pass",
        f"{_CONNECTION} -k policies",
    ),
    Mutant(
        "shared locks are kept by a failed attempt",
        f"{_SRC}/session/advisory_lock.py",
        "        for session in taken:\n            _unlock(session, key, shared=shared)\n",
        "",
        _LOCK,
    ),
    Mutant(
        "a failed attempt gives back an exclusive lock instead of a shared one",
        f"{_SRC}/session/advisory_lock.py",
        "        for session in taken:\n            _unlock(session, key, shared=shared)\n",
        "        for session in taken:\n            _unlock(session, key, shared=False)\n",
        _LOCK,
    ),
    Mutant(
        "holders in other databases count",
        f"{_SRC}/session/advisory_lock.py",
        "    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())\n",
        "",
        _LOCK,
    ),
    Mutant(
        "a lock of two keys is taken for one of one key",
        f"{_SRC}/session/advisory_lock.py",
        "locktype = 'advisory' AND objsubid = 1\n",
        "locktype = 'advisory'\n",
        _LOCK,
    ),
    Mutant(
        "half of a key is compared",
        f"{_SRC}/session/advisory_lock.py",
        '_KEY = "(classid::bigint << 32 | objid::bigint)"',
        '_KEY = "(objid::bigint)"',
        _LOCK,
    ),
    Mutant(
        "a lock that another process holds is taken for one's own",
        f"{_SRC}/session/advisory_lock.py",
        "AND granted AND pid = pg_backend_pid()",
        "AND granted",
        _LOCK,
    ),
    Mutant(
        "a lock that was given back is missed",
        f"{_SRC}/session/advisory_lock.py",
        "if times > 0]",
        "if times >= 0]",
        _LOCK,
    ),
    Mutant(
        "a lock that was taken twice counts once",
        f"{_SRC}/session/advisory_lock.py",
        "            for session in sessions:\n                _held_by(session)[key] += 1\n",
        "            for session in sessions:\n                _held_by(session)[key] = 1\n",
        _LOCK,
    ),
    Mutant(
        "who holds the lock is taken for who waits for it",
        f"{_SRC}/session/advisory_lock.py",
        "AND NOT granted)",
        "AND granted)",
        _LOCK,
    ),
    Mutant(
        "a run that gets on gives up after five losses",
        f"{_SRC}/session/outages.py",
        "        run.losses_in_a_row = 0\n",
        "",
        "tests/stories/test_outages.py -k every_reply_to_a_commit_of_a_slice",
    ),
    Mutant(
        "the URL's word on a dead peer does not hold",
        f"{_SRC}/session/parameters.py",
        'params = {**pinned.CLIENT_TCP, **given, "client_encoding": "UTF8"}',
        'params = {**given, **pinned.CLIENT_TCP, "client_encoding": "UTF8"}',
        "tests/session/test_opening.py -k url_says",
    ),
    Mutant(
        "the product's URL wins over the direct one",
        f"{_SRC}/session/database_url.py",
        'URL_VARIABLES = ("MIGRATION_DATABASE_URL", "DATABASE_URL")',
        'URL_VARIABLES = ("DATABASE_URL", "MIGRATION_DATABASE_URL")',
        "tests/session/test_database_url.py -k wins",
    ),
    Mutant(
        "a password ends at its first @",
        f"{_SRC}/session/database_url.py",
        'user, at, host = authority.rpartition("@")',
        'user, at, host = authority.partition("@")',
        "tests/session/test_database_url.py -k unencoded_password_is",
    ),
]

_HOURLY = [
    Mutant(
        "the state is not read again after a resumed walk",
        "src/usage_rollup/hourly/backfill.py",
        "    if walked:\n        state = read_state(session)\n",
        "",
        f"{_HOOK} -k killed_walk_resumes",
    ),
    Mutant(
        "after a resumed walk nothing is planned for what came since",
        "src/usage_rollup/hourly/backfill.py",
        "    if state.is_behind:\n        slices.plan(session)\n",
        "    if state.is_behind and not walked:\n        slices.plan(session)\n",
        f"{_HOOK} -k interrupted_long_ago",
    ),
    Mutant(
        "a lag of exactly an hour is walked",
        "src/usage_rollup/hourly/backfill.py",
        "return self.lag > LAG_THRESHOLD",
        "return self.lag >= LAG_THRESHOLD",
        f"{_HOOK} -k exactly_an_hour",
    ),
    Mutant(
        "an unfinished walk is left where the watermark is fresh",
        "src/usage_rollup/hourly/backfill.py",
        "(self.unfinished or self.is_behind or self.left_out_before is not None)",
        "(self.is_behind or self.left_out_before is not None)",
        f"{_HOOK} -k interrupted",
    ),
    Mutant(
        "the state is read before the lock is held",
        "src/usage_rollup/hourly/backfill.py",
        "    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))\n"
        "    session.execute(sa.text(_PUT_STATE_BACK))\n    state = read_state(session)\n",
        "    session.execute(sa.text(_PUT_STATE_BACK))\n    state = read_state(session)\n"
        "    advisory_lock.acquire(session, HOURLY_ROLLUP, options.patience_s(advisory_lock.PATIENCE_S))\n",
        f"{_HOOK} -k 4246",
    ),
    Mutant(
        "the queue is not drained before the proof",
        "src/usage_rollup/hourly/proof.py",
        "    session.execute(sa.text(_DRAIN))\n",
        "",
        f"{_HOOK} -k queued",
    ),
    Mutant(
        "what differs is recomputed once",
        "src/usage_rollup/hourly/proof.py",
        "REPAIRS = 2\n",
        "REPAIRS = 1\n",
        "tests/stories/test_upgrade_both_ways.py -k two_recomputes",
    ),
    Mutant(
        "hours that still differ stop nothing",
        "src/usage_rollup/hourly/proof.py",
        "    else:\n        require_equal(session)\n    with transaction",
        "    with transaction",
        f"{_HOOK} -k cannot_be_healed",
    ),
    Mutant(
        "what was left out is remembered when it is in",
        "src/usage_rollup/hourly/proof.py",
        '        session.execute(sa.text("DELETE FROM public.task_usage_hourly_left_out"))\n',
        "",
        f"{_COMMAND} -k left_out",
    ),
    Mutant(
        "a watermark in the future is believed",
        f"{_SRC}/hourly/backfill.py",
        '    if row["future"]:\n',
        '    if row["future"] and row["empty"]:\n',
        f"{_HOOK} -k future",
    ),
    Mutant(
        "the walk's watermark may trail as far as it likes",
        "src/usage_rollup/hourly/backfill.py",
        "    if state.is_behind:\n        who, hint",
        "    if state.lag > 24 * LAG_THRESHOLD:\n        who, hint",
        f"{_HOOK} -k old_transaction",
    ),
    Mutant(
        "a walk is begun although there is no horizon",
        f"{_SRC}/hourly/slices.py",
        "upto = horizon(session, installed) if empty else require_horizon(session, installed)",
        "upto = horizon(session, installed)",
        f"{_HOOK} -k prepared_transaction",
    ),
    Mutant(
        "an empty table waits for a horizon",
        f"{_SRC}/hourly/slices.py",
        "upto = horizon(session, installed) if empty else require_horizon(session, installed)",
        "upto = require_horizon(session, installed)",
        f"{_HOOK} -k wait_for_a_horizon",
    ),
    Mutant(
        "the watermark is moved without the lock",
        f"{_SRC}/hourly/slices.py",
        """\
        advisory_lock.require_held(session)
        session.execute(sa.text("SELECT public.rollup_task_usage_hourly_finish()"))
""",
        """\
        session.execute(sa.text("SELECT public.rollup_task_usage_hourly_finish()"))
""",
        "tests/hourly/test_slices.py -k lost_a_lock",
    ),
    Mutant(
        "a slice is walked without the lock",
        f"{_SRC}/hourly/slices.py",
        """\
        advisory_lock.require_held(session)
        row = session""",
        """\
        row = session""",
        "tests/stories/test_outages.py -k slice_is_not_begun",
    ),
    Mutant(
        "an overtaken walk leaves its indexes dropped",
        f"{_SRC}/hourly/slices.py",
        '        session.execute(sa.text("SELECT public.rollup_task_usage_hourly_build_indexes()"))\n',
        "",
        f"{_OTHERS} -k given_up",
    ),
    Mutant(
        "one session keeps 4246 between slices",
        f"{_SRC}/hourly/walk.py",
        "if options.sleep_between_slices_s or advisory_lock.is_waited_for(leader, HOURLY_ROLLUP):",
        "if options.sleep_between_slices_s:",
        f"{_HOOK} -k turn_between_slices",
    ),
    Mutant(
        "workers keep 4246 while somebody is blocked on it",
        f"{_SRC}/hourly/walk.py",
        "            waited_for = advisory_lock.is_waited_for(leader, HOURLY_ROLLUP)\n",
        "            waited_for = False\n",
        f"{_JOBS} -k waits_for_4246_gets_it",
    ),
    Mutant(
        "workers begin slices while somebody is blocked on 4246",
        f"{_SRC}/hourly/walk.py",
        "            if is_left and not waited_for:\n",
        "            if is_left:\n",
        f"{_JOBS} -k waits_for_4246_gets_it",
    ),
    Mutant(
        "only the leader gives 4246 to who is blocked on it",
        f"{_SRC}/hourly/walk.py",
        """\
                for session in everyone:
                    advisory_lock.release(session, HOURLY_ROLLUP, shared=True)
""",
        """\
                advisory_lock.release(leader, HOURLY_ROLLUP, shared=True)
""",
        f"{_JOBS} -k waits_for_4246_gets_it",
    ),
    Mutant(
        "the leader keeps 4246 exclusively beside its workers",
        f"{_SRC}/hourly/walk.py",
        """\
        advisory_lock.release(leader, HOURLY_ROLLUP)
        advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP, patience_s)
        is_left""",
        """\
        advisory_lock.acquire_shared(everyone, HOURLY_ROLLUP, patience_s)
        is_left""",
        f"{_JOBS} -k holds_4246_shared",
    ),
    Mutant(
        "the leader proves with a shared lock",
        f"{_SRC}/hourly/walk.py",
        """\
    advisory_lock.release(leader, HOURLY_ROLLUP, shared=True)
    advisory_lock.acquire(leader, HOURLY_ROLLUP, patience_s)
""",
        "",
        f"{_JOBS} -k leader_alone",
    ),
    Mutant(
        "more sessions walk for who asks for rest",
        f"{_SRC}/hourly/walk.py",
        "jobs = 1 if options.sleep_between_slices_s else options.jobs",
        "jobs = options.jobs",
        f"{_JOBS} -k asks_for_rest",
    ),
    Mutant(
        "statements of the workers run on when the walk is left",
        f"{_SRC}/hourly/crew.py",
        "                list(cancelling.map(_cancel, drivers.values()))\n",
        "                pass\n",
        f"{_JOBS} -k killed_parallel_walk",
    ),
    Mutant(
        "a run fails for want of company",
        f"{_SRC}/hourly/crew.py",
        "            except UsageRollupError as error:\n",
        "            except AssertionError as error:\n",
        f"{_JOBS} -k second_login_is_refused",
    ),
    Mutant(
        "a second session that brings nothing is kept",
        f"{_SRC}/hourly/pace.py",
        "            self.settle(self.proven)\n",
        "            self.settle(self.sessions)\n",
        "tests/hourly/test_pace.py",
    ),
    Mutant(
        "--months-back is off by one",
        f"{_SRC}/hourly/catch_up.py",
        '{"months": months_back - 1}',
        '{"months": months_back}',
        f"{_COMMAND} -k left_out",
    ),
    Mutant(
        "a part is left out without being acknowledged",
        "src/usage_rollup/hourly/catch_up.py",
        "    if not force_partial:\n",
        "    if not force_partial and not installed.ours:\n",
        f"{_COMMAND} -k acknowledged",
    ),
    Mutant(
        "--months-back that leaves nothing out is a partial backfill",
        "src/usage_rollup/hourly/catch_up.py",
        "return since if since and _unwalked(session, before=since) else None",
        "return since",
        f"{_COMMAND} -k leave_nothing_behind",
    ),
    Mutant(
        "a partial backfill is compared with all usage",
        "src/usage_rollup/hourly/catch_up.py",
        "proof.require_equal(session, since)",
        "proof.require_equal(session)",
        f"{_COMMAND} -k left_out",
    ),
    Mutant(
        "several sessions are let loose on the product's window",
        f"{_SRC}/hourly/catch_up.py",
        "        _require_one_job(options)\n        result",
        "        result",
        f"{_PRODUCTS} -k only_one_can_work",
    ),
    Mutant(
        "the product's window keeps 4246 between steps",
        f"{_SRC}/hourly/products_pipeline.py",
        "            rest(session, options)\n",
        "",
        f"{_PRODUCTS} -k between_two_steps",
    ),
    Mutant(
        "public stays on the path after the window",
        f"{_SRC}/hourly/pipeline.py",
        "'pg_catalog, public, pg_temp', true)",
        "'pg_catalog, public, pg_temp', false)",
        f"{_PRODUCTS} -k in_reach",
    ),
    Mutant(
        "a deadlock ends the repair through the product's window",
        f"{_SRC}/hourly/products_pipeline.py",
        "_CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)",
        "_CONFLICTS = (errors.SerializationFailure,)",
        f"{_PRODUCTS} -k collided",
    ),
    Mutant(
        "a conflict ends the repair through the product's window",
        f"{_SRC}/hourly/products_pipeline.py",
        "_CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)",
        "_CONFLICTS = (errors.DeadlockDetected,)",
        f"{_PRODUCTS} -k collided",
    ),
    Mutant(
        "a bucket that the window refuses takes its hour along",
        f"{_SRC}/hourly/products_pipeline.py",
        "        if len(keys) == 1:\n",
        "        if len(keys) >= 1:\n",
        f"{_PRODUCTS} -k stops_the_repair_of_no_other",
    ),
    Mutant(
        "the product's window rolls up without the lock",
        f"{_SRC}/hourly/products_pipeline.py",
        "        advisory_lock.require_held(session)\n        found = filled",
        "        found = filled",
        f"{_PRODUCTS} -k lost_a_lock",
    ),
    Mutant(
        "the product's window repairs without the lock",
        f"{_SRC}/hourly/products_pipeline.py",
        "        advisory_lock.require_held(session)\n        refusals",
        "        refusals",
        f"{_PRODUCTS} -k lost_a_lock",
    ),
    Mutant(
        "what the window left as it was counts as repaired",
        f"{_SRC}/hourly/products_pipeline.py",
        '        left = [key for key in wrong_keys() if not (pending and key["queued"])]\n',
        "        left = [key for key, _ in refusals]\n",
        f"{_PRODUCTS} -k does_nothing",
    ),
    Mutant(
        "verify reads outside one snapshot",
        f"{_SRC}/hourly/verify.py",
        "from ..session.connection import snapshot\n",
        "from ..session.connection import transaction as snapshot\n",
        f"{_VERIFY} -k snapshot",
    ),
    Mutant(
        "verify compares in one snapshot and tells of another",
        f"{_SRC}/hourly/verify.py",
        """\
        state = rows(_SQL["state"], since=since)[0]
        return Verdict(""",
        """\
        state = rows(_SQL["state"], since=since)[0]
    if True:
        return Verdict(""",
        f"{_VERIFY} -k snapshot",
    ),
    Mutant(
        "verify says equal where nothing was judged",
        f"{_SRC}/hourly/verify.py",
        "not self.differences and (self.judged_hours > 0 or self.empty)",
        "not self.differences",
        f"{_VERIFY} -k say_equals",
    ),
    Mutant(
        "each session compares a snapshot of its own",
        f"{_SRC}/hourly/proof.py",
        '        session.exec_driver_sql(f"SET TRANSACTION SNAPSHOT {literal(snapshot_id)}")\n',
        "",
        "tests/hourly/test_proof.py",
    ),
    Mutant(
        "a tick that failed is written down over a later success",
        f"{_SRC}/hourly/tick.py",
        "WHERE (s.last_run_finished_at BETWEEN EXCLUDED.last_run_started_at AND clock_timestamp()) IS",
        "WHERE NULL IS",
        f"{_TICK} -k hide_a_success",
    ),
    Mutant(
        "the error of a tick is not written down without a state row",
        f"{_SRC}/hourly/tick.py",
        """\
INSERT INTO public.task_usage_hourly_rollup_state AS s
    (id, last_run_started_at, last_run_finished_at, last_error)
VALUES (1, :started, clock_timestamp(), :error)
ON CONFLICT (id) DO UPDATE SET
    last_run_started_at = EXCLUDED.last_run_started_at,
    last_run_finished_at = EXCLUDED.last_run_finished_at,
    last_error = EXCLUDED.last_error
WHERE (s.last_run_finished_at BETWEEN EXCLUDED.last_run_started_at AND clock_timestamp()) IS NOT TRUE
""",
        """\
UPDATE public.task_usage_hourly_rollup_state AS s SET
    last_run_started_at = :started, last_run_finished_at = clock_timestamp(), last_error = :error
WHERE (s.last_run_finished_at BETWEEN CAST(:started AS timestamptz) AND clock_timestamp()) IS NOT TRUE
""",
        f"{_TICK} -k error",
    ),
    Mutant(
        "a tick leaves 4246 locked",
        f"{_SRC}/hourly/tick.py",
        "SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint))",
        "SELECT pg_try_advisory_lock(CAST(:key AS bigint))",
        f"{_TICK} -k hide_a_success",
    ),
    Mutant(
        "an adopted rollup of 24 hours that differ is left as it is",
        f"{_SRC}/hourly/before_adoption.py",
        "        if differing > MOST_HOURS:\n",
        "        if differing >= MOST_HOURS:\n",
        f"{_OTHERS} -k few_hours",
    ),
    Mutant(
        "the deadline of an adoption's proof stays with the session",
        f"{_SRC}/hourly/before_adoption.py",
        """session.execute(sa.text("SELECT set_config('statement_timeout', '0', false)"))""",
        "pass",
        f"{_OTHERS} -k proof_leaves",
    ),
    Mutant(
        "4246 stays with the run after an adoption's proof",
        f"{_SRC}/hourly/before_adoption.py",
        "        advisory_lock.release(session, HOURLY_ROLLUP)\n",
        "        pass\n",
        f"{_OTHERS} -k proof_leaves",
    ),
]

_RUNNER = [
    Mutant(
        "lock_timeout is not divided by the number of tables",
        f"{_SRC}/runner/table_locks.sql",
        "* 800 / v_lock.all_tables)",
        "* 800)",
        "tests/runner/test_table_locks.py",
    ),
    Mutant(
        "lock_timeout is longer than deadlock_timeout",
        f"{_SRC}/runner/table_locks.sql",
        "* 800 / v_lock.all_tables)",
        "* 1200 / v_lock.all_tables)",
        "tests/runner/test_table_locks.py",
    ),
    Mutant(
        "lock_timeout is divided by the tables of one mode",
        f"{_SRC}/runner/table_locks.sql",
        "SUM(COUNT(*)) OVER () AS all_tables",
        "COUNT(*) AS all_tables",
        "tests/runner/test_table_locks.py",
    ),
    Mutant(
        "a table that is gone meanwhile ends the step",
        f"{_SRC}/runner/table_locks.sql",
        "lock_not_available OR deadlock_detected OR undefined_table",
        "lock_not_available OR deadlock_detected",
        "tests/runner/test_table_locks.py",
    ),
    Mutant(
        "the short lock_timeout stays with the step",
        f"{_SRC}/runner/table_locks.sql",
        "            PERFORM set_config('lock_timeout', c_lock_timeout, true);\n",
        "",
        "tests/runner/test_table_locks.py",
    ),
    Mutant(
        "who locks a row of a ledger is let in",
        f"{_SRC}/runner/table_locks.py",
        'LEDGER_MODE = "EXCLUSIVE"',
        'LEDGER_MODE = "SHARE ROW EXCLUSIVE"',
        "tests/stories/test_locks_held.py -k test_a_held_ledger_ends_each_step",
    ),
    Mutant(
        "the version table is not locked before a step",
        f"{_SRC}/runner/table_locks.py",
        'return version_table, "schema_migrations"',
        'return "schema_migrations", "schema_migrations"',
        "tests/stories/test_locks_held.py -k test_a_held_ledger_ends_each_step",
    ),
    Mutant(
        "the ledger's INSERT of an adoption has no ON CONFLICT",
        f"{_SRC}/runner/ledger.py",
        '            " ON CONFLICT DO NOTHING"\n',
        "",
        f"{_RUNS} -k recorded_once",
    ),
    Mutant(
        "the ledger's INSERT of a step has no ON CONFLICT",
        f"{_SRC}/runner/ledger.py",
        """WHERE version = '{stem}') ON CONFLICT DO NOTHING\"""",
        """WHERE version = '{stem}')\"""",
        f"{_RUNS} -k recorded_once",
    ),
    Mutant(
        "a ledger without a key gets a stem twice",
        f"{_SRC}/runner/ledger.py",
        """\
        f"INSERT INTO public.schema_migrations (version) SELECT '{stem}' WHERE NOT EXISTS"
        f" (SELECT FROM public.schema_migrations WHERE version = '{stem}') ON CONFLICT DO NOTHING"
""",
        """\
        f"INSERT INTO public.schema_migrations (version) VALUES ('{stem}') ON CONFLICT DO NOTHING"
""",
        "tests/runner/test_as_made.py -k without_a_key",
    ),
    Mutant(
        "a stamp is recorded as a step",
        f"{_SRC}/runner/ledger.py",
        "    if step.is_stamp:\n        return\n",
        "",
        "tests/runner/test_adoption.py -k stamp_adds_nothing",
    ),
    Mutant(
        "a hook runs before a downgrade too",
        f"{_SRC}/runner/hooks.py",
        "if not isinstance(step, RevisionStep) or not step.is_upgrade:",
        "if not isinstance(step, RevisionStep):",
        "tests/runner/test_hook_mechanism.py -k every_time",
    ),
    Mutant(
        "a hook runs in the transaction that read the version",
        f"{_SRC}/runner/hooks.py",
        "    with alone(session):\n        hook(session, options)\n",
        "    hook(session, options)\n",
        "tests/runner/test_hook_mechanism.py -k outside_a_transaction",
    ),
    Mutant(
        "a step begins without the lock of runs",
        f"{_SRC}/runner/hooks.py",
        "        advisory_lock.require_held(session)\n",
        "",
        "tests/stories/test_outages.py -k step_is_not_begun",
    ),
    Mutant(
        "a relative target is counted anew in another session",
        f"{_SRC}/runner/again.py",
        "        if target is not None:\n",
        "        if target is not None and False:\n",
        "tests/stories/test_outages.py -k relative_target",
    ),
    Mutant(
        "an adoption is recorded without the ledgers' locks",
        f"{_SRC}/runner/adoption.py",
        "        table_locks.lock_tables(connection, {}, table_locks.ledgers(options.version_table))\n",
        "",
        "tests/stories/test_locks_held.py -k ends_an_adoption",
    ),
    Mutant(
        "new objects belong to who migrates",
        f"{_SRC}/runner/step.py",
        "    connection.exec_driver_sql(_BECOME_OWNER)\n",
        "",
        f"{_CONNECTION} -k member_of_the_owner_migrates",
    ),
    Mutant(
        "a run forgets where it began when its session is lost",
        f"{_SRC}/runner/summary.py",
        "    if _began.standing is None:\n",
        "    if True:\n",
        "tests/runner/test_summary.py -k lost_its_session",
    ),
]

_REPORTS = [
    Mutant(
        "preflight asks for a horizon that an unfinished walk need not have",
        f"{_SRC}/reports/forecast_103.py",
        'held_back = state["needs_horizon"] and session.scalar(',
        "held_back = session.scalar(",
        f"{_PREFLIGHT} -k interrupted",
    ),
    Mutant(
        "preflight takes a fresh watermark over an unfinished walk for the end",
        "src/usage_rollup/reports/forecast_103.py",
        'state["behind"] or state["unfinished"] or left_out_before is not None',
        'state["behind"] or left_out_before is not None',
        f"{_PREFLIGHT} -k interrupted",
    ),
    Mutant(
        "the horizon of a plan does not count",
        f"{_SRC}/reports/forecast_103.sql",
        "s.latest - :lag > GREATEST(s.rolled_up, s.planned)",
        "s.latest - :lag > s.rolled_up",
        f"{_PREFLIGHT} -k interrupted",
    ),
    Mutant(
        "preflight promises what it could not see",
        f"{_SRC}/reports/preflight.py",
        "        return not self.refusals and not self.not_seen\n",
        "        return not self.refusals\n",
        f"{_PREFLIGHT} -k locked_table",
    ),
    Mutant(
        "a lock beside another reason may pass by itself",
        f"{_SRC}/reports/hidden.py",
        "== {LOCKED}",
        ">= {LOCKED}",
        f"{_PREFLIGHT} -k outlasts_the_patience_may",
    ),
    Mutant(
        "4246 is in the way of an upgrade that does not need it",
        f"{_SRC}/reports/preflight.py",
        '        if self.found.is_pending("103"):\n            keys.append',
        "        if True:\n            keys.append",
        f"{_PREFLIGHT} -k once_103_is_done",
    ),
    Mutant(
        "a plan without a walked slice is 100 percent",
        f"{_SRC}/reports/backfilling.py",
        "    return min(99, 100 * walked_rows // max(1, usage_rows))\n",
        "    return 100 * walked_rows // max(1, usage_rows)\n",
        "tests/reports/test_backfilling.py -k without_rows",
    ),
    Mutant(
        "a backfill in another database is at work here",
        f"{_SRC}/reports/backfilling.sql",
        "WHERE a.datname = current_database() AND a.pid",
        "WHERE a.pid",
        "tests/reports/test_backfilling.py -k another_database",
    ),
    Mutant(
        "neighbouring days are a hole each",
        f"{_SRC}/reports/covered_days.py",
        "groupby(days, lambda day: day.state in HOLES)",
        "groupby(days, lambda day: (day.day, day.state in HOLES))",
        "tests/reports/test_status.py -k glance",
    ),
    Mutant(
        "the step where a database stands is pending",
        f"{_SRC}/reports/place.py",
        "start is None or revision > start]",
        "start is None or revision >= start]",
        f"{_PREFLIGHT} -k each_shape",
    ),
    Mutant(
        "status reads each fact at another moment",
        f"{_SRC}/reports/status.py",
        "from ..session.connection import snapshot\n",
        "from ..session.connection import transaction as snapshot\n",
        "tests/reports/test_status.py -k one_moment",
    ),
]

_COMMANDS = [
    Mutant(
        "a probe's bound is no bound",
        "src/usage_rollup/commands/health.py",
        "s.lag_seconds > most.seconds:",
        "s.lag_seconds >= most.seconds:",
        "tests/reports/test_probes.py -k beyond",
    ),
    Mutant(
        "a probe that finds nothing to complain of exits 3",
        f"{_SRC}/commands/status.py",
        "raise typer.Exit(DIFFERENCES if wrong else 0)",
        "raise typer.Exit(DIFFERENCES)",
        "tests/reports/test_probes.py -k up_to_date",
    ),
    Mutant(
        "verify exits 0 whatever it found",
        f"{_SRC}/commands/verify.py",
        "raise typer.Exit(0 if verdict.equal else DIFFERENCES)",
        "raise typer.Exit(0)",
        f"{_VERIFY} -k what_is_wrong",
    ),
    Mutant(
        "an answer that could not be written is a success",
        f"{_SRC}/commands/cli.py",
        "            logs.require_answer()\n",
        "            pass\n",
        "tests/test_streams.py -k cannot_be_written",
    ),
    Mutant(
        "an upgrade that nobody reads of has failed",
        f"{_SRC}/commands/cli.py",
        '_WORK = {"upgrade", ',
        "_WORK = {",
        "tests/test_streams.py -k commands_that_work",
    ),
    Mutant(
        "what the environment gives counts as typed",
        f"{_SRC}/commands/options.py",
        'return context.params[name] if source is not None and source.name == "COMMANDLINE" else None',
        "return context.params[name] if source is not None else None",
        f"{_COMMAND} -k as_it_was_typed",
    ),
    Mutant(
        "a strip of 24 months has 25",
        f"{_SRC}/commands/strip.py",
        "if month > newest - MONTHS]",
        "if month >= newest - MONTHS]",
        "tests/commands/test_output.py -k strip",
    ),
    Mutant(
        "alembic's warnings and tracebacks are lines of text beside JSON",
        f"{_SRC}/logs.py",
        """\
        messaging.log.addHandler(_handler(_Refusal(), None))
        _log_what_python_prints()
""",
        """\
        messaging.log.addHandler(_handler(_Refusal(), None))
""",
        f"{_LOGS} -k python",
    ),
    Mutant(
        "warnings are lines of text beside JSON",
        f"{_SRC}/logs.py",
        "    logging.captureWarnings(True)\n",
        "",
        f"{_LOGS} -k python",
    ),
    Mutant(
        "tracebacks are lines of text beside JSON",
        f"{_SRC}/logs.py",
        "    sys.excepthook = _log_exception\n",
        "",
        f"{_LOGS} -k python",
    ),
    Mutant(
        "a refusal is printed by alembic beside its object",
        f"{_SRC}/logs.py",
        "        sys.exit(TRY_AGAIN if _may_pass() else ALEMBIC_REFUSED)\n",
        "        pass\n",
        f"{_LOGS} -k refusal_of_alembic",
    ),
    Mutant(
        "what may pass by itself exits as what does not",
        f"{_SRC}/logs.py",
        "isinstance(error, UsageRollupError) and error.exit_status == TRY_AGAIN",
        "isinstance(error, UsageRollupError) and error.exit_status == REFUSED",
        f"{_MODES} -k pass_by_itself",
    ),
    Mutant(
        "the end of a backfill by a signal is a line of text beside JSON",
        f"{_SRC}/commands/backfill.py",
        'log.warning("stopped: finished slices stay; run the same command to go on")',
        'print("stopped: finished slices stay; run the same command to go on")',
        f"{_LOGS} -k signal",
    ),
]

_DOOR = [
    Mutant(
        "the door returns before the migration has ended",
        "entrypoint.sh",
        '    [ -n "$told" ] || break\n',
        "    break\n",
        f"{_MODES} -k until_the_migration_has_ended",
    ),
    Mutant(
        "the door waits for a migration only while it is there",
        "entrypoint.sh",
        '    [ -n "$told" ] || break\n',
        '    kill -0 "$migration" 2>/dev/null || break\n',
        f"{_MODES} -k gone_before_the_trap",
    ),
    Mutant(
        "the door waits once more and no longer",
        "entrypoint.sh",
        "while :; do\n    told=\n",
        "for again in once more; do\n    told=\n",
        f"{_MODES} -k until_the_migration_has_ended",
    ),
    Mutant(
        "the status of a migration is that of the first wait",
        "entrypoint.sh",
        "    status=$waited\n",
        '    [ "$status" -ne 127 ] || status=$waited\n',
        f"{_MODES} -k until_the_migration_has_ended",
    ),
    Mutant(
        "a migration that was collected already has not been found",
        "entrypoint.sh",
        '    [ "$waited" -ne 127 ] || break\n    status=$waited\n',
        '    status=$waited\n    [ "$waited" -ne 127 ] || break\n',
        f"{_MODES} -k signal_comes_as_it_ends",
    ),
    Mutant(
        "a signal is not passed on to the migration",
        "entrypoint.sh",
        '    [ -z "$migration" ] || kill -TERM "$migration" 2>/dev/null\n}',
        "}",
        f"{_MODES} -k until_the_migration_has_ended",
    ),
    Mutant(
        "a command is started after the door was told to stop",
        "entrypoint.sh",
        '    [ -z "$stopped" ] || exit "$stopped"\n    trap',
        "    trap",
        f"{_MODES} -k until_the_migration_has_ended",
    ),
    Mutant(
        "a failed migration starts the command",
        "entrypoint.sh",
        '-- migrate"\n    exit "$status"\n',
        '-- migrate"\n',
        f"{_MODES} -k failed_migration",
    ),
    Mutant(
        "the command is left with the door's traps",
        "entrypoint.sh",
        "    trap - TERM INT\n",
        "    trap '' TERM INT\n",
        "tests/stories/test_entrypoint.py -k gets_its_signals",
    ),
]

# What lags, what a partial backfill left out, and what is next where there is no rollup.
_LATE = [
    Mutant(
        "lag: a watermark in the future lags by less than nothing",
        f"{_SRC}/hourly/lag.sql",
        "    WHEN s.watermark > clock_timestamp() THEN NULL\n",
        "",
        f"{_PROBES} -k future",
    ),
    Mutant(
        "lag: what never began lags since 1970",
        f"{_SRC}/hourly/lag.sql",
        "s.watermark > 'epoch'",
        "s.watermark >= 'epoch'",
        f"{_PROBES} -k ever_rolled_up",
    ),
    Mutant(
        "lag: where there is no usage nobody knows",
        f"{_SRC}/hourly/lag.sql",
        "ELSE GREATEST(0, EXTRACT(EPOCH",
        "ELSE (EXTRACT(EPOCH",
        f"{_PROBES} -k nothing_lags",
    ),
    Mutant(
        "lag: usage of no time counts as the oldest",
        f"{_SRC}/hourly/lag.sql",
        " WHERE isfinite(updated_at)",
        "",
        f"{_PROBES} -k ever_rolled_up",
    ),
    Mutant(
        "lag: usage of an absurd hour counts as the oldest",
        f"{_SRC}/hourly/lag.sql",
        " WHERE public.task_usage_hourly_dated(created_at)",
        "",
        f"{_PROBES} -k ever_rolled_up",
    ),
    Mutant(
        "left out: what is walked is what lies behind it",
        f"{_SRC}/hourly/slices.sql",
        "tstzrange(public.task_usage_hour_bucket(f.first_at), l.before_hour)",
        "tstzrange(l.before_hour, NULL)",
        f"{_COMMAND} -k left_out",
    ),
    Mutant(
        "left out: its first hour is not walked",
        f"{_SRC}/hourly/slices.sql",
        "tstzrange(public.task_usage_hour_bucket(f.first_at), l.before_hour)",
        "tstzrange(public.task_usage_hour_bucket(f.first_at) + interval '1 hour', l.before_hour)",
        f"{_COMMAND} -k left_out",
    ),
    Mutant(
        "left out: it is walked again beside the walk that reaches it",
        f"{_SRC}/hourly/slices.sql",
        "\n    AND NOT EXISTS (SELECT FROM public.task_usage_hourly_backfill AS b"
        " WHERE b.from_hour < l.before_hour)",
        "",
        f"{_COMMAND} -k left_out",
    ),
    Mutant(
        "left out: walking it takes the watermark to now",
        f"{_SRC}/hourly/slices.sql",
        "s.usage_rows, w.watermark_at\n",
        "s.usage_rows, clock_timestamp()\n",
        f"{_BOTH_WAYS} -k left_out",
    ),
    Mutant(
        "left out: no reason for a walk",
        f"{_SRC}/hourly/backfill.py",
        " or self.left_out_before is not None)",
        ")",
        f"{_COMMAND} -k left_out",
    ),
    Mutant(
        "left out: no reason for a walk, to a script",
        f"{_SRC}/hourly/backfill.sql",
        "ELSIF v_phase = 'history' AND v_left_out THEN",
        "ELSIF v_phase = 'history' AND v_left_out AND false THEN",
        f"{_BOTH_WAYS} -k left_out",
    ),
    Mutant(
        "coverage: a bucket that is set aside hides those of other projects",
        f"{_SRC}/reports/covered_days.sql",
        "\n            AND s.project_id IS NOT DISTINCT FROM e.project_id",
        "",
        "tests/reports/test_status.py -k another_project",
    ),
    Mutant(
        "ticks: of several jobs the oldest is named",
        f"{_SRC}/hourly/ticker.sql",
        "ORDER BY (jobname = CAST(:job AS text)) IS TRUE DESC, jobid LIMIT 1",
        "ORDER BY jobid LIMIT 1",
        "tests/hourly/test_ticker.py -k pg_cron",
    ),
    Mutant(
        "ticks: somebody is missed while a daily rollup is left",
        f"{_SRC}/hourly/ticker.sql",
        "to_regclass('public.task_usage_dashboard_daily')) = 0",
        "to_regclass('public.task_usage_dashboard_daily')) < 2",
        "tests/hourly/test_ticker.py -k one_daily",
    ),
    Mutant(
        "proof: a short history is compared in parts, too",
        f"{_SRC}/hourly/proof.sql",
        "\n    WHERE cardinality(b.hours) > CAST(:ranges AS int)",
        "",
        "tests/hourly/test_proof.py",
        equivalent="bounds that coincide are one: only how even the parts are could differ",
    ),
    Mutant(
        "place: where no upgrade can go on one can",
        f"{_SRC}/reports/place.py",
        "place is None or place.refused",
        "place is None",
        f"{_PREFLIGHT} tests/reports/test_status.py",
    ),
    Mutant(
        "place: whatever stands at 101 is stuck",
        f"{_SRC}/reports/place.py",
        'standing.start == "101" and standing.has_pipeline',
        'standing.start == "101"',
        f"{_PREFLIGHT} tests/reports/test_status.py",
    ),
    Mutant(
        "place: at 102 the next step is that of before",
        f"{_SRC}/reports/place.py",
        'if standing.start < "102":',
        'if standing.start <= "102":',
        f"{_PREFLIGHT} tests/reports/test_status.py",
    ),
    Mutant(
        "without a rollup the hint is that of every place",
        f"{_SRC}/reports/without_rollup.py",
        "place.next_step or error.refusal.hint",
        "error.refusal.hint",
        f"{_COMMAND} -k names_the_places",
    ),
    Mutant(
        "a pause between two attempts that overran ends in a traceback",
        f"{_SRC}/session/attempt.py",
        "max(0.0, seconds)",
        "seconds",
        "tests/session/test_opening.py -k time_that_is_over",
    ),
    Mutant(
        "a probe waits for minutes where its variable is empty",
        f"{_SRC}/commands/status.py",
        'not os.environ.get("DATABASE_STARTUP_TIMEOUT", "").strip()',
        '"DATABASE_STARTUP_TIMEOUT" not in os.environ',
        f"{_PROBES} -k does_not_wait",
    ),
    Mutant(
        "gaps that nobody closes are closed with nothing",
        f"{_SRC}/queries.py",
        "            return gap[0]\n",
        '            return ""\n',
        "tests/runner/test_script.py",
    ),
]

MUTANTS = [*_SESSION, *_HOURLY, *_RUNNER, *_REPORTS, *_COMMANDS, *_DOOR, *_LATE]
