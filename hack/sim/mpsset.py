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
"""Before this version, the daemon finds the configuration when it starts, and needs no notice."""
SKIPS_THREADS = (0, 20, 0)
SHORT_NAMES = (0, 21, 0)
"""From this version on, only the last part of a process name is compared. SIMULATED: it was read on the main branch."""


def mps_pod_spec(settings: SimSettings) -> JSON:
    """Return the fields of the pods' spec that decide whether the daemon learns of a configuration."""
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
    """Whether the daemon learns of a configuration: config-manager must find it by name, and survive hostPID."""
    containers = {container["name"]: container for container in spec["containers"]}
    daemon, manager = containers[DAEMON], containers[MANAGER]
    numbers = re.search(r":v?(\d+)\.(\d+)\.(\d+)", daemon["image"])
    version = tuple(int(number) for number in numbers.groups()) if numbers else SKIPS_THREADS
    if version < FALLBACK_FIRST:
        return True
    if spec.get("hostPID") and version < SKIPS_THREADS:
        return False
    signalled = next((row["value"] for row in manager["env"] if row["name"] == SIGNALLED), "")
    program = daemon["command"][0]
    if version >= SHORT_NAMES:
        signalled, program = signalled.rpartition("/")[2], program.rpartition("/")[2]
    return bool(signalled == program)
