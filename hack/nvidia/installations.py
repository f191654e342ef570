"""The installations of NVIDIA's programs that the tests run: the GPU Operator's DaemonSets, the same with NVIDIA's DRA
driver in place of the device plugin (docs/how-to/dra.md), and the chart of NVIDIA's device plugin with mig-manager
beside it (docs/how-to/mig-without-gpu-operator.md)."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from gpusharing.api import names
from hack import launch
from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane
from hack.nvidia import build, operands

PCI = "feature.node.kubernetes.io/pci-10de.present"
"""The label with which Node Feature Discovery marks nodes that have a PCI device of NVIDIA."""


@dataclass(frozen=True)
class Installation:
    """How NVIDIA's programs are installed in a cluster, and what our product needs to know about it."""

    namespace: str
    kept: tuple[str, ...]
    """The prefixes of NVIDIA's labels that a person or an operator writes to a new node."""
    prepare: Callable[[ControlPlane], None]
    """Create what must exist before our chart is installed."""
    install: Callable[[ControlPlane], None]
    """Create NVIDIA's DaemonSets once our chart is installed."""
    labels: Mapping[str, str] = field(default_factory=dict)
    chart: tuple[str, ...] = ()
    accounts: Mapping[str, str] = field(default_factory=dict)


# --- the GPU Operator --------------------------------------------------------------------------------------

GPU_OPERATOR = Installation(
    namespace=install.GPU_OPERATOR_NAMESPACE,
    kept=(names.LABEL_GPU_PRESENT, names.LABEL_MIG_CONFIG, names.LABEL_DEPLOY_PREFIX),
    prepare=lambda plane: install.install_gpu_operator(plane.api),
    install=lambda plane: operands.install(plane.api),
)

# --- NVIDIA's DRA driver -----------------------------------------------------------------------------------

CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"


WITHOUT_PLUGIN: Object = {"devicePlugin": {"enabled": False, "config": None}, "migManager": {"version": "v0.15.1"}}
"""The change of ClusterPolicy's spec that switches the device plugin off, as docs/how-to/dra.md has it."""


def _prepare_dra(plane: ControlPlane) -> None:
    """Install the stand-ins without a device plugin, and with a mig-manager that restarts DRA drivers."""
    install.install_gpu_operator(plane.api)
    plane.api.merge_patch(CLUSTER_POLICY, {"spec": WITHOUT_PLUGIN})


DRA = replace(GPU_OPERATOR, prepare=_prepare_dra, install=lambda plane: operands.install(plane.api, dra=True))

# --- NVIDIA's device-plugin chart and mig-manager ----------------------------------------------------------

PLAIN_NAMESPACE, RELEASE = "nvidia-device-plugin", "nvdp"
MIG_MANAGER_FOLDER = launch.ROOT / "deploy" / "mig-manager"
PLATFORM = launch.CHART / "platforms" / "device-plugin-chart.yaml"
MIG_MANAGER_ACCOUNT = "nvidia-mig-manager"
PLUGIN_ACCOUNT = f"{RELEASE}-nvidia-device-plugin-service-account"


def copy_plugin_chart(folder: Path) -> Path:
    """Copy NVIDIA's chart without Node Feature Discovery, its only dependency."""
    release = build.DEVICE_PLUGIN
    source = build.module_folder(release, release.module) / "deployments" / "helm" / "nvidia-device-plugin"
    chart = folder / "nvidia-device-plugin"
    # Go's copy is read-only, and `copyfile` does not copy the mode of a file.
    shutil.copytree(source, chart, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns("charts"))
    chart.chmod(0o700)
    metadata = chart / "Chart.yaml"
    metadata.write_text(yaml.safe_dump({**yaml.safe_load(metadata.read_text()), "dependencies": []}))
    return chart


def install_plugin_chart(plane: ControlPlane, *arguments: str) -> None:
    """Install NVIDIA's device-plugin chart with the how-to's values, or upgrade it."""
    copies = plane.directory / "charts"
    shutil.rmtree(copies, ignore_errors=True)
    chart = copy_plugin_chart(copies)
    values = ("-f", str(MIG_MANAGER_FOLDER / "device-plugin-values.yaml"))
    upgrade = ("upgrade", "--install", RELEASE, str(chart), "--namespace", PLAIN_NAMESPACE)
    done = launch.helm({**os.environ, "KUBECONFIG": str(plane.kubeconfig)}, *upgrade, *values, *arguments)
    if done.returncode:
        raise launch.LaunchError(f"helm could not install NVIDIA's chart: {done.stderr.strip()}")


def mig_manager_manifests(plane: ControlPlane) -> Iterable[Object]:
    """Return the objects that `kubectl apply -k deploy/mig-manager` would create."""
    return [one for one in yaml.safe_load_all(plane.kubectl("kustomize", str(MIG_MANAGER_FOLDER))) if one]


def _create_namespace(plane: ControlPlane) -> None:
    plane.api.ensure("/api/v1/namespaces", {"metadata": {"name": PLAIN_NAMESPACE}})


def _install_plain(plane: ControlPlane) -> None:
    (hold,) = operands.HOLD.items()
    key, value = hold[0].replace(".", r"\."), hold[1]
    install_plugin_chart(plane, "--set-string", f"podAnnotations.{key}={value}")
    manifests = list(mig_manager_manifests(plane))
    for manifest in manifests:
        if manifest["kind"] == "DaemonSet":
            manifest["spec"]["template"]["metadata"]["annotations"] = operands.HOLD
    install.apply_documents(plane.api, manifests)


PLAIN = Installation(
    namespace=PLAIN_NAMESPACE,
    kept=(f"{names.LABEL_DEPLOY_PREFIX}mig-manager",),
    prepare=_create_namespace,
    install=_install_plain,
    labels={PCI: "true", names.LABEL_DEPLOY_CLIENT: "true"},
    chart=("-f", str(PLATFORM)),
    accounts={"nvidia-mig-manager": MIG_MANAGER_ACCOUNT, "config-manager": PLUGIN_ACCOUNT},
)
