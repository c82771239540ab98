"""What a session depends on, and how it is set whatever a role, a database or a file has set."""

from __future__ import annotations

from collections.abc import Mapping

from .. import queries

APPLICATION_NAME = "usage-rollup"

# What would end a session, or its statements, that has not come to set anything yet, and since which version.
# Lifted first, each by a statement of its own that looks nothing up: they may be as short as 1 ms.
DEADLINES = {"statement_timeout": 15, "idle_session_timeout": 15, "transaction_timeout": 17}

# The client's half of noticing a dead peer, within 45 s: probes of a connection on which nothing is sent, and
# a bound for what was sent and is not acknowledged (tcp(7)). Parameters of libpq.
CLIENT_TCP = {
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "5",
    "tcp_user_timeout": "45000",
}

# The server's half. Without effect on a Unix socket.
SERVER_TCP = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "5",
    "tcp_user_timeout": "45000",
}

# How often a server that is at work looks whether its client is still there; else it finds out at the end. An
# error, SQLSTATE 22023, where its platform cannot tell.
LOOK_FOR_CLIENT = {"client_connection_check_interval": "1s"}

# Whatever the role, the database or the service file set: statements here mean the same everywhere.
# Deadlines are set by the phases that need one.
SETTINGS = {
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    # Not public: who may create there could put a better-matching function or operator in our way.
    "search_path": "pg_catalog, pg_temp",
    # A policy is an error, and never hides rows.
    "row_security": "off",
    "application_name": APPLICATION_NAME,
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "standard_conforming_strings": "on",
    # What `alembic check` reads back would differ in every quoted name.
    "quote_all_identifiers": "off",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "jit": "off",
    # Its hash tables live in /dev/shm, of which a container has 64 MB.
    "enable_parallel_hash": "off",
    # A slice's hash tables fit. A session may take it some times over, and `jobs=auto` has four at most.
    "work_mem": "64MB",
    # What a run's options and its hook leave for SQL to read, and nobody else.
    "usage_rollup.keep_legacy": "",
    "usage_rollup.sleep_between_slices": "",
    "usage_rollup.lock_timeout": "",
    "usage_rollup.version_table": "",
    "usage_rollup.proof": "",
    "usage_rollup.legacy_excess": "",
}


def deadlines(version: int) -> list[str]:
    """Return the names of DEADLINES that a server of this major version knows."""
    return [name for name, since in DEADLINES.items() if version >= since]


def statements(version: int, custom: Mapping[str, str], options: str = "") -> list[str]:
    """Return what pins a session: deadlines, then SETTINGS, with `custom` ones over them.

    What `options` of the URL say of SERVER_TCP stays as it is. To be run one by one, outside a transaction.
    """
    tcp = {name: value for name, value in SERVER_TCP.items() if name not in options}
    pins = SETTINGS | tcp | dict(custom)
    return [
        *(f"SET {name} = 0" for name in deadlines(version)),
        "; ".join(statement(name, value) for name, value in pins.items()),
    ]


def look_for_client(options: str = "") -> list[str]:
    """Return the statement that pins LOOK_FOR_CLIENT, which may fail; none where `options` of the URL do."""
    return [statement(name, value) for name, value in LOOK_FOR_CLIENT.items() if name not in options]


def statement(name: str, value: str) -> str:
    """Return a statement that sets `name`, where the server knows it, whatever there is in any schema.

    Nothing in it is looked up by search_path.
    """
    name, value = queries.literal(name), queries.literal(value)
    # A custom name, with a dot in it, no server knows before.
    known = "true" if "." in name else f"pg_catalog.current_setting({name}, true) IS NOT NULL"
    return f"SELECT pg_catalog.set_config({name}, {value}, false) WHERE {known}"
