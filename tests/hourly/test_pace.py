"""How many sessions walk, where nobody has said."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.support.database import Database
from tests.support.product import wait_until
from tests.support.roles import MakeRole
from usage_rollup.hourly.pace import MOST, Pace, has_room
from usage_rollup.hourly.slices import Slice
from usage_rollup.session import outages

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def walked_by(
    rows_a_second: Callable[[int], float],
    *,
    room: Callable[[int], bool] = lambda more: True,
    slices: int = 60,
) -> list[int]:
    """Return how many sessions walk after each slice, when so many together do so many rows a second."""
    pace = Pace(None, room)
    sessions = []
    for _ in range(slices):
        seconds = 1000 * pace.sessions / rows_a_second(pace.sessions)
        pace.note(Slice(NOW, NOW, 1000, 1, seconds))
        sessions.append(pace.sessions)
    return sessions


@pytest.mark.parametrize("processors", [1, 2, 3])
def test_no_more_sessions_walk_at_last_than_help(processors: int) -> None:
    found = walked_by(lambda sessions: 100.0 * min(sessions, processors))
    assert max(found) == processors + 1
    assert found[-1] == processors
    # Begun with one, and never twice tried.
    assert found == sorted(found[: found.index(max(found))]) + sorted(
        found[found.index(max(found)) :], reverse=True
    )


def test_a_session_more_that_disturbs_the_others_is_taken_back() -> None:
    assert walked_by(lambda sessions: 100.0 / sessions)[-1] == 1


def test_there_is_an_end_where_every_session_helps() -> None:
    assert walked_by(lambda sessions: 100.0 * sessions, slices=200)[-1] == MOST


def test_no_session_is_added_where_there_is_no_room() -> None:
    assert set(walked_by(lambda sessions: 100.0 * sessions, room=lambda more: False)) == {1}


@pytest.mark.parametrize("jobs", [1, 4])
def test_who_says_how_many_gets_as_many(jobs: int) -> None:
    pace = Pace(jobs, lambda more: True)
    for _ in range(10):
        pace.note(Slice(NOW, NOW, 1000, 1, 1.0))
    assert pace.sessions == jobs


@pytest.mark.server
def test_room_is_counted_by_a_role_that_sees_nobody_else(
    at_102: Database, make_role: MakeRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role("walker", "CONNECTION LIMIT 4")
    idle = at_102.connect(autocommit=True)

    def room(url: str, more: int = 1) -> bool:
        monkeypatch.setenv("DATABASE_URL", url)
        return outages.in_session(lambda session: has_room(session, more))

    assert idle.execute("SELECT 1").fetchone() == (1,)
    assert room(at_102.url)
    assert not room(at_102.url_of(role))
    at_102.end_sessions()
    wait_until(lambda: room(at_102.url_of(role)), "nobody else is there")
    # Three of four may be used, the leader's among them.
    assert [room(at_102.url_of(role), more) for more in (1, 2, 3)] == [True, True, False]
