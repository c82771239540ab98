"""Build the image and run containers of it where there is no engine: buildah, and the kernel's namespaces.

BASE_IMAGE names another base than the Dockerfile's; without it one is made of Debian's packages, once, and
kept beside this Python. A container has a read-only root, process ids of its own, no capabilities and the
host's network. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.database import ROOT
from tests.support.product import wait_until

NAME = "usage-rollup"
_HOME = Path(sys.prefix, "image-test")
_SUITE = "trixie"  # its Python is the one of the Dockerfile
_BASE = f"localhost/usage-rollup-base-{_SUITE}"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# $0 is the root; then come user, directory and what `env` takes. Each program becomes the next, so that the
# last is the container's first process.
_ENTER = """
set -e
user=$1 directory=$2; shift 2
mount --rbind "$0" "$0"
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
mount -o remount,bind,ro "$0"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$0" env -i -C "$directory" "$@"
"""


def missing() -> str | None:
    """Return in one sentence what building an image lacks here, None if nothing."""
    if os.geteuid() != 0:
        return "make image-test makes file systems and namespaces, for which it must be root."
    tools = ["buildah", "unshare", "setpriv"] + ["debootstrap"] * (not os.environ.get("BASE_IMAGE"))
    lacking = [tool for tool in tools if not shutil.which(tool)]
    if lacking:
        return f"make image-test needs {' and '.join(lacking)}: `apt-get install {' '.join(lacking)}`."
    return None


@dataclass(frozen=True)
class Image:
    """A built image: its root file system, and what it says of itself."""

    root: Path
    config: dict[str, Any]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        entrypoint: Sequence[str] | None = None,
        user: str | None = None,
    ) -> list[str]:
        """Return the command that runs a container to its end and exits with its status."""
        settings = [*self.config["Env"], *(f"{name}={value}" for name, value in env.items())]
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, str(self.root)),
            *(user or self.config["User"], self.config["WorkingDir"], *settings),
            *(self.config["Entrypoint"] if entrypoint is None else entrypoint),
            *arguments,
        ]

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a container to its end; options are those of `command`."""
        return subprocess.run(
            self.command(arguments, **options),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=120,
            check=False,
        )

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a container; output merged in its stdout."""
        container = subprocess.Popen(
            self.command(arguments, **options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.started.append(container)
        return container

    def remove(self) -> None:
        """End the containers that still run, and remove the image; the base is kept."""
        for container in self.started:
            container.kill()  # and by --kill-child what is in it
        _buildah("rm", "--all")
        _buildah("rmi", "--force", NAME)
        _buildah("rmi", "--prune")


def first_process(container: subprocess.Popen[str]) -> int:
    """Return the pid, on the host, of a container's first process, whom an engine sends its signals."""
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    wait_until(lambda: children.read_text().split(), "the container has begun")
    return int(children.read_text())


def build(version: str) -> Image:
    """Build the image of the Dockerfile as this checkout has it."""
    base = os.environ.get("BASE_IMAGE") or _base()
    arguments = (f"BASE_IMAGE={base}", f"VERSION={version}", "REVISION=0123abc")
    given = [word for argument in arguments for word in ("--build-arg", argument)]
    # Docker's format, because OCI's knows no HEALTHCHECK.
    _buildah("build", "--isolation", "chroot", "--format", "docker", *given, "--tag", NAME, str(ROOT))
    container = _buildah("from", "--pull-never", NAME)
    config = json.loads(_buildah("inspect", "--type", "image", NAME))["Docker"]["config"]
    return Image(Path(_buildah("mount", container)), config)


def _base() -> str:
    """Return a base image with Python and pip, which the first call makes."""
    if _BASE in _buildah("images", "--format", "{{.Name}}").split():
        return _BASE
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        packages = "--include=python3,python3-pip,ca-certificates"
        _run("debootstrap", "--variant=minbase", packages, _SUITE, str(root))
        shutil.rmtree(root / "var/cache/apt")
        # It trusts whom this machine trusts.
        shutil.copy(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
        _run("tar", "--create", "--file", f"{scratch}/root.tar", "--directory", str(root), ".")
        Path(scratch, "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        shutil.rmtree(root)
        _buildah("build", "--tag", _BASE, scratch)
    return _BASE


def _buildah(*arguments: str) -> str:
    places = ("--root", str(_HOME / "storage"), "--runroot", str(_HOME / "run"))
    return _run("buildah", *places, "--storage-driver", "vfs", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(missing())
