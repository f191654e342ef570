"""promtool, which checks alerts and queries: of Debian's package, unpacked into the user's cache, not installed."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hack.cluster.paths import cache_root
from hack.images import debian
from hack.images.packages import Package

VERSION = "2.53.3+ds1-2"
_POOL = "pool/main/p/prometheus/promtool_2.53.3%2bds1-2"
PACKAGES = {
    "x86_64": Package(
        "amd64",
        "promtool",
        VERSION,
        "debian",
        f"{_POOL}_amd64.deb",
        "ff27654eacc95abd846d344e91fe4ba3b4f0588a50d606ed1d2f09ad3408722f",
    ),
    "aarch64": Package(
        "arm64",
        "promtool",
        VERSION,
        "debian",
        f"{_POOL}_arm64.deb",
        "cc1d5889b4d2e2ef92a6984039d88c11993ad3c73f5e74acd3ee15adaefb764c",
    ),
}
"""By machine; Debian 13, as deploy/debian.lock. It needs the C library (2.34 or newer) and nothing else."""
MEMBER = "./usr/bin/promtool"


def ensure() -> Path:
    """The program: the locked one, fetched and unpacked first if it is not in the cache, else the machine's own.

    Raises:
        FetchError: there is neither.
    """
    package = PACKAGES.get(platform.machine()) if sys.platform == "linux" else None
    problem = f"no promtool is locked for {sys.platform} on {platform.machine()}"
    if package is not None:
        try:
            return _unpacked(package)
        except debian.FetchError as error:
            problem = str(error).split("\nDebian drops")[0]
    if own := shutil.which("promtool"):
        return Path(own)
    raise debian.FetchError(
        f"{problem}\nInstall it (apt-get install prometheus), or lock another in hack/promtool.py"
    )


def install() -> None:
    """Install Debian's package where Debian has dropped the locked one, for CI: nobody reads a message there.

    Raises:
        subprocess.CalledProcessError: apt-get failed.
    """
    if shutil.which("apt-get") and os.geteuid() == 0:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "prometheus"]):
            subprocess.run(["apt-get", "--quiet", *command], env=environ, stdout=sys.stderr, check=True)


def _unpacked(package: Package) -> Path:
    path = cache_root() / f"promtool-{VERSION}-{package.sha256[:12]}"
    if not path.exists():
        _, stamp = debian.locked(package.architecture)
        (deb,) = debian.fetch([package], stamp)
        with debian.open_part(deb.read_bytes(), "data") as tar:
            file = tar.extractfile(MEMBER)
            assert file is not None
            data = file.read()
        # Another process may do the same: each writes its own file, and the last one stays.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            scratch.write(data)
        Path(scratch.name).chmod(0o755)
        Path(scratch.name).replace(path)
    return path
