"""Which pages a test runs, and in which order."""

TUTORIAL = "docs/tutorial/first-policy.md"
"""On a cluster of its own, which its first command makes."""
ON_CLUSTER = (
    "docs/how-to/install.md",
    "docs/how-to/platforms.md",
    "docs/how-to/retry-a-failed-node.md",
    "docs/how-to/fix-a-blocked-node.md",
    "docs/how-to/roll-out-at-night.md",
    "docs/how-to/upgrade.md",
    "docs/how-to/uninstall.md",
)
"""One after the other on one control plane with SIMULATED nodes, from the installation to the end."""
MIGRATION = "docs/how-to/migrate-from-time-slicing-to-mig.md"
"""In tests/integration/test_migration.py, which looks at every pod meanwhile."""
