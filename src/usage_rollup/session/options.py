"""Options of a run, read once at the door: what was typed, else -x, else the environment, else a default.

They are handed down as one value. What the SQL of a revision or of a script reads travels as settings of
the session besides: usage_rollup.<name>.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigurationError

# 90, 0.5s, 500ms, 3m, 2m30s: a number of seconds, or numbers with their units, as people and Go write them.
_UNIT_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"([0-9]+(?:\.[0-9]*)?)({'|'.join(_UNIT_S)})")
_LONGEST_S = 366 * 86_400.0
DURATION = rf"[0-9]+(?:\.[0-9]*)?|(?:{_PART.pattern})+"


# How long a statement, or a step's table locks, may wait for other sessions' locks before the next run tries.
LOCK_PATIENCE_S = 120.0

# What lock_timeout takes; 0 would be no bound at all.
_SHORTEST_MS, _LONGEST_MS = 1, 2**31 - 1

# Alembic's own name for it, which another application in the same schema may have taken.
VERSION_TABLE = "alembic_version"


@dataclass(frozen=True)
class Options:
    """How a run goes; the defaults are those of a run that was asked for nothing.

    `keep_legacy` (103): True keeps the legacy tables in schema legacy_usage, False drops them whatever they
    hold, None decides by what they hold. `jobs`: sessions that walk at once; None is as many as help.
    `sleep_between_slices_s`: seconds of rest for the server after each slice. `lock_timeout_s`: seconds to
    wait for any lock, an advisory one, a step's table locks or that of a single statement; None is the
    patience each of them has by itself. `version_table`: where Alembic keeps the revision, in schema public.
    """

    keep_legacy: bool | None = None
    jobs: int | None = None
    sleep_between_slices_s: float = 0.0
    lock_timeout_s: float | None = None
    version_table: str = VERSION_TABLE

    def patience_s(self, default_s: float) -> float:
        """Return how many seconds to wait for a lock whose own patience is `default_s`."""
        return default_s if self.lock_timeout_s is None else self.lock_timeout_s

    def settings(self) -> dict[str, str]:
        """Return the settings of a run's sessions: the bound of all their waiting, and what SQL reads."""
        patience_ms = math.ceil(self.patience_s(LOCK_PATIENCE_S) * 1000)
        settings = {"lock_timeout": f"{min(max(patience_ms, _SHORTEST_MS), _LONGEST_MS)}ms"}
        if self.keep_legacy is not None:
            settings["usage_rollup.keep_legacy"] = "true" if self.keep_legacy else "false"
        if self.sleep_between_slices_s:
            settings["usage_rollup.sleep_between_slices"] = f"{self.sleep_between_slices_s:f}s"
        if self.lock_timeout_s is not None:
            settings["usage_rollup.lock_timeout"] = f"{self.lock_timeout_s:f}s"
        if self.version_table != VERSION_TABLE:
            settings["usage_rollup.version_table"] = self.version_table
        return settings


# What each may be: as a pattern, as a message shows it, in words. Its variable is the name in capitals.
KNOWN = {
    "keep-legacy": ("true|false", "true|false", "true or false"),
    "jobs": ("auto|[1-9][0-9]?", "auto|1..99", "auto or 1..99"),
    "sleep-between-slices": (DURATION, "2s", "a duration"),
    "lock-timeout": (DURATION, "30s", "a duration"),
    "version-table": (
        "[a-z_][a-z0-9_]{0,50}",
        "usage_rollup_version",
        "a name of at most 51 small letters, digits and _",
    ),
}


def read(
    x: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Options:
    """Return the run's options: `flags` win over `x`, the -x arguments, and those over the environment.

    A flag that is None was not given. Raises ConfigurationError for a name or value there is not, and for
    options that contradict each other.
    """
    variables = {name: environ.get(_variable(name), "") for name in KNOWN}
    typed = {name: value for name, value in (flags or {}).items() if value is not None}
    # How each was written, for whoever wrote it wrongly.
    given: dict[str, tuple[str, object]] = {
        name: ("{variable}={value}", value) for name, value in variables.items() if value
    }
    given |= {name: ("-x {name}={value}", value) for name, value in (x or {}).items()}
    given |= {name: ("--{name} {value}", value) for name, value in typed.items()}
    for name, (way, value) in given.items():
        if name not in KNOWN:
            there_is = "; ".join(_written(way, known, KNOWN[known][1]) for known in KNOWN)
            raise ConfigurationError(
                f"no such option: {_written(way, name, value)}", hint=f"there is: {there_is}"
            )
        pattern, shown, words = KNOWN[name]
        if not re.fullmatch(pattern, str(value)):
            raise ConfigurationError(
                f"{_written(way, name, '').rstrip(' =')} is not {words}: {str(value)!r}",
                hint=f"there is: {_written(way, name, shown)}",
            )
    text = {name: str(value) for name, (_, value) in given.items()}
    options = Options(
        keep_legacy=text["keep-legacy"] == "true" if "keep-legacy" in text else None,
        jobs=int(text["jobs"]) if text.get("jobs", "auto") != "auto" else None,
        sleep_between_slices_s=seconds(text.get("sleep-between-slices", "0"), "sleep-between-slices"),
        lock_timeout_s=seconds(text["lock-timeout"], "lock-timeout") if "lock-timeout" in text else None,
        version_table=text.get("version-table", VERSION_TABLE),
    )
    if (options.jobs or 1) > 1 and options.sleep_between_slices_s:
        raise ConfigurationError(
            "jobs finishes the walk sooner and sleep-between-slices spares the server: only one can be had",
            hint="leave one out; either may also come from the environment, JOBS or SLEEP_BETWEEN_SLICES",
        )
    return options


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _written(way: str, name: str, value: object) -> str:
    return way.format(name=name, variable=_variable(name), value=value)


def seconds(text: str, name: str) -> float:
    """Return the seconds that the duration `text` stands for.

    Raises ConfigurationError, which calls it `name`, when it is none.
    """
    if not re.fullmatch(DURATION, text):
        raise ConfigurationError(f"{name} is not a duration: {text!r}", hint="use 180, 90s, 2m30s or 500ms")
    parts = _PART.findall(text)
    total = sum(float(number) * _UNIT_S[unit] for number, unit in parts) if parts else float(text)
    if total > _LONGEST_S:
        raise ConfigurationError(f"{name} is longer than a year: {text!r}", hint="use 180, 90s or 2m30s")
    return total
