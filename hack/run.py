"""`make run`: the operator of this checkout against $KUBECONFIG, with the roles of the chart and not as admin."""

import ctypes
import os
import signal
import sys

from hack.cache import UnavailableError, private_directory, say, state_root
from hack.cluster.api import ApiError
from hack.cluster.kubeconfig import KubeconfigError, kubeconfig_path
from hack.launch import (
    NAMESPACE,
    LaunchError,
    install_chart,
    node_software,
    operator_environment,
    operator_kubeconfig,
    own_environment,
)

PR_SET_PDEATHSIG = 1
"""The option of prctl(2) from linux/prctl.h."""
FACTOR = float(os.environ.get("FACTOR", "10"))


def main() -> int:
    """Replace this process's environment by the operator's and run it; returns only if it cannot be started."""
    end_with_parent()
    try:
        kubeconfig = kubeconfig_path()
        directory = private_directory(state_root()) / "operator"
        directory.mkdir(exist_ok=True)
        say(
            f"installing the chart into namespace {NAMESPACE} (operator.replicaCount=0, because the operator runs here)"
        )
        install_chart(kubeconfig, "--set", "operator.replicaCount=0")
        operator = operator_kubeconfig(kubeconfig, directory)
    except (KubeconfigError, UnavailableError, LaunchError, ApiError) as error:
        say(f"make run: {error}")
        return 2
    with node_software(kubeconfig, directory, FACTOR) as simulated:
        say(f"GPUs and NVIDIA software are SIMULATED, {FACTOR:g} times as fast as we assume the real ones to be")
        say(f"the log of the simulators: {simulated.log}")
        say("apply a policy in another shell: kubectl apply -f examples/pool-b.yaml; Ctrl-C ends")
        environment = operator_environment(FACTOR) | {"KUBECONFIG": str(operator), "GPUSHARING_LOG_FORMAT": "console"}
        for name in os.environ.keys() - own_environment().keys():
            del os.environ[name]
        os.environ.update(environment)
        from gpusharing.controller.main import main as run_operator

        run_operator()
    return 0


def end_with_parent() -> None:
    """Make Linux send us SIGTERM when our parent, such as make, ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
