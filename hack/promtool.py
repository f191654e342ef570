"""The programs promtool, which checks alerts and queries, and Prometheus. Both come from Debian's packages, which are
unpacked into the user's cache."""

import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from hack.apt import install
from hack.cache import UnavailableError, cache_root, make_once
from hack.images import debian
from hack.images.debian import Package

VERSION = "2.53.3+ds1-2"
Program = Literal["promtool", "prometheus"]
PROGRAMS: tuple[Program, ...] = get_args(Program)
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
"""The package of each program and machine, from Debian 13. The programs need only the C library, 2.34 or newer."""


def ensure(program: Program = "promtool") -> Path:
    """Return the path of the locked program, which is downloaded and unpacked if it is not cached. Programs are locked
    only for Linux on the machines in _FILES. If it cannot be downloaded, or this machine has no locked one, return the
    program on PATH. Raises FetchError if there is neither, UnavailableError if the cache cannot be written or another
    process holds its lock for an hour, and LockError if deploy/debian.lock is damaged."""
    package = PACKAGES.get((program, platform.machine())) if sys.platform == "linux" else None
    problem = f"no {program} is locked for {sys.platform} on {platform.machine()}"
    if package is not None:
        try:
            return _unpacked(package)
        except debian.FetchError as error:
            problem = str(error).partition(": check the network")[0]
    if own := shutil.which(program):
        return Path(own)
    raise debian.FetchError(
        f"{problem}; install it (apt-get install --yes prometheus), or lock another version in hack/promtool.py"
    )


def _unpacked(package: Package) -> Path:
    """Return the path of a package's program in the cache. If it is not there, the package is downloaded and unpacked.
    Raises FetchError if it cannot be downloaded, UnavailableError if the cache cannot be written or another process
    holds its lock for an hour, and LockError if deploy/debian.lock is damaged."""

    def make(out: Path) -> None:
        """Fetch the package and unpack its one program into the folder `out`. Raises FetchError if it cannot be
        downloaded, and LockError if deploy/debian.lock is damaged."""
        _, stamp = debian.locked(package.architecture)
        (deb,) = debian.fetch([package], stamp)
        with debian.open_part(deb.read_bytes(), "data") as tar:
            file = tar.extractfile(f"./usr/bin/{package.name}")
            assert file is not None
            (out / package.name).write_bytes(file.read())
        (out / package.name).chmod(0o755)

    folder = cache_root() / f"{package.name}-{package.sha256[:12]}-{VERSION}"
    return make_once(folder, package.name, make) / package.name


def main(arguments: Sequence[str]) -> int:
    """Print the paths of promtool and Prometheus. Returns the exit status: 0, or 1 after printing why the first one
    that is missing is unavailable, or that Debian's lock cannot be read. With `--install`, Debian's package is
    installed if neither the locked version nor PATH has the program."""
    try:
        for program in PROGRAMS:
            try:
                print(ensure(program))
            except debian.FetchError:
                if "--install" not in arguments:
                    raise
                install("prometheus")
                print(ensure(program))
    except (UnavailableError, debian.LockError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
