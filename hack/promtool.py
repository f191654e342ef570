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


def ensure(program: Program = "promtool") -> Path:
    """Return the path of Debian's promtool or prometheus, or else of the program on PATH."""
    package = PACKAGES.get((program, platform.machine())) if sys.platform == "linux" else None

    def unpack(out: Path) -> None:
        assert package is not None
        (deb,) = debian.fetch([package], debian.locked(package.architecture)[1])
        with debian.open_part(deb.read_bytes(), "data") as tar:
            file = tar.extractfile(f"./usr/bin/{program}")
            assert file is not None
            (out / program).write_bytes(file.read())
        (out / program).chmod(0o755)

    problem = f"no {program} is locked for {sys.platform} on {platform.machine()}"
    if package is not None:
        try:
            folder = cache_root() / f"{program}-{package.sha256[:12]}-{VERSION}"
            return make_once(folder, program, unpack) / program
        except debian.FetchError as error:
            problem = str(error).partition(": check the network")[0]
    if own := shutil.which(program):
        return Path(own)
    raise debian.FetchError(
        f"{problem}; install it (apt-get install --yes prometheus), or lock another version in hack/promtool.py"
    )


def main(arguments: Sequence[str]) -> int:
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
