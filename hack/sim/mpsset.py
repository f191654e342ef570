"""What the SIMULATED GPU Operator writes into the pods of its MPS DaemonSet, and whether config-manager reaches the
daemon there (docs/design/nvidia.md#b5).

Names are those of gpu-operator assets/state-mps-control-daemon/0400_daemonset.yaml.
"""

import re

from gpusharing.kube.client import JSON
from hack.sim.settings import SimSettings

PROGRAM = "mps-control-daemon"
DAEMON, MANAGER = f"{PROGRAM}-ctr", "config-manager"
SIGNALLED = "PROCESS_TO_SIGNAL"
FALLBACK_FIRST = (0, 18, 2)
SKIPS_THREADS = (0, 20, 0)


def mps_pod_spec(settings: SimSettings) -> JSON:
    """Return the fields of the pods' spec that decide whether the daemon learns of a configuration: `hostPID`, which is
    always set, and the two containers, whose images have the version of `settings.plugin`. config-manager's environment
    names the process `settings.mps_signals`."""
    image = f"simulated/k8s-device-plugin:v{settings.plugin}"
    signal = [{"name": "SEND_SIGNAL", "value": "true"}, {"name": SIGNALLED, "value": settings.mps_signals}]
    return {
        "hostPID": True,
        "containers": [
            {"name": DAEMON, "image": image, "command": [PROGRAM]},
            {"name": MANAGER, "image": image, "command": [MANAGER], "env": signal},
        ],
    }


def is_notified(spec: JSON) -> bool:
    """Whether config-manager, in a pod with this spec, tells the daemon which configuration the label names. Raises
    KeyError unless the spec has both containers, with image, command and env. An image whose tag shows no version
    counts as 0.20.

    The answer is True before 0.18.2, where the daemon finds the configuration when it starts. From 0.18.2 on it is
    True only if the process name that config-manager looks for is exactly the daemon's. Before 0.20 it is also False
    if the pod has `hostPID`, because config-manager panics at the first thread of the host's kernel.
    """
    containers = {container["name"]: container for container in spec["containers"]}
    daemon, manager = containers[DAEMON], containers[MANAGER]
    numbers = re.search(r":v?(\d+)\.(\d+)\.(\d+)", daemon["image"])
    version = tuple(int(number) for number in numbers.groups()) if numbers else SKIPS_THREADS
    if version < FALLBACK_FIRST:
        return True
    if spec.get("hostPID") and version < SKIPS_THREADS:
        return False
    signalled = next((row["value"] for row in manager["env"] if row["name"] == SIGNALLED), "")
    return bool(signalled == daemon["command"][0])
