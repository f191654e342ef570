"""Which version of the plugin this is."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "gpu-sharing-operator"


def own_version() -> str:
    """That of the installed distribution; empty if it is not installed but found through a path."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return ""
