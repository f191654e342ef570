"""`make images`: see hack/images/__init__.py."""

import argparse
import sys
from pathlib import Path

from hack.cache import UnavailableError
from hack.images import advisories, local, registry
from hack.images.contents import Image
from hack.images.debian import ARCHITECTURES, LockError
from hack.images.local import TreeError, by_kind, table, too_big

BASES = ("auto", "local", "registry")
FOUND = 3
"""Exit status when an advisory names something that the image holds."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every image is written, small enough, and no advisory names a part of it."""
    parser = argparse.ArgumentParser(prog="python -m hack.images", description="Build the image.")
    parser.add_argument(
        "--base",
        choices=BASES,
        default="auto",
        help="local: Debian packages, no registry; registry: deploy/Dockerfile with Docker or buildah;"
        " auto: registry where one of them runs and reaches the base, else local",
    )
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="this machine's without it")
    parser.add_argument(
        "--image", default="", help="name and tag, such as registry.example/gpu-sharing-operator:0.1.0"
    )
    parser.add_argument("--advisories", type=Path, help="a file in OSV's format to compare the contents with")
    options = parser.parse_args(arguments)
    try:
        known = advisories.read(options.advisories) if options.advisories else None
        base = registry.choose(options.base)
        if base == "registry":
            return max(tell(image, known) for image in registry.build(options.arch or [""], options.image))
        images = [local.build(architecture, options.image) for architecture in options.arch or [""]]
    except (UnavailableError, LockError, TreeError, registry.RegistryError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return max(tell(image, known) for image in images)


def tell(image: Image, known: list[advisories.Advisory] | None) -> int:
    """Say what one image is; its exit status."""
    print(
        f"\n{image.reference} for {image.architecture}: {image.size / 1e6:.1f} MB compressed, {image.digest}"
    )
    print(f"  archive  {image.archive}  (ctr -n k8s.io images import, docker load, podman load)")
    print(f"  SBOM     {image.sbom}  ({len(image.parts)} packages)")
    print(f"  compiled {image.compiled} modules")
    if image.tree:
        print(table(by_kind(image.tree), image.size))
    if problem := too_big(image.size):
        print(problem, file=sys.stderr)
        return 1
    if known is None:
        print("  advisories: not compared; ADVISORIES=osv.json compares with a file in OSV's format")
        return 0
    found = advisories.find(image.parts, known)
    print(f"  advisories: {len(known)} compared, {len(found)} name something in the image")
    for one in found:
        fixed = f"fixed in {one.fixed}" if one.fixed else "no fixed version named"
        print(f"    {one.name} {one.version}: {one.advisory}, {fixed}: {one.summary}")
    return FOUND if found else 0


if __name__ == "__main__":
    sys.exit(main())
