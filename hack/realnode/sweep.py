"""`python -m hack.realnode.sweep` removes what killed tests with real kubelets (rung 4) have left behind. Tests whose
process is alive are not touched.

The next run of rung 4 does the same. The command is for a machine on which there may be no next run.
"""

from hack.cache import private_directory, state_root
from hack.cluster import state
from hack.cluster.process import wait_until
from hack.realnode import cgroups, network, node

SECONDS = 60.0


def main() -> None:
    state.sweep(private_directory(state_root()))
    network.sweep()
    wait_until(lambda: not cgroups.sweep(), SECONDS, f"no cgroup {cgroups.PREFIX}* to be in use")
    node.sweep()


if __name__ == "__main__":
    main()
