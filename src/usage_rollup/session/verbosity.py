"""How much libpq tells of an error, which psycopg does not let one choose."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

from psycopg import pq
from psycopg.pq.misc import find_libpq_full_path

DEFAULT, VERBOSE = 1, 2  # PGVerbosity, libpq-fe.h


def choose(pgconn: pq.abc.PGconn, verbosity: int) -> bool:
    """Choose the verbosity of a session's errors; tell whether that could be done."""
    function = _pq_set_error_verbosity()
    if function is None:
        return False
    # Meant for this, and in every implementation; the protocol leaves it out.
    function(pgconn.pgconn_ptr, verbosity)  # type: ignore[attr-defined]
    return True


@cache
def _pq_set_error_verbosity() -> Any:
    """Return PQsetErrorVerbosity of the libpq that psycopg itself has loaded; None where there is none."""
    module = sys.modules[pq.PGconn.__module__]
    # A symbol is looked for in what a library has loaded, too: for that of a wheel, libpq.
    path = find_libpq_full_path() if pq.__impl__ == "python" else module.__file__
    if path is None:
        return None
    try:
        function = ctypes.CDLL(path).PQsetErrorVerbosity
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return function
