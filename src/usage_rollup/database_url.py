"""Which database to migrate: the environment, read the way the product and libpq read it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from psycopg import ProgrammingError
from psycopg.conninfo import make_conninfo

from .errors import ConfigurationError

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
    if "://" in value:
        scheme, rest = value.split("://", 1)
        if scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
            raise ConfigurationError(
                f"{variable} is not a PostgreSQL URL: its scheme is {scheme!r}",
                hint="use postgres://user:password@host:5432/database",
            )
        value = _without_pool_parameters(variable, f"postgresql://{rest}")
    try:
        return make_conninfo(value)
    except ProgrammingError:
        # libpq quotes the whole string, password included, in its message.
        raise ConfigurationError(
            f"{variable} cannot be parsed as a PostgreSQL connection string",
            hint="percent-encode special characters in user and password (@ is %40, / is %2F)",
        ) from None


def _without_pool_parameters(variable: str, url: str) -> str:
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    dropped = sorted({name for name, _ in query if name in GO_POOL_PARAMETERS})
    if not dropped:
        return url
    log.warning("%s: ignoring parameters of the Go pool: %s", variable, ", ".join(dropped))
    kept = [(name, value) for name, value in query if name not in GO_POOL_PARAMETERS]
    return urlunsplit(parts._replace(query=urlencode(kept)))
