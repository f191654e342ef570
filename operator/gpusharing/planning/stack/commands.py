"""Commands that messages tell people to run."""


def patch_command(cluster_policy: str, json: str) -> str:
    """The one that merges this JSON into the ClusterPolicy of this name."""
    return f"kubectl patch clusterpolicy {cluster_policy} --type merge -p '{json}'"
