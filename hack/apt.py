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
    """Hold our lock for running apt during the `with` block. The lock file is in our cache. Raises UnavailableError if
    another process holds the lock for more than an hour, or if the cache cannot be created. In the block, an OSError
    about a path in the cache or about a full disk becomes an UnavailableError. Other errors pass through."""
    root = cache_root()
    with writable(root), alone(root / "apt.lock", "running apt"):
        yield


def install(*packages: str) -> None:
    """Update the package lists and install these Debian packages without those that they only recommend, while we hold
    our lock for running apt; apt asks no questions, tries a failed download 3 times more, and its output goes to
    stderr. Does nothing if no package is named, if there is no apt-get, or if we are not root. Raises UnavailableError
    if apt-get fails, if another of our processes runs apt for more than an hour, or if our cache cannot be written."""
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
