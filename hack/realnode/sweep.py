"""`python -m hack.realnode.sweep`: remove what runs of rung 4 have left that were killed; those that live keep theirs.

The next run does so, too. This is for a machine on which there may be no next one.
"""

from hack.cache import private_directory, state_root
from hack.cluster import state
from hack.cluster.process import wait_until
from hack.realnode import cgroups, network, node

SECONDS = 60.0


def main() -> None:
    """End control planes; remove bridges, cgroups and folders.

    Raises:
        TimeoutError: a process of a killed owner lives on in its cgroup.
        NetworkError: `ip` refuses to remove a bridge.
    """
    state.sweep(private_directory(state_root()))
    network.sweep()
    wait_until(lambda: not cgroups.sweep(), SECONDS, f"no cgroup {cgroups.PREFIX}* to be in use")
    node.sweep()


if __name__ == "__main__":
    main()
