"""Build the image of Debian packages and locked wheels, without root, a container program or a registry."""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hack.generate import ROOT
from hack.images import debian, wheels
from hack.images.contents import ImagePart, debian_parts, read_metadata, read_status, wheel_parts
from hack.images.elf import missing
from hack.images.labels import Origin, labels, read_origin
from hack.images.layers import JSON, Layer, archive, configuration, pack
from hack.images.packages import DISTRO
from hack.images.sbom import document

OUT = ROOT / "build" / "images"
USER = "65532:65532"
RUN: JSON = {
    "User": USER,
    "Env": [
        "PATH=/usr/local/bin:/usr/bin",
        "PYTHONUNBUFFERED=1",
        "PYTHONDONTWRITEBYTECODE=1",
        "MALLOC_MMAP_THRESHOLD_=131072",
        "MALLOC_ARENA_MAX=2",
    ],
    "Cmd": ["gpusharing-operator"],
    "WorkingDir": "/",
}
"""How a container of it starts; a test holds it to deploy/Dockerfile."""


class TreeError(Exception):
    """The image would not run. The text says why."""


@dataclass(frozen=True)
class Image:
    """A finished image."""

    architecture: str
    reference: str
    """The name it has once imported."""
    archive: Path
    digest: str
    """sha256:... of the manifest."""
    tree: tuple[Path, ...]
    """Folders that make the root file system, the lowest first; owned by whoever built it."""
    layers: tuple[Layer, ...]
    compiled: int
    """Modules that are compiled."""
    parts: tuple[ImagePart, ...]
    sbom: Path
    """The bill of materials beside the archive, SPDX 2.3."""

    @property
    def size(self) -> int:
        """Bytes of all layers as they are transferred."""
        return sum(len(layer.data) for layer in self.layers)


def build(architecture: str = "", reference: str = "", out: Path = OUT) -> Image:
    """Build for one architecture (`amd64` or `arm64`; without one for this machine's).

    Raises:
        FetchError: a Debian package cannot be had.
        WheelError: a wheel cannot be had.
        TreeError: a program would not find a library.
    """
    native = wheels.native()
    architecture = architecture or native
    origin = read_origin()
    reference = reference or f"localhost/{origin.name}:{origin.version}"
    work = out / "work" / architecture
    shutil.rmtree(work, ignore_errors=True)
    packages, stamp = debian.locked(architecture)
    system, site, own = work / "1-debian", work / "2-libraries", work / "3-operator"
    debian.unpack(debian.fetch(packages, stamp), system)
    files = wheels.download(architecture)
    wheels.install(files, architecture, site)
    wheels.install([wheels.own_wheel(work / "dist", origin.epoch)], architecture, own)
    wheels.entry_points(own)
    with_python = system if architecture == native else _native_python(native, work / "python")
    compiled = _compile(with_python, (system, wheels.STDLIB), (site, wheels.SITE), (own, wheels.SITE))
    locked_at = int(datetime.strptime(f"{stamp}+0000", "%Y%m%dT%H%M%SZ%z").timestamp())
    layers = (
        pack("Debian packages and Python", system, locked_at),
        pack("locked libraries", site, locked_at),
        pack("operator and agent", own, origin.epoch),
    )
    held = (
        *debian_parts(read_status(system), packages),
        *wheel_parts(read_metadata(site / wheels.SITE), wheels.hashes(files)),
        *wheel_parts(read_metadata(own / wheels.SITE), {}),
    )
    if lacking := missing([system, site, own]):
        raise TreeError(
            f"libraries are missing, add their packages to hack/images/packages.py: {'; '.join(lacking)}"
        )
    target, digest = _write(architecture, reference, origin, layers, out)
    sbom = target.with_suffix(".spdx.json")
    sbom.write_text(json.dumps(document(origin, architecture, digest, held), indent=1) + "\n")
    return Image(architecture, reference, target, digest, (system, site, own), layers, compiled, held, sbom)


def _native_python(native: str, folder: Path) -> Path:
    """Bytecode is the same on every machine: a foreign tree is compiled by the Python of this one."""
    packages, stamp = debian.locked(native)
    debian.unpack(debian.fetch(packages, stamp), folder)
    return folder


def _compile(python: Path, *parts: tuple[Path, str]) -> int:
    command, environ = wheels.interpreter(python)
    return sum(wheels.compile_all(command, environ, tree / shown, shown) for tree, shown in parts)


def _write(
    architecture: str, reference: str, origin: Origin, layers: tuple[Layer, ...], out: Path
) -> tuple[Path, str]:
    marks = labels(origin, DISTRO)
    config = configuration(architecture, layers, RUN, marks, origin.created)
    data, digest = archive(reference, config, layers, marks, origin.epoch)
    target = out / f"{origin.name}-{origin.version}-{architecture}.tar"
    target.write_bytes(data)
    return target, digest
