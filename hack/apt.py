"""Debian's packages, by one apt at a time: a second one does not wait for the first, it fails."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hack.cache import UnavailableError, alone, writable
from hack.cluster.paths import cache_root


@contextmanager
def alone_with_apt() -> Iterator[None]:
    """Let one process of ours after the other run apt.

    Raises:
        UnavailableError: another one does not end, or the cache with the lock cannot be written.
    """
    root = cache_root()
    with writable(root), alone(root / "apt.lock", "running apt"):
        yield


def install(*packages: str) -> None:
    """Install Debian packages. Do nothing where there is no apt-get or where we are not root.

    Raises:
        UnavailableError: apt-get failed; it has said why on stderr.
    """
    if not packages or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with alone_with_apt():
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            apt = ["apt-get", "--quiet", "--option", "Acquire::Retries=3", *command]
            done = subprocess.run(apt, env=environ, stdout=sys.stderr, check=False)
            if done.returncode != 0:
                raise UnavailableError(
                    f"`{' '.join(apt)}` ended with status {done.returncode} (it says why above): mend that, "
                    f"then install {' '.join(packages)}."
                )
