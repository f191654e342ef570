"""Installs Debian packages. A lock lets our processes run apt in turn: a second apt would fail instead of waiting."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hack.cache import UnavailableError, alone, cache_root, writable


@contextmanager
def alone_with_apt() -> Iterator[None]:
    """Hold our lock for running apt during the `with` block."""
    root = cache_root()
    with writable(root), alone(root / "apt.lock", "running apt"):
        yield


def install(*packages: str) -> None:
    """Install packages if apt-get is here and we are root; otherwise do nothing."""
    if not packages or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with alone_with_apt():
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            apt = ["apt-get", "--quiet", "--option", "Acquire::Retries=3", *command]
            done = subprocess.run(apt, env=environ, stdout=sys.stderr, check=False)
            if done.returncode != 0:
                raise UnavailableError(
                    f"`{' '.join(apt)}` ended with status {done.returncode}. Its output above says why: repair "
                    f"that, then install {' '.join(packages)}."
                )
