"""What ends a soak."""

from __future__ import annotations


class Finding(AssertionError):
    """Something that must not happen has happened."""
