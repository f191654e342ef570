"""Building deploy/Dockerfile with Docker or buildah, if one of them can pull the base from a registry, and reading the
saved image.

`python -m hack.images.registry` prints the other inputs of a build, `epoch` and the labels (one per line), in the
format of the step outputs of a hosted workflow.
"""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hack.generate import ROOT
from hack.images.contents import (
    PREFIX,
    PYTHON_ITSELF,
    Image,
    ImagePart,
    Origin,
    debian_parts,
    labels,
    read_origin,
    wheel_parts,
)
from hack.images.layers import compress
from hack.images.wheels import native

STATUS = re.compile(r"var/lib/dpkg/status(\.d/[^/]+)?$")
METADATA = re.compile(r".*/(?:site|dist)-packages/[^/]+\.dist-info/METADATA$")
VENV = "opt/venv/pyvenv.cfg"
BUILT = "/usr/local/bin"
"""The folder of a Python that belongs to no Debian package, as in the base of deploy/Dockerfile."""


class ArchiveError(ValueError):
    """The file is not an archive that we can read; the message says why."""


def read(path: Path) -> Image:
    """Return the image in a docker-archive; it must have a tag. Raises tarfile.ReadError if the file is not a tar,
    ArchiveError if it is not a docker-archive or contains several images, and KeyError if a file that its manifest
    names is missing."""
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
            descriptions, modules = _read_layer(layer)
            files |= descriptions
            compiled += modules
    config = json.loads(raw)
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    reference, architecture = manifest["RepoTags"][0], config["architecture"]
    parts = tuple(sorted(_parts(files)))
    return Image(path, reference, architecture, digest, size, compiled, parts, config["config"])


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    """Return the content of a file in a tar. Raises KeyError if it is missing or not a file."""
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


def _read_layer(layer: bytes) -> tuple[dict[str, bytes], int]:
    """Return the files in a layer that describe packages, by path, and the number of compiled modules in the layer."""
    raw = gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer
    files, compiled = {}, 0
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            compiled += name.endswith(".pyc")
            if STATUS.match(name) or METADATA.match(name) or name == VENV:
                file = tar.extractfile(member)
                assert file is not None
                files[name] = file.read()
    return files, compiled


def _parts(files: Mapping[str, bytes]) -> Iterator[ImagePart]:
    """Yield the parts that these files describe: Debian packages that are not removed, Python distributions, and a
    Python that was built from source. `files` holds the content of the files by path."""
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
    settings = dict(re.findall(r"^(\w+) = (.*)$", texts.get(VENV, ""), re.MULTILINE))
    if settings.get("home") == BUILT and (version := settings.get("version")):
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


DOCKERFILE = ROOT / "deploy" / "Dockerfile"
OUT = ROOT / "build" / "images"
INSTALL = "apt-get install buildah"
REACH_SECONDS = 20


class RegistryError(Exception):
    """The image cannot be built from a registry. The message says why and what to do."""


def choose(base: str, path: str | None = None) -> str:
    """Return `registry` or `local`. `auto` means `registry` if a builder can pull the base image, and otherwise
    `local`, after printing why. Builders are searched for on `path`, by default $PATH.

    Raises RegistryError if `base` is `registry` and no builder can pull the base image, or if the Dockerfile pins no
    base.
    """
    if base == "local":
        return base
    builder = find_builder(path)
    problem = (
        f"neither Docker (with its daemon) nor buildah is here: {INSTALL}, or build without them: "
        "make images BASE=local"
        if not builder
        else unreachable(builder)
    )
    if not problem:
        return "registry"
    if base == "registry":
        raise RegistryError(problem)
    print(f"BASE=local: {problem.splitlines()[0]}", flush=True)
    return "local"


def find_builder(path: str | None = None) -> str:
    """Return `docker` if its daemon answers, otherwise `buildah` if it is installed, otherwise an empty string. Both
    are searched for on `path`, by default $PATH; Docker's daemon is asked with the `docker` on $PATH in any case."""
    if (
        shutil.which("docker", path=path)
        and subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0
    ):
        return "docker"
    if shutil.which("buildah", path=path):
        return "buildah"
    return ""


