"""NVIDIA's MPS DaemonSet on a real API server, under a chart that may repair it (chart value gpuOperator.repairMps)."""

from copy import deepcopy
from typing import Any

from hack.cluster.api import Object
from tests.integration.product import Product

NAME, NAMESPACE = "nvidia-device-plugin-mps-control-daemon", "gpu-operator"
DAEMON_SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
DAEMON_SET = f"{DAEMON_SETS}/{NAME}"
CONFIG_MAP = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gpusharing-device-plugin"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
RIGHT, RELEASED = "mps-control-daemon", "/usr/bin/mps-control-daemon"
ASKED = {"repair_mps": "true"}


def containers(product: Product) -> dict[str, Object]:
    """The DaemonSet's containers by name, to change and to write back."""
    found = product.api.get(DAEMON_SET)["spec"]["template"]["spec"]["containers"]
    return {one["name"]: deepcopy(one) for one in found}


def template(found: dict[str, Object], **more: Any) -> Object:
    return {"spec": {"template": {"spec": {"containers": list(found.values()), **more}}}}


def signal(product: Product, to: str = RIGHT, name: str = "PROCESS_TO_SIGNAL", where: str = "config-manager") -> Object:
    """A patch that sets one environment variable of one container."""
    found = containers(product)
    rows = [row for row in found[where].get("env", ()) if row["name"] != name]
    index = next((i for i, row in enumerate(found[where].get("env", ())) if row["name"] == name), len(rows))
    rows.insert(index, {"name": name, "value": to})
    found[where]["env"] = rows
    return template(found)


def overwrite(product: Product) -> None:
    """The GPU Operator, or somebody else, writes the DaemonSet as it is released."""
    product.api.merge_patch(DAEMON_SET, signal(product, RELEASED))


def signalled(product: Product) -> str:
    env = containers(product)["config-manager"]["env"]
    return str(next(row["value"] for row in env if row["name"] == "PROCESS_TO_SIGNAL"))


def told(product: Product) -> list[str]:
    """The notes of the Events about repairs, oldest first."""
    rows = [one for one in product.api.list(EVENTS) if one["reason"] == "MPSDaemonRepaired"]
    return [row["note"] for row in sorted(rows, key=lambda row: str(row["eventTime"]))]
