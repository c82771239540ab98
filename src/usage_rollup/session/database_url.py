"""Which database to migrate: the environment, read the way the product and libpq read it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote, unquote_to_bytes

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from ..errors import ConfigurationError

log = logging.getLogger(__name__)

# In order: a direct connection beside a pooler, then the product's own variable.
URL_VARIABLES = ("MIGRATION_DATABASE_URL", "DATABASE_URL")

# What was typed as --database-url wins over both.
typed: str | None = None

# With one of these libpq knows which database is meant, without a URL.
LIBPQ_VARIABLES = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")

# Parameters of the product's Go driver and of its pool, which libpq rejects.
GO_PARAMETERS = frozenset(
    {
        "pool_max_conns",
        "pool_min_conns",
        "pool_min_idle_conns",
        "pool_max_conn_lifetime",
        "pool_max_conn_lifetime_jitter",
        "pool_max_conn_idle_time",
        "pool_health_check_period",
        "pool_ping_timeout",
        "default_query_exec_mode",
        "statement_cache_capacity",
        "description_cache_capacity",
        "min_read_buffer_size",
    }
)

# What libpq knows; every other name is to the product's driver a setting of the session.
LIBPQ_PARAMETERS = frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())

# Settings that may stand in a key=value string. Of a password with a blank in it, or one that stands there
# alone and ends with =, a piece looks like a name as well.
SETTINGS = frozenset(
    {
        "search_path",
        "timezone",
        "datestyle",
        "intervalstyle",
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "transaction_timeout",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "row_security",
        "role",
        "work_mem",
        "jit",
    }
)

SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")

# What may be shown of a URL that is none of ours: what else stands before a colon may be a password.
_OTHER_SCHEMES = re.compile(
    r"mysql|mariadb|sqlite|https?|mongodb|redis|mssql|sqlserver|oracle|cockroachdb|postgis"
    r"|postgres(ql)?\+(asyncpg|psycopg2|psycopg|pg8000|psycopg_async)"
)

# Not urlsplit: it rejects, and quotes, passwords that libpq and the product accept.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)

# name=value of a key=value string, as libpq splits it.
_PAIR = re.compile(r"\s*(?P<name>[^\s=]+)\s*=\s*(?P<value>'(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)\s*", re.DOTALL)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")

_SEARCH_PATH = re.compile(r"(?:-c\s*|--)search[_-]path\s*=\s*((?:\\.|[^\s\\])*)", re.IGNORECASE)

_ENCODE = "percent-encode special characters in user and password (@ is %40, / is %2F, % itself %25)"
_EXAMPLE = "postgres://user:password@host:5432/database"


def conninfo_from_environment(environ: Mapping[str, str] = os.environ) -> str:
    """Return the libpq connection string of the database to migrate.

    What was typed wins, then MIGRATION_DATABASE_URL, then DATABASE_URL; all may be URLs (postgres://, postgresql://,
    postgresql+psycopg://) or libpq key=value strings. Without either, libpq's PG* variables and service
    files decide. What libpq does not know, the parameters of the Go driver and settings of the session, is
    dropped with one warning each. Opens no connection. Raises ConfigurationError, without anything that may
    be a password, when the environment names no database, what it says cannot be parsed, or a search_path
    leads to another schema than public.
    """
    if typed is not None:
        if not typed.strip():
            raise ConfigurationError("no database given: --database-url is empty", hint=f"use {_EXAMPLE}")
        return _conninfo("--database-url", typed.strip())
    for variable in URL_VARIABLES:
        if value := environ.get(variable, "").strip():
            return _conninfo(variable, value)
    if any(environ.get(variable) for variable in LIBPQ_VARIABLES):
        return ""
    raise ConfigurationError(
        "no database given: DATABASE_URL is not set",
        hint=f"export DATABASE_URL='{_EXAMPLE}?sslmode=disable'"
        " (or MIGRATION_DATABASE_URL, or libpq's PGHOST, PGDATABASE, PGSERVICE)",
    )


def _conninfo(variable: str, value: str) -> str:
    _require_legible(variable, value)
    url = _URL.match(value)
    conninfo = _from_url(variable, url) if url else _from_pairs(variable, value)
    try:
        found = conninfo_to_dict(conninfo)
    except (psycopg.Error, ValueError):
        # libpq quotes the whole string, password included, in its message.
        raise _unreadable(variable) from None
    for path in _SEARCH_PATH.findall(str(found.get("options", ""))):
        _require_public(variable, path)
    return conninfo


def _require_legible(variable: str, value: str) -> None:
    """Refuse, in words of its own, what people paste and what shells and files leave around a URL."""
    if value[0] in "'\"":
        raise ConfigurationError(
            f"{variable} begins with a quote, which is then a part of it",
            hint="leave the quotes out: docker --env-file and systemd's Environment keep them",
        )
    if re.match(rf"(export\s+)?({'|'.join(URL_VARIABLES)})\s*=", value):
        raise ConfigurationError(
            f"{variable} holds an assignment instead of a URL", hint=f"leave its name out: {_EXAMPLE}"
        )
    if value[:5].lower() == "jdbc:":
        raise ConfigurationError(f"{variable} is a JDBC URL", hint=f"use {_EXAMPLE}")
    if "\0" in value:
        raise _unreadable(variable, "there is a NUL in it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _unreadable(variable, "it holds bytes that are not UTF-8")


def _from_url(variable: str, url: re.Match[str]) -> str:
    scheme, authority, path, query = url.group("scheme", "authority", "path", "query")
    if scheme not in SCHEMES:
        known = scheme.lower()
        if known in SCHEMES:
            raise ConfigurationError(
                f"{variable} is not a PostgreSQL URL: its scheme is in capitals", hint=f"use {_EXAMPLE}"
            )
        shown = repr(known) if _OTHER_SCHEMES.fullmatch(known) else "not postgres"
        raise ConfigurationError(
            f"{variable} is not a PostgreSQL URL: its scheme is {shown}", hint=f"use {_EXAMPLE}"
        )
    if re.search(r"%(?![0-9A-Fa-f]{2})", url.string):
        raise _unreadable(variable, "there is a % in it that begins no escape")
    try:
        decoded = unquote_to_bytes(url.string).decode()
    except UnicodeDecodeError:
        raise _unreadable(variable, "its percent escapes are not UTF-8") from None
    if "\0" in decoded:
        raise _unreadable(variable, "there is a NUL in it, %00")
    # The product takes the last @ for the end of the password, libpq the first: it would take the
    # rest for a host, and name it in its errors. With a / or ? in it, it would become a port.
    user, at, host = authority.rpartition("@")
    if "@" in path or "@" in (query or ""):
        raise _unreadable(variable, "there is an @ behind the host")
    parameters = [(*p.partition("=")[::2], p) for p in (query or "").split("&") if p]
    kept = _kept(variable, ((unquote(name), unquote(value), text) for name, value, text in parameters))
    query = "&".join(re.sub("^database=", "dbname=", text) for text in kept)
    return f"postgresql://{user.replace('@', '%40')}{at}{host}{path}" + (f"?{query}" if query else "")


def _from_pairs(variable: str, value: str) -> str:
    pairs = list(_PAIR.finditer(value))
    if "".join(pair[0] for pair in pairs) != value:
        raise _unreadable(variable)
    names = {pair["name"].lower() for pair in pairs}
    if names - LIBPQ_PARAMETERS - GO_PARAMETERS - SETTINGS - {"database"}:
        raise _unreadable(variable, "a name in it is neither libpq's nor a setting's")
    found = ((pair["name"], re.sub(r"\\(.)", r"\1", pair["value"].strip("'")), pair[0]) for pair in pairs)
    kept = _kept(variable, found)
    # As it is, where there is nothing to leave out.
    return "".join(re.sub(r"^\s*database\s*=", " dbname=", text) for text in kept).strip()


def _kept(variable: str, parameters: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the text of those `parameters` (name, value, text) that libpq knows, as they are written.

    The others are left out, with one warning for those of the Go driver and one for settings.
    """
    parameters = list(parameters)
    names = {name for name, _, _ in parameters} - LIBPQ_PARAMETERS - {"database"}
    if not all(_NAME.fullmatch(name) for name in names):
        raise _unreadable(variable, "a parameter in it has no name")
    for name, value, _ in parameters:
        if name.lower() == "search_path":
            _require_public(variable, value)
    if dropped := names & GO_PARAMETERS:
        log.warning("%s: ignoring parameters of the Go pool: %s", variable, ", ".join(sorted(dropped)))
    if settings := names - GO_PARAMETERS:
        log.warning("%s: ignoring settings of the session: %s", variable, ", ".join(sorted(settings)))
    return (text for name, _, text in parameters if name not in names)


def _require_public(variable: str, search_path: str) -> None:
    """Refuse a search_path that leads the product to tables in another schema."""
    schemas = [name.strip(" \"'\\").lower() for name in search_path.split(",")]
    if [name for name in schemas if name not in {"$user", "pg_catalog"}][:1] != ["public"]:
        raise ConfigurationError(
            f"{variable} sets a search_path that does not begin with public",
            hint="the product keeps its tables in schema public; nothing else is supported",
        )


def _unreadable(variable: str, because: str | None = None) -> ConfigurationError:
    return ConfigurationError(
        f"{variable} cannot be parsed as a PostgreSQL connection string"
        + (f": {because}" if because else ""),
        hint=_ENCODE,
    )
