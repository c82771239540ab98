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


_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float, units: int = 2) -> str:
    """Write a duration by its greatest unit and the next, or more `units`, zeros left out; at least 1 s."""
    rest = max(1, round(seconds))
    parts: list[str] = []
    for unit, length in _UNITS:
        number, rest = divmod(rest, length)
        if number or parts:
            parts.append(f"{number:,} {unit}" if number else "")
    return " ".join(filter(None, parts[:units]))


def took(seconds: float) -> str:
    """Write what was measured: below ten seconds the tenths too."""
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)
