"""Read and write text of a SQL_ASCII database, whose bytes need not be UTF-8, and show it escaped.

In memory a byte that is no UTF-8 is a lone surrogate, so it goes back to the server as it was; on its way
to a person or a log it is `\\xff`.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.types.string import StrDumperUnknown

_TEXT_TYPES = ("text", "varchar", "bpchar", "name", '"char"')


class _Loader(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


class _Dumper(StrDumperUnknown):
    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj) if obj.isascii() else obj.encode("utf-8", "surrogateescape")


def keep(connection: psycopg.Connection[Any]) -> None:
    """Have the session pass bytes through where its server has no encoding; elsewhere do nothing.

    Such a server converts nothing, and with any client encoding but its own it refuses to send what is not
    valid in that. Outside a transaction.
    """
    if connection.info.parameter_status("server_encoding") != "SQL_ASCII":
        return
    connection.execute("SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', false)")
    for name in _TEXT_TYPES:
        connection.adapters.register_loader(name, _Loader)
    # Every other type, as it is written.
    connection.adapters.register_loader(0, _Loader)
    connection.adapters.register_dumper(str, _Dumper)
