"""Building the image from Debian packages and locked wheels, without root, a container program or a registry.

Two checks follow: that every shared library that the image's programs need is in the image (read from their ELF
headers, also those of another architecture), and that the image is not too big.
"""

import json
import shutil
import struct
from datetime import datetime
from pathlib import Path

from hack.generate import ROOT
from hack.images import debian, wheels
from hack.images.contents import (
    Image,
    Origin,
    debian_parts,
    document,
    labels,
    read_metadata,
    read_origin,
    read_status,
    wheel_parts,
)
from hack.images.debian import DISTRO
from hack.images.layers import JSON, archive, configuration, pack

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
"""The configuration with which a container of the image starts. The two MALLOC variables make glibc give back the
buffers of closed connections and keep few heaps; `make bench` measures the operator with them."""


class TreeError(Exception):
    """The image would not run; the message says why."""


def build(architecture: str = "", reference: str = "", out: Path = OUT, origin: Origin | None = None) -> Image:
    """Build the image for an architecture, by default this machine's, with archive and bill of materials."""
    native = wheels.native()
    architecture = architecture or native
    origin = origin or read_origin()
    reference = reference or f"localhost/{origin.name}:{origin.version}"
    work = out / "work" / architecture
    shutil.rmtree(work, ignore_errors=True)
    packages, stamp = debian.locked(architecture)
    system, site, own = work / "1-debian", work / "2-libraries", work / "3-operator"
    debian.unpack(debian.fetch(packages, stamp), system)
    files = wheels.download(architecture)
    wheels.install(files, architecture, site)
    wheels.install([wheels.own_wheel(work / "dist", origin.epoch, origin.source)], architecture, own)
    wheels.entry_points(own)
    with_python = system
    if architecture != native:  # bytecode is equal on all architectures, so this machine's Python compiles it
        with_python = work / "python"
        debian.unpack(debian.fetch(*debian.locked(native)), with_python)
    command, environ = wheels.interpreter(with_python)
    compiled = sum(
        wheels.compile_all(command, environ, tree / shown, shown)
        for tree, shown in ((system, wheels.STDLIB), (site, wheels.SITE), (own, wheels.SITE))
    )
    locked_at = int(datetime.strptime(f"{stamp}+0000", "%Y%m%dT%H%M%SZ%z").timestamp())
    layers = (
        pack("Debian packages and Python", system, locked_at),
        pack("locked libraries", site, locked_at),
        pack("operator and agent", own, origin.epoch),
    )
    parts = (
        *debian_parts(read_status(system), packages),
        *wheel_parts(read_metadata(site / wheels.SITE), wheels.hashes(files)),
        *wheel_parts(read_metadata(own / wheels.SITE), {}),
    )
    if lacking := missing([system, site, own]):
        raise TreeError(f"libraries are missing; add their packages to hack/images/debian.py: {'; '.join(lacking)}")
    marks = labels(origin, DISTRO)
    config = configuration(architecture, layers, RUN, marks, origin.created)
    data, digest = archive(reference, config, layers, marks, origin.epoch)
    target = out / f"{origin.name}-{origin.version}-{architecture}.tar"
    target.write_bytes(data)
    size, trees = sum(len(layer.data) for layer in layers), (system, site, own)
    image = Image(target, reference, architecture, digest, size, compiled, parts, RUN, trees, layers)
    image.sbom.write_text(json.dumps(document(origin, architecture, digest, parts), indent=1) + "\n")
    return image


DYNAMIC, LOAD = 2, 1
NEEDED, STRTAB = 1, 5


def needed(data: bytes) -> list[str]:
    """Return the libraries that an ELF file names (DT_NEEDED); empty if the file is static or not an ELF file."""
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    (at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, at + index * size) for index in range(count)]
    loads = [(address, offset, length) for kind, _, offset, address, _, length, _, _ in segments if kind == LOAD]
    entries = [
        entry
        for kind, _, offset, _, _, length, _, _ in segments
        if kind == DYNAMIC
        for entry in struct.iter_unpack("<qQ", data[offset : offset + length - length % 16])
    ]
    tables = [value for tag, value in entries if tag == STRTAB]
    if not tables:
        return []
    strings = next(
        offset + tables[0] - address for address, offset, length in loads if address <= tables[0] < address + length
    )
    return [data[strings + value :].partition(b"\0")[0].decode() for tag, value in entries if tag == NEEDED]


def missing(trees: list[Path]) -> list[str]:
    """Return "FILE needs LIBRARY" for each library that is in none of the trees."""
    files = [path for tree in trees for path in tree.rglob("*") if path.is_file() or path.is_symlink()]
    there = {path.name for path in files}
    linked = [path for path in files if not path.is_symlink() and (".so" in path.name or path.stat().st_mode & 0o100)]
    wants = ((path, name) for path in linked for name in needed(path.read_bytes()))
    return sorted(f"{path.name} needs {name}" for path, name in wants if name not in there)


LIMIT = 70_000_000
"""The largest compressed size of an image, in bytes."""


def too_big(whole: int) -> str:
    """Return a message if `whole`, the compressed size of an image in bytes, is above LIMIT, or an empty string."""
    if whole <= LIMIT:
        return ""
    return f"{whole / 1e6:.1f} MB compressed are more than the limit of {LIMIT / 1e6:.0f} MB: the list shows which layer grew"
