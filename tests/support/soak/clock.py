"""A clock for the server that can be stepped: libfaketime, where it is installed or LIBFAKETIME names it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Where Debian and Fedora put it.
_PLACES = ("lib/*/faketime/libfaketime.so.1", "lib64/faketime/libfaketime.so.1")


class Clock:
    """The server's wall clock, so many seconds beside the machine's; its monotonic clock is left alone."""

    def __init__(self, library: Path, directory: Path) -> None:
        self._file = directory / "offset"
        self._set(0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @contextmanager
    def stepped(self, seconds: int) -> Iterator[None]:
        """Step it by `seconds`, and back when the block ends."""
        self._set(seconds)
        try:
            yield
        finally:
            self._set(0)

    def _set(self, seconds: int) -> None:
        # At once, because every look at the clock reads it.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+}\n")
        new.chmod(0o644)
        new.rename(self._file)


@contextmanager
def steppable_clock() -> Iterator[Clock | None]:
    """Yield a clock for a server that is about to be started, None where there is no libfaketime."""
    given = os.environ.get("LIBFAKETIME")
    found = Path(given) if given else next((p for place in _PLACES for p in Path("/usr").glob(place)), None)
    if found is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="usage-rollup-clock-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Clock(found.absolute(), Path(name))
