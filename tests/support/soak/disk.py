"""A small disk for a tablespace, which can be full: a tmpfs, where this process may mount one."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SIZE = "512m"
_CRUMBS = 4 * 1024 * 1024


class Disk:
    """A file system of its own, in which a ballast file can leave no room."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kept = False

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room on it until the block ends."""
        ballast = self.directory / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                # Whoever writes meanwhile takes some of it, too: as much as goes, then the crumbs.
                free = os.statvfs(self.directory)
                os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - _CRUMBS))
                file.seek(0, os.SEEK_END)
                while file.write(bytes(4096)):
                    pass
            yield
        finally:
            ballast.unlink()


@contextmanager
def small_disk() -> Iterator[Disk | None]:
    """Mount a tmpfs; yield None where that is not allowed."""
    directory = Path(tempfile.mkdtemp(prefix="usage-rollup-disk-", dir="/tmp"))
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=1777", "tmpfs", str(directory))
    disk = Disk(directory)
    try:
        yield disk if mounted else None
    finally:
        if not disk.kept:
            if mounted:
                _run("umount", "--lazy", str(directory))
            directory.rmdir()


def _run(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
