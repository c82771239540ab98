"""Say numbers, sizes and times to people, everywhere in the same way. JSON has the plain numbers."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """Write how many there are of something, which takes an s where it is not one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(number: int) -> str:
    """Write a number of bytes: kB, MB or GB of 1,024 each, as PostgreSQL does."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return f"{number / 1024:,.0f} kB"


def duration(seconds: float) -> str:
    """Write a duration by its two greatest units; at least a second, and minutes alone below an hour."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def took(seconds: float) -> str:
    """Write what was measured: below ten seconds the tenths too."""
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)
