"""The images that real nodes need beside our own (rung 4: docs/design/faults.md#rung-4), as archives that `ctr images
import` reads."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hack.cache import cache_root, make_once
from hack.compiler import compile_c

PAUSE_IMAGE = "localhost/gpusharing-pause:1"
SOURCES = Path(__file__).with_name("src")
STATIC, LOADING = ("-static",), ("-pie", "-fPIE")
"""Compiler flags for a program that needs no library, and for one that loads libraries when it runs."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class ImageFile:
    """A file in an image or, if `link` is set, a symbolic link to that path."""

    content: bytes = b""
    mode: int = 0o755
    link: str = ""


@dataclass(frozen=True)
class OneLayerImage:
    """The content of an image with one layer, and how its containers are started."""

    name: str
    files: Mapping[str, ImageFile]
    """The files by their paths, without the leading slash."""
    entrypoint: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[str] = ()


def pause_image() -> OneLayerImage:
    """Return the image of pod sandboxes, and of workloads that only occupy the devices assigned to them."""
    return OneLayerImage(PAUSE_IMAGE, {"pause": ImageFile(c_program("pause").read_bytes())}, ["/pause"])


def write_archive(image: OneLayerImage, path: Path) -> None:
    """Write an image for this machine's architecture to `path` in the format of `docker save`."""
    layer = pack_layer(image)
    digest = hashlib.sha256(layer).hexdigest()
    raw = json.dumps(configuration(image, layer, native()), sort_keys=True).encode()
    name = f"{hashlib.sha256(raw).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [image.name], "Layers": [f"{digest}.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, f"{digest}.tar", ImageFile(layer, 0o644))
        _add(archive, name, ImageFile(raw, 0o644))
        _add(archive, "manifest.json", ImageFile(json.dumps(manifest).encode(), 0o644))


def native() -> str:
    return ARCHITECTURES[platform.machine()]


def configuration(image: OneLayerImage, layer: bytes, architecture: str) -> dict[str, object]:
    """Return the image's configuration, as OCI's image specification defines it."""
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": list(image.entrypoint),
            "Env": [f"{name}={value}" for name, value in image.environment.items()],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created_by": "hack/realnode/images.py"}],
    }


def pack_layer(image: OneLayerImage) -> bytes:
    """Return a tar of the image's folders and then its files, each sorted by path."""
    buffer = io.BytesIO()
    parents = {str(parent) for path in image.files for parent in Path(path).parents}
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder in sorted({*parents, *image.folders} - {"."}):
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(member)
        for path, entry in sorted(image.files.items()):
            _add(layer, path, entry)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, path: str, entry: ImageFile) -> None:
    member = tarfile.TarInfo(path)
    member.mode = entry.mode
    if entry.link:
        member.type, member.linkname = tarfile.SYMTYPE, entry.link
        archive.addfile(member)
        return
    member.size = len(entry.content)
    archive.addfile(member, io.BytesIO(entry.content))


def c_program(name: str, flags: Sequence[str] = STATIC) -> Path:
    """Return the path of the program that is compiled from `name`.c in hack/realnode/src, with these compiler flags."""
    source = SOURCES / f"{name}.c"
    content = hashlib.sha256(" ".join(flags).encode() + source.read_bytes()).hexdigest()[:12]

    def make(out: Path) -> None:
        compile_c(f"the program {name} of a real node", "-O2", *flags, "-s", "-o", str(out / name), str(source))

    return make_once(cache_root() / f"{name}-{content}-{platform.machine()}", name, make) / name
