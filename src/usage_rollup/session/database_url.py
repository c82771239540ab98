"""Which database to migrate: the environment, read the way the product and libpq read it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping

from psycopg import ProgrammingError
from psycopg.conninfo import make_conninfo

from ..errors import ConfigurationError

log = logging.getLogger(__name__)

# In order: a direct connection beside a pooler, then the product's own variable.
URL_VARIABLES = ("MIGRATION_DATABASE_URL", "DATABASE_URL")

# With one of these libpq knows which database is meant, without a URL.
LIBPQ_VARIABLES = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")

# Parameters of the product's Go pool, which libpq rejects.
GO_POOL_PARAMETERS = frozenset(
    {
        "pool_max_conns",
        "pool_min_conns",
        "pool_max_conn_lifetime",
        "pool_max_conn_lifetime_jitter",
        "pool_max_conn_idle_time",
        "pool_health_check_period",
    }
)


# Not urlsplit: it rejects, and quotes, passwords that libpq and the product accept.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]*)(?P<path>[^?]*)(?:\?(?P<query>.*))?",
    re.DOTALL,
)


def conninfo_from_environment(environ: Mapping[str, str] = os.environ) -> str:
    """Return the libpq connection string of the database to migrate.

    MIGRATION_DATABASE_URL wins over DATABASE_URL; both may be URLs (postgres://, postgresql://,
    postgresql+psycopg://) or libpq key=value strings. Without either, libpq's PG* variables and
    service files decide. The Go pool's parameters are dropped with one warning. Opens no
    connection. Raises ConfigurationError, without the password, when the environment names no
    database or libpq cannot parse what it says.
    """
    for variable in URL_VARIABLES:
        if value := environ.get(variable, "").strip():
            return _conninfo(variable, value)
    if any(environ.get(variable) for variable in LIBPQ_VARIABLES):
        return ""
    raise ConfigurationError(
        "no database given: DATABASE_URL is not set",
        hint="export DATABASE_URL='postgres://user:password@host:5432/database?sslmode=disable'"
        " (or MIGRATION_DATABASE_URL, or libpq's PGHOST, PGDATABASE, PGSERVICE)",
    )


def _conninfo(variable: str, value: str) -> str:
    if url := _URL.match(value):
        scheme, authority, path, query = url.group("scheme", "authority", "path", "query")
        if scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
            raise ConfigurationError(
                f"{variable} is not a PostgreSQL URL: its scheme is {scheme!r}",
                hint="use postgres://user:password@host:5432/database",
            )
        # The product takes the last @ for the end of the password, libpq the first: it would take the
        # rest for a host, and name it in its errors. With a / or ? in it, it would become a port.
        user, at, host = authority.rpartition("@")
        if "@" in path or (not path and "@" in (query or "")):
            raise _unreadable(variable)
        value = f"postgresql://{user.replace('@', '%40')}{at}{host}{path}"
        if query := _without_pool_parameters(variable, query or ""):
            value += f"?{query}"
    try:
        return make_conninfo(value)
    except ProgrammingError:
        # libpq quotes the whole string, password included, in its message.
        raise _unreadable(variable) from None


def _unreadable(variable: str) -> ConfigurationError:
    return ConfigurationError(
        f"{variable} cannot be parsed as a PostgreSQL connection string",
        hint="percent-encode special characters in user and password (@ is %40, / is %2F)",
    )


def _without_pool_parameters(variable: str, query: str) -> str:
    """Drop the Go pool's parameters; the others stay as they are written (libpq's + is no space)."""
    parameters = query.split("&")
    dropped = {name for name, _, _ in (p.partition("=") for p in parameters)} & GO_POOL_PARAMETERS
    if dropped:
        log.warning("%s: ignoring parameters of the Go pool: %s", variable, ", ".join(sorted(dropped)))
    return "&".join(p for p in parameters if p.partition("=")[0] not in dropped)
