"""Durations as operators write them: 90, 90s, 3m or 1h."""

from __future__ import annotations

import re

from ..errors import ConfigurationError

# For options: a number, or one with its unit.
PATTERN = r"[0-9]+(?:\.[0-9]*)?[smh]?"

_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds(text: str, name: str) -> float:
    """Return the seconds `text` stands for; raise ConfigurationError, naming it `name`, when none."""
    if not re.fullmatch(PATTERN, text):
        raise ConfigurationError(f"{name} is not a duration: {text!r}", hint="use 180, 90s or 3m")
    unit = text[-1] if text[-1] in _UNIT_S else ""
    return float(text.removesuffix(unit)) * _UNIT_S[unit]
