"""Images of rung 4 that are not the product's: files in an archive that `ctr images import` takes."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hack.cache import make_once
from hack.cluster.paths import cache_root
from hack.compiler import compile_c

PAUSE_IMAGE = "localhost/gpusharing-pause:1"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PAUSE_SOURCE = r"""
/* Holds the namespaces of a pod, and what its containers were given, until it is told to end. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int sign) { (void)sign; _exit(0); }
static void reap(int sign) { (void)sign; while (waitpid(-1, NULL, WNOHANG) > 0) {} }

int main(void)
{
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGCHLD, reap);
    for (;;)
        pause();
}
"""


@dataclass(frozen=True)
class ImageFile:
    """A file, or with `link` a symbolic link, in an image."""

    content: bytes = b""
    mode: int = 0o755
    link: str = ""


@dataclass(frozen=True)
class OneLayerImage:
    """What becomes one layer, and how it is started."""

    name: str
    files: Mapping[str, ImageFile]
    """By path without the leading slash."""
    entrypoint: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folders: Sequence[str] = ()


def pause_image() -> OneLayerImage:
    """What a pod's sandbox runs, and a workload that only holds what it was given.

    Raises:
        UnavailableError: there is no C compiler, or no static C library.
    """
    return OneLayerImage(
        PAUSE_IMAGE, {"pause": ImageFile(static_program("pause", PAUSE_SOURCE).read_bytes())}, ["/pause"]
    )


def write_archive(image: OneLayerImage, path: Path) -> None:
    """Write an image as `docker save` does; equal images give equal archives."""
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
    """This machine's architecture, as images name it."""
    return ARCHITECTURES[platform.machine()]


def configuration(image: OneLayerImage, layer: bytes, architecture: str) -> dict[str, object]:
    """What OCI's image specification calls the configuration."""
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
    """Its files as a tar that is the same for equal images."""
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


def static_program(name: str, source: str) -> Path:
    """A program of one C file that needs no library, from the user's cache.

    Raises:
        UnavailableError: there is no C compiler, or no static C library.
    """
    return _program(name, source, "-static")


def dynamic_program(name: str, source: str) -> Path:
    """A program of one C file that loads libraries when it runs, from the user's cache.

    Raises:
        UnavailableError: there is no C compiler.
    """
    return _program(name, source, "-pie", "-fPIE")


def _program(name: str, source: str, *flags: str) -> Path:
    """Return a program compiled from C source text, built first if it is not in the cache."""
    content = hashlib.sha256(" ".join((*flags, source)).encode()).hexdigest()[:12]

    def make(out: Path) -> None:
        arguments = ("-x", "c", "-O2", *flags, "-s", "-o", str(out / name), "-")
        compile_c(f"the program {name} of a real node", *arguments, source=source)

    return make_once(cache_root() / f"{name}-{content}-{platform.machine()}", name, make) / name
