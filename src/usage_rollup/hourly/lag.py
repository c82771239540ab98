"""Say how far the data of the hourly rollup lags."""

from __future__ import annotations

import sqlalchemy as sa

from ..queries import beside
from .pipeline import Reading

_SQL = beside(__file__)


def seconds(session: sa.Connection, reading: Reading) -> float | None:
    """Return by how many seconds the watermark is behind the newest usage, 0 where it is not.

    Where it has never moved that is how old the oldest usage is; None where it lies in the future. Reads in
    the caller's transaction, by the functions of 102: the product's function measures the last run.
    """
    lag_s: float | None = session.scalar(reading.sql(_SQL["lag"]))
    return lag_s
