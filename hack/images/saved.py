"""Read an image back from the archive that Docker or buildah saved: how big it is, what it holds, how it starts."""

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hack.images.contents import PYTHON_ITSELF, Image, ImagePart, debian_parts, wheel_parts
from hack.images.layers import compress

STATUS = re.compile(r"var/lib/dpkg/status(\.d/[^/]+)?$")
METADATA = re.compile(r".*/(?:site|dist)-packages/[^/]+\.dist-info/METADATA$")
VENV = "opt/venv/pyvenv.cfg"
BUILT = "/usr/local/bin"
"""Where a Python lies that is of no Debian package, as in the base of deploy/Dockerfile."""


class ArchiveError(ValueError):
    """The archive is none that we can read. The text says why."""


def read(path: Path) -> Image:
    """The image in a docker-archive.

    Raises:
        ArchiveError: it is none, or holds several images.
    """
    with tarfile.open(path) as tar:
        try:
            (manifest,) = json.loads(_member(tar, "manifest.json"))
        except (KeyError, ValueError) as error:
            raise ArchiveError(
                f"{path} is not an archive of one image, as `docker save` writes it: {error}"
            ) from error
        raw = _member(tar, manifest["Config"])
        files: dict[str, bytes] = {}
        size = compiled = 0
        for name in manifest["Layers"]:
            layer = _member(tar, name)
            size += len(layer if layer.startswith(b"\x1f\x8b") else compress(layer))
            found, modules = _kept(layer)
            files |= found
            compiled += modules
    config = json.loads(raw)
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    reference, architecture = manifest["RepoTags"][0], config["architecture"]
    parts = tuple(sorted(_parts(files)))
    return Image(path, reference, architecture, digest, size, compiled, parts, config["config"])


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is no file")
    return file.read()


def _kept(layer: bytes) -> tuple[dict[str, bytes], int]:
    """The files of a layer that say what is in the image, and the number of compiled modules."""
    raw = gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer
    found, compiled = {}, 0
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            compiled += name.endswith(".pyc")
            if STATUS.match(name) or METADATA.match(name) or name == VENV:
                file = tar.extractfile(member)
                assert file is not None
                found[name] = file.read()
    return found, compiled


def _parts(files: Mapping[str, bytes]) -> Iterator[ImagePart]:
    texts = {name: data.decode() for name, data in files.items()}
    status = [
        paragraph
        for name, text in texts.items()
        if STATUS.match(name)
        for paragraph in text.split("\n\n")
        if paragraph.strip() and "\nStatus: deinstall" not in paragraph
    ]
    yield from debian_parts(status, ())
    yield from wheel_parts([text for name, text in texts.items() if METADATA.match(name)], {})
    told = dict(re.findall(r"^(\w+) = (.*)$", texts.get(VENV, ""), re.MULTILINE))
    if told.get("home") == BUILT and (version := told.get("version")):
        yield ImagePart(
            PYTHON_ITSELF,
            "python",
            version,
            f"pkg:generic/python@{version}",
            "python",
            version,
            "Python-2.0.1",
            "https://www.python.org",
        )
