"""The version of this software, as it is installed."""

import sys
from pathlib import Path


def own_version() -> str:
    """Return the version in the name of the metadata folder of the package gpu-sharing-operator
    (NAME-VERSION.dist-info). The first such folder in a folder of sys.path counts. Return an empty string if there is
    none, as in a source folder without an installation.

    `importlib.metadata` would cost each agent half a MiB.
    """
    for folder in sys.path:
        for metadata in Path(folder).glob("gpu_sharing_operator-*.dist-info"):
            return metadata.name.removesuffix(".dist-info").partition("-")[2]
    return ""
