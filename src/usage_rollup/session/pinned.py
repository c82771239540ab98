"""What a session depends on, and how it is set whatever a role, a database or a file has set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .. import queries

APPLICATION_NAME = "usage-rollup"

# Whatever the role, the database or the service file set: statements here mean the same everywhere.
# Deadlines are set by the phases that need one. In the order in which they are pinned: the first keep the
# session, and its statements from meaning something else, until the others are.
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
    # A slice's hash tables fit; a server of 1 GB can spare it for one session.
    "work_mem": "64MB",
    # What a run's options and its hook leave for SQL to read, and nobody else.
    "usage_rollup.keep_legacy": "",
    "usage_rollup.sleep_between_slices": "",
    "usage_rollup.lock_timeout": "",
    "usage_rollup.version_table": "",
    "usage_rollup.proof": "",
    "usage_rollup.legacy_excess": "",
}

# Each by a statement of its own: all the others are one message, which a short timeout would cut short.
_PINNED_FIRST = 5


def statements(custom: Mapping[str, str]) -> Iterator[str]:
    """Yield what pins a session: SETTINGS, with `custom` ones over them.

    To be run one by one, outside a transaction.
    """
    pins = [statement(name, value) for name, value in (SETTINGS | dict(custom)).items()]
    yield from pins[:_PINNED_FIRST]
    yield "; ".join(pins[_PINNED_FIRST:])


def statement(name: str, value: str) -> str:
    """Return a statement that sets `name`, where the server knows it, whatever there is in any schema.

    Nothing in it is looked up by search_path.
    """
    name, value = queries.literal(name), queries.literal(value)
    # A custom name, with a dot in it, no server knows before.
    known = "true" if "." in name else f"pg_catalog.current_setting({name}, true) IS NOT NULL"
    return f"SELECT pg_catalog.set_config({name}, {value}, false) WHERE {known}"
