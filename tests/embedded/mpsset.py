"""NVIDIA's MPS DaemonSet in a scene: what config-manager signals there, and how often the operator repaired it."""

import json
import re

from tests.embedded.scene import Scene

from gpusharing.kube.client import CONFIG_MAPS, DAEMON_SETS, EVENTS, JSON

DAEMON, NAMESPACE = "nvidia-device-plugin-mps-control-daemon", "gpu-operator"
RIGHT, RELEASED = "mps-control-daemon", "/usr/bin/mps-control-daemon"
DEAF = {"mps_signals": RELEASED}


def containers(scene: Scene) -> list[JSON]:
    found = scene.e.cluster.get(DAEMON_SETS, DAEMON, NAMESPACE)
    return list(found["spec"]["template"]["spec"]["containers"])


def signalled(scene: Scene) -> str:
    env = next(one["env"] for one in containers(scene) if one["name"] == "config-manager")
    return str(next(row["value"] for row in env if row["name"] == "PROCESS_TO_SIGNAL"))


def overwrite(scene: Scene, name: str = RELEASED) -> None:
    """Somebody writes the name of the process that config-manager signals: the GPU Operator, as it is released."""
    found = containers(scene)
    for one in found:
        one["env"] = [
            {**row, "value": name} if row["name"] == "PROCESS_TO_SIGNAL" else row for row in one.get("env", ())
        ]
    body = {"spec": {"template": {"spec": {"containers": found}}}}
    scene.e.cluster.patch(DAEMON_SETS, DAEMON, body, NAMESPACE)


def counted(scene: Scene) -> int:
    marks = scene.e.cluster.get(CONFIG_MAPS, "gpusharing-device-plugin", NAMESPACE)["metadata"]["annotations"]
    return int(json.loads(marks["gpusharing.dev/mps-repairs"])["count"])


def reported(scene: Scene) -> list[str]:
    """Which repairs have an Event, each once; one that was interrupted may have several."""
    notes = [raw["note"] for raw in scene.e.cluster.objects(EVENTS) if raw["reason"] == "MPSDaemonRepaired"]
    return sorted({match[0] for note in notes if (match := re.search(r"repair \d of \d", note))})
