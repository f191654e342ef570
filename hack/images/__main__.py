"""`make images`: see hack/images/__init__.py."""

import argparse
import sys

from hack.images import local
from hack.images.debian import FetchError
from hack.images.packages import ARCHITECTURES, LockError
from hack.images.wheels import WheelError


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every image is written."""
    parser = argparse.ArgumentParser(prog="python -m hack.images", description="Build the image.")
    parser.add_argument("--arch", choices=ARCHITECTURES, action="append", help="this machine's without it")
    parser.add_argument(
        "--image", default="", help="name and tag, as registry.example/gpu-sharing-operator:0.1.0"
    )
    options = parser.parse_args(arguments)
    try:
        for architecture in options.arch or [""]:
            image = local.build(architecture, options.image)
            print(f"{image.archive} {image.reference} {image.digest}")
            for layer in image.layers:
                print(
                    f"  {layer.name:30} {layer.size / 1e6:6.1f} MB {len(layer.data) / 1e6:6.1f} MB compressed"
                )
    except (FetchError, WheelError, LockError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
