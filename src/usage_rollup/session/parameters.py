"""What libpq is told: the parameters of a URL with ours beside them, checked before a server is asked."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from typing import Any

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import ConfigurationError
from . import pinned

# One attempt, when nothing else is said: a host that drops packets would take minutes.
CONNECT_TIMEOUT_S = 10

DEFAULT_PORT = 5432

# What libpq reads when it has a socket.
_NUMBERS = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)

# What gives a parameter that the URL leaves out.
_VARIABLES = {
    option.keyword.decode(): option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar
}

_CHECK = "check DATABASE_URL"

# An address nobody has: libpq fails there before a packet is sent, and only after it has read its options.
_NOWHERE = "255.255.255.255"


def read(conninfo: str) -> dict[str, Any]:
    """Return libpq's parameters, and ours for what neither the URL nor the environment says.

    Raises ConfigurationError for what libpq cannot use.
    """
    given = conninfo_to_dict(conninfo)
    if not os.environ.get("PGCONNECT_TIMEOUT"):
        given = {"connect_timeout": CONNECT_TIMEOUT_S, **given}
    # With the start-up packet, so that the first messages can be read, too; nothing set elsewhere beats it.
    params = {**pinned.CLIENT_TCP, **given, "client_encoding": "UTF8"}
    _require_valid(params)
    return params


def options(params: dict[str, Any]) -> str:
    """Return the settings that the URL or the environment sends along with the login."""
    return _given(params, "options")


def where(params: dict[str, Any]) -> str:
    """Return hosts and ports as people read them."""
    hosts = (_given(params, "host") or _given(params, "hostaddr")).split(",")
    ports = _given(params, "port").split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    named = zip(hosts, ports, strict=True)
    return ", ".join(f"{host or 'the default host'} port {port or DEFAULT_PORT}" for host, port in named)


def _given(params: dict[str, Any], name: str) -> str:
    """Return a parameter of libpq, also when it comes from the environment; "" where nothing gives it."""
    return str(params.get(name) or os.environ.get(_VARIABLES.get(name, "")) or "")


def _require_valid(params: dict[str, Any]) -> None:
    """Refuse what no server can have and libpq looks at too late, or only while it talks to one."""
    hosts, addresses, ports = (_given(params, name).split(",") for name in ("host", "hostaddr", "port"))
    if hosts != [""] and addresses != [""] and len(hosts) != len(addresses):
        raise ConfigurationError("there are not as many addresses as hosts", hint=_CHECK)
    if len(ports) not in {1, max(len(hosts), len(addresses))}:
        raise ConfigurationError("there are not as many ports as hosts", hint=_CHECK)
    for port in filter(None, ports):
        # Not quoted, unless a number: of a URL that lacks its @ it may be the password.
        if not re.fullmatch("[0-9]{1,9}", port):
            raise ConfigurationError("the port is not a number", hint="use one from 1 to 65535")
        if not 1 <= int(port) <= 65535:
            raise ConfigurationError(f"there is no port {port}", hint="use one from 1 to 65535")
    if wrong := [host for host in hosts if not _is_host(host)]:
        raise ConfigurationError(f"there cannot be a host named {wrong[0]!r}", hint=_CHECK)
    if wrong := [address for address in addresses if address and not _is_address(address)]:
        raise ConfigurationError(f"this is not an address: {wrong[0]!r}", hint=_CHECK)
    for name in _NUMBERS:
        if not re.fullmatch("-?[0-9]{0,9}", value := _given(params, name).strip()):
            raise ConfigurationError(f"{name} is not a number: {value!r}", hint=_CHECK)

    # libpq reads the rest, and a service's file, before it comes to an address.
    others = {name: value for name, value in params.items() if name not in {"host", "hostaddr", "port"}}
    probe = pq.PGconn.connect_start(make_conninfo(**others, host="", hostaddr=_NOWHERE, port=1).encode())
    if not probe.hostaddr:
        raise ConfigurationError(" ".join(probe.error_message.decode(errors="replace").split()), hint=_CHECK)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_host(name: str) -> bool:
    if name.startswith(("/", "@")):
        return True
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return not re.search(r"""[\s/\\?#@"'<>()\[\]{}|^`;=&]""", name)
