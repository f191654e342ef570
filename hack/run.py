"""`make run`: the operator of this checkout against $KUBECONFIG, under the roles of the chart, not as admin."""

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path

from hack.cache import UnavailableError
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
"""linux/prctl.h"""
FACTOR = float(os.environ.get("FACTOR", "10"))


def main() -> int:
    """Install the chart with the operator scaled to 0, play SIMULATED node software, run the operator here."""
    end_with_parent()
    try:
        kubeconfig = kubeconfig_path()
        directory = Path(tempfile.mkdtemp(prefix="gpusharing-run-"))
        say(f"installing the chart into namespace {NAMESPACE} (operator.replicas=0: it runs here)")
        install_chart(kubeconfig, "--set", "operator.replicas=0")
        operator = operator_kubeconfig(kubeconfig, directory)
    except (KubeconfigError, UnavailableError, LaunchError, ApiError) as error:
        say(f"make run: {error}")
        return 2
    with node_software(kubeconfig, directory, FACTOR) as simulated:
        say(f"SIMULATED GPUs and NVIDIA software, {FACTOR:g} times as fast as we assume the real ones to be")
        say(f"log: {simulated.log}")
        say("apply a policy in another shell: kubectl apply -f examples/pool-b.yaml; Ctrl-C ends")
        environment = operator_environment(FACTOR) | {
            "KUBECONFIG": str(operator),
            "GPUSHARING_LOG_FORMAT": "console",
        }
        for name in os.environ.keys() - own_environment().keys():
            del os.environ[name]
        os.environ.update(environment)
        from gpusharing.controller.main import main as run_operator

        run_operator()
    return 0


def end_with_parent() -> None:
    """On Linux: SIGTERM for us when make, or whoever started us, is killed. Elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def say(text: str) -> None:
    """To the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
