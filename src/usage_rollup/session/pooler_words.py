"""What PgBouncer means by SQLSTATE 08P01 in answer to a login: wait, or give up.

It has that one code for everything: a wrong password, no room, a server behind it that starts. So its words
have to be read, here and nowhere else. Its own are never translated; a server at the login stage has this
code only for faults of the protocol. Until 1.18 it passes on a server's words under this code as well.

Listed is what passes. Whatever is not is final: a rotated password has to be told, and it would not be if
every release's way to say so had to be known. The price: where a server behind such an old pooler speaks
another language, its "starting up" ends a run with status 1, and the next run finds it up.
"""

from __future__ import annotations

import re

CODE = "08P01"

_PASSING = re.compile(
    CODE
    + r""":\ (?:server\ login\ has\ been\ failing,\ cached\ error:\ *)?(?:
    # The pooler has no room, or no server process yet.
    no\ more\ connections\ allowed | client\ connections\ exceeded | query_wait_timeout | client_login_timeout
    | suspend_timeout | evicted | no\ memory | out\ of\ memory | bouncer\ resources | too\ many\ servers
    # It cannot reach the server, or has lost it.
    | server\ conn | server\ login\ has\ been\ failing,\ try\ again | \(server_login_retry\)
    | connect\ (?:failed|timeout) | (?:pgbouncer\ )?cannot\ connect | server\ DNS\ lookup\ failed
    # It is being stopped or changed.
    | (?:the\ )?(?:pooler|server|database|pgbouncer)\ (?:is\ )?(?:being\ )?(?:shut\ ?down|shutting\ down)
    | admin\ forced | database\ configuration\ changed | connect\ string\ changed
    # The server's own, of classes 53 and 57.
    | the\ database\ system\ is | terminating\ connection | sorry,\ too\ many\ clients
    | too\ many\ connections | remaining\ connection\ slots | could\ not\ fork
    )""",
    re.VERBOSE | re.IGNORECASE,
)


def passes(report: str) -> bool:
    """Tell whether what libpq reports, with its SQLSTATE, may pass by itself."""
    return bool(_PASSING.search(report))


def refused(report: str) -> str:
    """Return what was refused by a report that does not pass."""
    if "unsupported startup parameter" in report:
        return "a pooler refused the settings sent with the login (options)"
    return "the login, or the database, was refused by a pooler or behind it"
