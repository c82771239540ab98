"""The options of a run: which of the places that may give one wins, and what a session is told of them."""

from __future__ import annotations

from typing import Any

import pytest

from usage_rollup.errors import ConfigurationError
from usage_rollup.session.options import KNOWN, Options, read, seconds

pytestmark = pytest.mark.offline

# Two values for each, and what they mean.
VALUES: dict[str, tuple[tuple[str, Any], tuple[str, Any]]] = {
    "keep-legacy": (("true", True), ("false", False)),
    "jobs": (("2", 2), ("auto", None)),
    "sleep-between-slices": (("2s", 2.0), ("0", 0.0)),
    "lock-timeout": (("1m30s", 90.0), ("500ms", 0.5)),
    "version-table": (("ours", "ours"), ("alembic_version", "alembic_version")),
}
FIELDS = {"sleep-between-slices": "sleep_between_slices_s", "lock-timeout": "lock_timeout_s"}


def test_every_option_is_tried_here() -> None:
    assert VALUES.keys() == KNOWN.keys()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", VALUES)
def test_what_is_typed_wins_over_x_and_x_over_the_environment(name: str, turned: bool) -> None:
    (losing, _), (winning, meant) = VALUES[name][::-1] if turned else VALUES[name]
    variable = {name.upper().replace("-", "_"): losing}
    field = FIELDS.get(name, name.replace("-", "_"))
    assert getattr(read({name: winning}, environ=variable), field) == meant
    assert getattr(read({name: losing}, {name: winning}), field) == meant
    assert getattr(read(flags={name: winning}, environ=variable), field) == meant
    # A flag that was not typed is none.
    assert getattr(read({name: winning}, {name: None}, variable), field) == meant


def test_variable_that_is_empty_gives_nothing() -> None:
    assert read(environ={name.upper().replace("-", "_"): "" for name in KNOWN}) == Options()


@pytest.mark.parametrize("jobs", ["1", "auto"])
def test_who_rests_between_slices_walks_alone_and_may_say_so(jobs: str) -> None:
    options = read({"jobs": jobs, "sleep-between-slices": "2s"}, environ={})
    assert options.sleep_between_slices_s == 2
    with pytest.raises(ConfigurationError, match="only one can be had"):
        read({"sleep-between-slices": "2s"}, environ={"JOBS": "2"})


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0", 0), ("1.5", 1.5), ("2m30s", 150), ("1h1m1s", 3661), ("250ms", 0.25), ("8784h", 366 * 86_400)],
)
def test_duration_is_seconds_or_numbers_with_their_units(text: str, meant: float) -> None:
    assert seconds(text, "it") == meant


@pytest.mark.parametrize(
    ("patience_s", "bound"),
    [
        (None, "120000ms"),
        (1.0004, "1001ms"),
        # To PostgreSQL 0 is for ever, and more than 31 bits are nothing.
        (0.0, "1ms"),
        (366 * 86_400.0, "2147483647ms"),
    ],
)
def test_waiting_of_a_session_always_has_a_bound(patience_s: float | None, bound: str) -> None:
    assert Options(lock_timeout_s=patience_s).settings()["lock_timeout"] == bound


def test_patience_is_that_of_each_lock_unless_somebody_says_otherwise() -> None:
    assert Options().patience_s(600) == 600
    assert Options(lock_timeout_s=0).patience_s(600) == 0


def test_sql_reads_what_was_asked_for_and_nothing_else() -> None:
    assert Options().settings() == {"lock_timeout": "120000ms"}
    asked = Options(keep_legacy=False, sleep_between_slices_s=0.25, lock_timeout_s=7, version_table="ours")
    assert asked.settings() == {
        "lock_timeout": "7000ms",
        "usage_rollup.keep_legacy": "false",
        "usage_rollup.sleep_between_slices": "0.250000s",
        "usage_rollup.lock_timeout": "7.000000s",
        "usage_rollup.version_table": "ours",
    }
