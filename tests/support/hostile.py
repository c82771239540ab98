"""What else may have been done to a database before it meets the upgrade: the catalogue of hostile changes.

hostile.sql holds those that are SQL of their own; here are the families: one table after the other, one
setting after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.support.legacy import LEGACY_TABLES
from usage_rollup.queries import beside


@dataclass(frozen=True)
class Change:
    """One hostile change: a superuser's SQL, what must be `on` a start for it, the client's environment.

    It `raises` a text where nobody can foresee whether its code will stop the upgrade.
    """

    name: str
    sql: str = ""
    on: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)
    raises: str = ""

    def __repr__(self) -> str:
        return repr(self.name)


PRODUCT_TABLES = (
    "user",
    "workspace",
    "agent_runtime",
    "agent",
    "project",
    "issue",
    "agent_task_queue",
    "task_usage",
)

# From a table to what must be on a start that has it.
TABLES: dict[str, str] = {
    **dict.fromkeys(PRODUCT_TABLES, ""),
    "schema_migrations": "",
    "alembic_version": "version",
    **dict.fromkeys(LEGACY_TABLES, "legacy"),
    "task_usage_hourly": "hourly",
    "task_usage_hourly_dirty": "hourly",
    "task_usage_hourly_rollup_state": "hourly",
    "task_usage_hourly_invalidation": "ours",
    "task_usage_hourly_backfill": "ours",
    "task_usage_hourly_set_aside": "ours",
}

FUNCTIONS = {
    "rollup_task_usage_daily_window(timestamptz,timestamptz)": "legacy",
    "enqueue_task_usage_daily_dirty_for_tu()": "legacy",
    "enqueue_task_usage_dashboard_dirty_for_issue_project()": "legacy",
    "task_usage_dashboard_rollup_lag_seconds()": "legacy",
    "task_usage_hour_bucket(timestamptz)": "piped",
    "rollup_task_usage_hourly_window(timestamptz,timestamptz)": "piped",
    "enqueue_task_usage_hourly_dirty_for_atq()": "piped",
    "task_usage_hourly_differences(timestamptz,timestamptz,boolean)": "ours",
    "rollup_task_usage_hourly_touch()": "ours",
}

# Read by the upgrade, or written.
POLICED = (
    *(
        "task_usage",
        "agent",
        "issue",
        "agent_task_queue",
        "agent_runtime",
        "schema_migrations",
        "alembic_version",
    ),
    *(
        "task_usage_daily",
        "task_usage_dashboard_daily",
        "task_usage_hourly",
        "task_usage_hourly_rollup_state",
    ),
    "task_usage_hourly_invalidation",
)

POLICIES = {
    "enabled": "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY",
    "enabled_with_a_policy": "CREATE POLICY half ON {0} USING (random() < 0.5);"
    " ALTER TABLE {0} ENABLE ROW LEVEL SECURITY",
    "forced": "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "forced_with_a_policy": "CREATE POLICY whole ON {0} USING (true) WITH CHECK (true);"
    " ALTER TABLE {0} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
}

# By name, as ALTER ROLE and ALTER DATABASE take them. What a name has twice is told apart by a number.
SETTINGS = (
    ("search_path", "''"),
    ("search_path", "app, public"),
    ("search_path", "public, pg_catalog"),
    ("row_security", "off"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_deferrable", "on"),
    ("statement_timeout", "'50ms'"),
    ("lock_timeout", "'1ms'"),
    ("idle_in_transaction_session_timeout", "'100ms'"),
    ("idle_session_timeout", "'100ms'"),
    ("TimeZone", "'Asia/Kathmandu'"),
    ("DateStyle", "'SQL, DMY'"),
    ("IntervalStyle", "sql_standard"),
    ("client_encoding", "'LATIN1'"),
    ("client_encoding", "'SQL_ASCII'"),
    ("session_replication_role", "replica"),
    ("default_tablespace", "'nowhere'"),
    ("default_table_access_method", "'nowhere'"),
    ("check_function_bodies", "off"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("bytea_output", "'escape'"),
    ("extra_float_digits", "-15"),
    ("quote_all_identifiers", "on"),
    ("client_min_messages", "error"),
    ("xmlbinary", "hex"),
    ("plpgsql.variable_conflict", "use_column"),
    ("plpgsql.extra_errors", "'all'"),
    ("local_preload_libraries", "'nowhere'"),
    ("enable_indexscan", "off"),
    ("temp_tablespaces", "'nowhere'"),
    ("role", ":owner"),
    ("usage_rollup.keep_legacy", "'true'"),
    ("usage_rollup.proof", "'infinity'"),
    ("usage_rollup.standing", "'{}'"),
)


def _one_table_or_function_of_a_stranger() -> Iterator[Change]:
    for table, on in TABLES.items():
        yield _change(f"{table}_belongs_to_a_stranger", f'ALTER TABLE "{table}" OWNER TO :stranger', on)
    for function, on in FUNCTIONS.items():
        name = function.split("(")[0]
        yield _change(f"{name}_belongs_to_a_stranger", f"ALTER FUNCTION {function} OWNER TO :stranger", on)


def _ledger_rights() -> Iterator[Change]:
    for right in ("SELECT", "INSERT", "DELETE", "UPDATE"):
        yield _change(
            f"ledger_without_{right.lower()}", f"REVOKE {right} ON schema_migrations FROM :owner, :login"
        )


def _row_security() -> Iterator[Change]:
    for table in POLICED:
        for name, sql in POLICIES.items():
            yield _change(f"row_security_of_{table}_is_{name}", sql.format(table), TABLES[table])


def _settings() -> Iterator[Change]:
    seen: dict[str, int] = {}
    for name, value in SETTINGS:
        seen[name] = seen.get(name, 0) + 1
        number = f"_{seen[name]}" if seen[name] > 1 else ""
        plain = re.sub(r"\W", "_", name).lower() + number
        yield _change(f"login_sets_{plain}", f"ALTER ROLE :login SET {name} = {value}")
        if name != "role":
            yield _change(f"database_sets_{plain}", f"ALTER DATABASE :database SET {name} = {value}")


def _environment() -> Iterator[Change]:
    for name, value in (
        ("PGCLIENTENCODING", "LATIN1"),
        ("PGOPTIONS", "-c row_security=on -c statement_timeout=50"),
        ("PGTZ", "Asia/Kathmandu"),
        ("KEEP_LEGACY", "true"),
        ("KEEP_LEGACY", "false"),
    ):
        yield Change(f"client_sets_{name}_{value.split()[0]}".lower(), environment={name: value})


def _change(name: str, sql: str, on: str = "") -> Change:
    return Change(name, sql, frozenset(on.split()))


def _of_their_own() -> Iterator[Change]:
    for name, text in beside(__file__).items():
        on = re.match(r"-- on: (.+)\n", text)
        raises = re.search(r"^-- raises: (.+)$", text, re.M)
        yield Change(name, text, frozenset(on[1].split() if on else ()), raises=raises[1] if raises else "")


CHANGES = {
    change.name: change
    for family in (
        _of_their_own,
        _one_table_or_function_of_a_stranger,
        _ledger_rights,
        _row_security,
        _settings,
        _environment,
    )
    for change in family()
}
