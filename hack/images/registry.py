"""Build deploy/Dockerfile with Docker or buildah, where a registry serves its base.

`python -m hack.images.registry` prints what a builder must be told besides, as outputs of a step of a hosted workflow:
`epoch`, and the labels, one in a line.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hack.generate import ROOT
from hack.images.contents import PREFIX, Image, Origin, labels, read_origin
from hack.images.saved import read
from hack.images.wheels import native

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
OUT = ROOT / "build" / "images"
INSTALL = "apt-get install buildah"
REACH_SECONDS = 20


class RegistryError(Exception):
    """The image cannot be built from a registry. The text says why and what to do."""


def choose(base: str, path: str | None = None) -> str:
    """`registry` or `local`; `auto` takes the registry where a builder (on `path`, else $PATH) reaches it.

    Raises:
        RegistryError: the registry is asked for, and no builder reaches it.
    """
    if base == "local":
        return base
    builder = find_builder(path)
    problem = (
        f"neither Docker (with its daemon) nor buildah is here: {INSTALL}, or build without: make images BASE=local"
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
    """`docker` when its daemon answers, else `buildah`, else nothing."""
    if (
        shutil.which("docker", path=path)
        and _quiet("docker", "version", "--format", "{{.Server.Version}}") == 0
    ):
        return "docker"
    if shutil.which("buildah", path=path):
        return "buildah"
    return ""


def base_image(text: str) -> str:
    """The base that a Dockerfile pins.

    Raises:
        RegistryError: it pins none by digest.
    """
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+@sha256:[0-9a-f]{64})$", text, re.MULTILINE)
    if not found:
        raise RegistryError(
            "deploy/Dockerfile pins no base by digest;"
            " valid: ARG PYTHON_IMAGE=python:3.13-slim-trixie@sha256:<64 digits>"
        )
    return found[1]


def unreachable(builder: str) -> str:
    """Why the base cannot be pulled; empty when it can."""
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
        return f"{builder} pulls {name} not within {REACH_SECONDS} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return f"{builder} cannot pull {name}: {said[-1] if said else 'no reason given'}"


def command(
    builder: str, architecture: str, reference: str, marks: Mapping[str, str], epoch: int
) -> list[str]:
    """The call that builds for one architecture."""
    options = [f"--label={key}={value}" for key, value in sorted(marks.items())]
    options += [
        f"--platform=linux/{architecture}",
        f"--build-arg=SOURCE_DATE_EPOCH={epoch}",
        f"--tag={reference}",
    ]
    verb = ["buildx", "build", "--load"] if builder == "docker" else ["build", f"--timestamp={epoch}"]
    return [builder, *verb, "--file", str(DOCKERFILE), *options, str(ROOT)]


def all_labels(origin: Origin) -> dict[str, str]:
    """Those of every image of ours, with name and digest of the Dockerfile's base."""
    base, _, digest = base_image(DOCKERFILE.read_text()).partition("@")
    return {**labels(origin, base), f"{PREFIX}.base.digest": digest}


def build(architectures: Sequence[str], reference: str) -> list[Image]:
    """Build, save as docker-archives under build/images, and write a bill of materials beside each.

    Raises:
        RegistryError: the builder failed; it has said why.
    """
    builder, origin = find_builder(), read_origin()
    reference = reference or f"localhost/{origin.name}:{origin.version}"
    marks = all_labels(origin)
    OUT.mkdir(parents=True, exist_ok=True)
    images = []
    for wanted in architectures:
        architecture = wanted or native()
        target = OUT / f"{origin.name}-{origin.version}-{architecture}.tar"
        target.unlink(missing_ok=True)
        for step in (
            command(builder, architecture, reference, marks, origin.epoch),
            save(builder, reference, target),
        ):
            environ = {**os.environ, "SOURCE_DATE_EPOCH": str(origin.epoch)}
            if status := subprocess.run(step, env=environ, check=False).returncode:
                raise RegistryError(f"{' '.join(step[:3])} ended with status {status}, see above")
        images.append(read(target))
        images[-1].write_sbom(origin)
    return images


def save(builder: str, reference: str, target: Path) -> list[str]:
    """The call that writes a built image as an archive."""
    if builder == "docker":
        return ["docker", "save", "--output", str(target), reference]
    return ["buildah", "push", "--quiet", reference, f"docker-archive:{target}:{reference}"]


def _quiet(*arguments: str) -> int:
    return subprocess.run(arguments, capture_output=True, check=False).returncode


def main() -> int:
    """Exit status 0; standard output is for $GITHUB_OUTPUT."""
    origin = read_origin()
    rows = [f"{key}={value}" for key, value in sorted(all_labels(origin).items())]
    print("\n".join((f"epoch={origin.epoch}", "labels<<END", *rows, "END")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
