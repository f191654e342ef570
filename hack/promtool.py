"""promtool, which checks alerts and queries, and Prometheus: of Debian's packages, unpacked into the user's cache."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from hack.cluster.paths import alone_with, cache_root
from hack.images import debian
from hack.images.packages import Package

VERSION = "2.53.3+ds1-2"
Program = Literal["promtool", "prometheus"]
_FILES = {
    ("promtool", "x86_64"): "ff27654eacc95abd846d344e91fe4ba3b4f0588a50d606ed1d2f09ad3408722f",
    ("promtool", "aarch64"): "cc1d5889b4d2e2ef92a6984039d88c11993ad3c73f5e74acd3ee15adaefb764c",
    ("prometheus", "x86_64"): "58c3e6a86c56cb3bfd71032fa48d65945d526441a212f5815dfe5ed9cb787ecc",
    ("prometheus", "aarch64"): "59b459dee0ceef9c645a98166ea00f0d10946391a5d486505360e2d21cd1ddec",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PACKAGES = {
    (program, machine): Package(
        _ARCHITECTURES[machine],
        program,
        VERSION,
        "debian",
        f"pool/main/p/prometheus/{program}_2.53.3%2bds1-2_{_ARCHITECTURES[machine]}.deb",
        sha256,
    )
    for (program, machine), sha256 in _FILES.items()
}
"""By program and machine; Debian 13, as deploy/debian.lock. They need the C library (2.34 or newer), nothing else."""


def ensure(program: Program = "promtool") -> Path:
    """The program: the locked one, fetched and unpacked first if it is not in the cache, else the machine's own.

    Raises:
        FetchError: there is neither.
    """
    package = PACKAGES.get((program, platform.machine())) if sys.platform == "linux" else None
    problem = f"no {program} is locked for {sys.platform} on {platform.machine()}"
    if package is not None:
        try:
            return _unpacked(package)
        except debian.FetchError as error:
            problem = str(error).split("\nDebian drops")[0]
    if own := shutil.which(program):
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
        with alone_with("apt"):
            for command in (["update"], ["install", "--yes", "--no-install-recommends", "prometheus"]):
                subprocess.run(["apt-get", "--quiet", *command], env=environ, stdout=sys.stderr, check=True)


def _unpacked(package: Package) -> Path:
    path = cache_root() / f"{package.name}-{VERSION}-{package.sha256[:12]}"
    if not path.exists():
        _, stamp = debian.locked(package.architecture)
        (deb,) = debian.fetch([package], stamp)
        with debian.open_part(deb.read_bytes(), "data") as tar:
            file = tar.extractfile(f"./usr/bin/{package.name}")
            assert file is not None
            data = file.read()
        # Another process may do the same: each writes its own file, and the last one stays.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            scratch.write(data)
        Path(scratch.name).chmod(0o755)
        Path(scratch.name).replace(path)
    return path
