"""Which pages a test runs, in which order, and with which programs."""

import os

from hack.cluster import toolchain

TUTORIAL = "docs/tutorial/first-policy.md"
"""On a cluster of its own, which its first command makes."""
ON_CLUSTER = (
    "docs/how-to/install.md",
    "docs/how-to/platforms.md",
    "docs/how-to/retry-a-failed-node.md",
    "docs/how-to/fix-a-blocked-node.md",
    "docs/how-to/decide-who-leaves-how.md",
    "docs/how-to/roll-out-at-night.md",
    "docs/how-to/stop-everything.md",
    "docs/how-to/many-clusters.md",
    "docs/how-to/upgrade.md",
    "docs/how-to/uninstall.md",
)
"""One after the other on one control plane with SIMULATED nodes, from the installation to the end."""
MIGRATION = "docs/how-to/migrate-from-time-slicing-to-mig.md"
"""In tests/integration/test_migration.py, which looks at every pod meanwhile."""


def own_path() -> str:
    """Return the PATH with our kubectl and helm in front; they are built where they are missing."""
    ours = (toolchain.control_plane_programs().kubectl.parent, toolchain.program("helm").parent)
    return ":".join([*map(str, ours), os.environ["PATH"]])