def base_image(text: str) -> str:
    """Return the base image that a Dockerfile pins, with its digest. `text` is the content of the Dockerfile. Raises
    RegistryError if it pins no base by digest."""
    pinned = re.search(r"^ARG PYTHON_IMAGE=(\S+@sha256:[0-9a-f]{64})$", text, re.MULTILINE)
    if not pinned:
        raise RegistryError(
            "deploy/Dockerfile pins no base by digest;"
            " valid: ARG PYTHON_IMAGE=python:3.13-slim-trixie@sha256:<64 digits>"
        )
    return pinned[1]


def unreachable(builder: str) -> str:
    """Try to pull the base image with this builder, which must be installed, for at most REACH_SECONDS. Returns why
    that failed, or an empty string if it succeeded. Raises RegistryError if the Dockerfile pins no base."""
    name = base_image(DOCKERFILE.read_text())
    try:
        done = subprocess.run(
            [builder, "pull", "--quiet", name],
            capture_output=True,
            text=True,
            timeout=REACH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{builder} did not pull {name} within {REACH_SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return f"{builder} cannot pull {name}: {lines[-1] if lines else 'no reason given'}"


def command(
    builder: str, architecture: str, reference: str, marks: Mapping[str, str], epoch: int
) -> list[str]:
    """Return the command with which Docker or buildah builds deploy/Dockerfile for one architecture. `marks` are the
    labels of the image, and `epoch` is its time."""
    options = [f"--label={key}={value}" for key, value in sorted(marks.items())]
    options += [
        f"--platform=linux/{architecture}",
        f"--build-arg=SOURCE_DATE_EPOCH={epoch}",
        f"--tag={reference}",
    ]
    verb = ["buildx", "build", "--load"] if builder == "docker" else ["build", f"--timestamp={epoch}"]
    return [builder, *verb, "--file", str(DOCKERFILE), *options, str(ROOT)]


def all_labels(origin: Origin) -> dict[str, str]:
    """Return the labels of an image that is built from the Dockerfile, including the name and the digest of the base
    image. Raises RegistryError if the Dockerfile pins no base."""
    base, _, digest = base_image(DOCKERFILE.read_text()).partition("@")
    return {**labels(origin, base), f"{PREFIX}.base.digest": digest}


def build(architectures: Sequence[str], reference: str) -> list[Image]:
    """Build the image for each of these architectures (an empty string stands for this machine's), save it as a
    docker-archive under build/images together with its bill of materials, and return the images. An empty
    `reference` stands for localhost/NAME:VERSION of the project. There must be a builder (`choose`).

    Raises RegistryError if the builder fails, whose output says why. ValueError of `read_origin` and WheelError of
    `native` pass through.
    """
    builder, origin = find_builder(), read_origin()
    reference = reference or f"localhost/{origin.name}:{origin.version}"
    marks = all_labels(origin)
    OUT.mkdir(parents=True, exist_ok=True)
    images = []
    for requested in architectures:
        architecture = requested or native()
        target = OUT / f"{origin.name}-{origin.version}-{architecture}.tar"
        target.unlink(missing_ok=True)
        for step in (
            command(builder, architecture, reference, marks, origin.epoch),
            save(builder, reference, target),
        ):
            environ = {**os.environ, "SOURCE_DATE_EPOCH": str(origin.epoch)}
            if status := subprocess.run(step, env=environ, check=False).returncode:
                raise RegistryError(f"{' '.join(step[:3])} ended with status {status}; see its output above")
        images.append(read(target))
        images[-1].write_sbom(origin)
    return images


def save(builder: str, reference: str, target: Path) -> list[str]:
    """Return the command that saves a built image to the archive `target`."""
    if builder == "docker":
        return ["docker", "save", "--output", str(target), reference]
    return ["buildah", "push", "--quiet", reference, f"docker-archive:{target}:{reference}"]


def main() -> int:
    """Print the epoch and the labels in the format of $GITHUB_OUTPUT, and return exit status 0. Raises as
    `read_origin` and `all_labels` do."""
    origin = read_origin()
    rows = [f"{key}={value}" for key, value in sorted(all_labels(origin).items())]
    print("\n".join((f"epoch={origin.epoch}", "labels<<END", *rows, "END")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
