"""Settings that a role, a database or a client may bring along, and that must not matter."""

from __future__ import annotations

HOSTILE_SETTINGS = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "statement_timeout": "1s",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1s",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "search_path": "",
    "standard_conforming_strings": "off",
    "client_encoding": "LATIN1",
}
