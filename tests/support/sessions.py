"""Look at a session of the runner from the side of its driver."""

from __future__ import annotations

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus


def is_idle(session: sa.Connection) -> bool:
    """Say whether the server has no transaction open for this session."""
    driver = session.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return driver.info.transaction_status == TransactionStatus.IDLE
