"""`make images` builds the image, prints what it contains, and compares it with advisories. See
hack/images/__init__.py."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpusharing.planning.vocabulary.lengths import counted
from hack.cache import UnavailableError
from hack.images import advisories, local
from hack.images.contents import Image
from hack.images.debian import ARCHITECTURES, LockError
from hack.images.local import TreeError, too_big

TOO_BIG, FOUND = 1, 3
"""The exit statuses if an image is too big, and if an advisory names a part of an image that is not."""


def main(arguments: list[str] | None = None) -> int:
    """Build all images, report each, and return the exit status for all (`overall`)."""
    parser = argparse.ArgumentParser(prog="python -m hack.images", description="Build the image.")
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="default: this machine's")
    parser.add_argument("--image", default="", help="name and tag, such as registry.example/gpu-sharing-operator:0.1.0")
    parser.add_argument("--advisories", type=Path, help="a file in OSV's format to compare the contents with")
    options = parser.parse_args(arguments)
    try:
        known = advisories.read(options.advisories) if options.advisories else None
        images = [local.build(architecture, options.image) for architecture in options.arch or [""]]
    except (UnavailableError, LockError, TreeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return overall([report(image, known) for image in images])


def overall(statuses: Sequence[int]) -> int:
    return next((status for status in (TOO_BIG, FOUND) if status in statuses), 0)


def report(image: Image, known: list[advisories.Advisory] | None) -> int:
    """Print the facts of one image, and each match of an advisory with a part of it."""
    print(f"\n{image.reference} for {image.architecture}: {image.size / 1e6:.1f} MB compressed, {image.digest}")
    print(f"  archive  {image.archive}  (ctr -n k8s.io images import, docker load, podman load)")
    print(f"  SBOM     {image.sbom}  ({len(image.parts)} packages)")
    print(f"  compiled {image.compiled} modules")
    for layer in image.layers:
        print(f"  {len(layer.data) / 1e6:6.1f} MB  {layer.name}")
    if problem := too_big(image.size):
        print(problem, file=sys.stderr)
        return TOO_BIG
    if known is None:
        print("  advisories: not compared; to compare, name a file in OSV's format: ADVISORIES=osv.json")
        return 0
    hits = advisories.find(image.parts, known)
    print(f"  advisories: {len(known)} compared, {counted(len(hits), 'match', 'matches')} in the image")
    for hit in hits:
        fixed = f"fixed in {hit.fixed}" if hit.fixed else "no fixed version is named"
        print(f"    {hit.name} {hit.version}: {hit.advisory}, {fixed}: {hit.summary}")
    return FOUND if hits else 0


if __name__ == "__main__":
    sys.exit(main())
