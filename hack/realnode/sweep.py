"""`python -m hack.realnode.sweep` removes what killed runs of rung 4 have left behind. Runs that are alive are not
touched.

The next run does the same. This is for a machine on which there may be no next run.
"""

from hack.cache import private_directory, state_root
from hack.cluster import state
from hack.cluster.process import wait_until
from hack.realnode import cgroups, network, node

SECONDS = 60.0


def main() -> None:
    """End control planes and remove bridges, cgroups and folders of killed owners.

    Raises:
        TimeoutError: a process of a killed owner is still running in its cgroup.
        NetworkError: `ip` refuses to remove a bridge.
    """
    state.sweep(private_directory(state_root()))
    network.sweep()
    wait_until(lambda: not cgroups.sweep(), SECONDS, f"no cgroup {cgroups.PREFIX}* to be in use")
    node.sweep()


if __name__ == "__main__":
    main()
