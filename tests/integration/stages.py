"""The installations of NVIDIA's software, each on a control plane of its own, on which tests and the scenarios of the crash and the fault matrix play."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import wait_until
from hack.nvidia.installations import MIG_MANAGER_FOLDER, PCI, PLAIN_NAMESPACE, PLATFORM
from tests import plainchart
from tests.integration.product import CLUSTER_POLICY, FACTOR, SECONDS, Product

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, LABEL_GPU_PRESENT
from hack import launch

NAME, NAMESPACE = "nvidia-device-plugin-mps-control-daemon", "gpu-operator"
DAEMON_SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
DAEMON_SET = f"{DAEMON_SETS}/{NAME}"
CONFIG_MAP = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gpusharing-device-plugin"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
RIGHT, RELEASED = "mps-control-daemon", "/usr/bin/mps-control-daemon"
ASKED = {"repair_mps": "true"}
AUDITED = Options(audit=True)
LABELS = {PCI: "true", LABEL_DEPLOY_CLIENT: "true", LABEL_GPU_PRESENT: None}
"""What the how-to sets, Node Feature Discovery's, and none of the GPU Operator's that our chart goes by."""
PLAYED = (
    *("--gpu-operator-namespace", PLAIN_NAMESPACE),
    *("--plain-config", "gpusharing-device-plugin"),
    *("--plain-mig", "gpusharing-mig-parted"),
)


def deployable(raw: Object) -> Object:
    """A DaemonSet of tests/plainchart.py with what an API server wants besides."""
    labels = {"name": raw["metadata"]["name"]}
    template = raw["spec"]["template"]
    for container in template["spec"]["initContainers"]:
        container["image"] = "k8s-device-plugin:v0.19.3"
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, **template}}
    return {**raw, "metadata": {**raw["metadata"], "namespace": PLAIN_NAMESPACE}, "spec": spec}


@contextmanager
def own_product(
    directory: Path,
    values: str,
    *played: str,
    options: Options = AUDITED,
    policy: Object | None = None,
    **fields: Any,
) -> Iterator[Product]:
    """The GPU Operator's kinds, with ClusterPolicy's spec changed, our chart and SIMULATED node software; no operator. `values`: of the chart; `played`: options of the node software; `fields`: of Product."""
    with ControlPlane(options=options) as plane:
        install.install_gpu_operator(plane.api)
        if policy is not None:
            plane.api.merge_patch(CLUSTER_POLICY, {"spec": policy})
        launch.install_chart(plane.kubeconfig, "--set", f"operator.replicaCount=0,{values}".rstrip(","))
        with launch.node_software(plane.kubeconfig, directory, FACTOR, *played):
            yield Product(plane, directory, **fields)


@contextmanager
def repairing_product(directory: Path) -> Iterator[Product]:
    """NVIDIA's MPS DaemonSet, under a chart that may repair it."""
    with own_product(directory, "gpuOperator.repairMps=true", "--agent-interval", "1") as product:
        wait_until(lambda: product.exists(DAEMON_SET), SECONDS, "the simulated GPU Operator's DaemonSet")
        yield product


@contextmanager
def dra_product(
    directory: Path, values: str = "", options: Options = AUDITED, refused: tuple[str, str] | None = None
) -> Iterator[Product]:
    """The GPU Operator without its device plugin, and NVIDIA's DRA driver (SIMULATED). In the end nothing was refused to operator or agents but this (verb, resource)."""
    policy: Object = {"devicePlugin": {"enabled": False}, "migManager": {"version": "v0.15.1"}}
    played = ("--agent-interval", "1", "--dra")
    with own_product(directory, values, *played, options=options, policy=policy, plugin=False) as product:
        yield product
        assert [one for one in product.refused() if one[:2] != refused] == []


@contextmanager
def plain_product(directory: Path) -> Iterator[Product]:
    """NVIDIA's device-plugin chart with the selector and mig-manager without the GPU Operator (deploy/mig-manager), and our chart with the platform's values. In the end nothing was refused to operator or agents."""
    with ControlPlane(options=Options(audit=True)) as plane:
        plane.api.ensure("/api/v1/namespaces", {"metadata": {"name": PLAIN_NAMESPACE}})
        launch.install_chart(plane.kubeconfig, "-f", str(PLATFORM), "--set", "operator.replicaCount=0")
        sets = (plainchart.plugin(client="true"), plainchart.discovery(client="true"))
        install.apply_documents(plane.api, map(deployable, sets))
        plane.kubectl("apply", "-k", str(MIG_MANAGER_FOLDER))
        with launch.node_software(plane.kubeconfig, directory, FACTOR, "--agent-interval", "1", *PLAYED):
            product = Product(plane, directory, namespace=PLAIN_NAMESPACE, labels=LABELS)
            yield product
            assert product.refused() == []


Stage = Literal["usual", "plain", "dra", "repairing"]
"""`usual` is the GPU Operator of the fixture `product`. The others are in `OTHERS`."""


@dataclass(frozen=True)
class OwnStage:
    """An installation that needs a control plane of its own."""

    open: Callable[[Path], AbstractContextManager[Product]]
    """Starts everything except the operator; its files are in the folder."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of the operator there, by field."""

    @property
    def environment(self) -> dict[str, str]:
        return {f"GPUSHARING_{name.upper()}": text for name, text in self.settings.items()}


OTHERS: Mapping[str, OwnStage] = {
    "plain": OwnStage(plain_product, {"gpu_operator_namespace": PLAIN_NAMESPACE}),
    "dra": OwnStage(dra_product),
    "repairing": OwnStage(repairing_product, ASKED),
}
"""NVIDIA's device-plugin chart and mig-manager instead of the GPU Operator; NVIDIA's DRA driver instead of the device plugin; and the GPU Operator whose MPS DaemonSet the operator may repair."""


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
