"""NVIDIA's DRA driver on real nodes, from its own chart, after the how-to (docs/how-to/dra.md).

SIMULATED: the driver's files and /proc/devices. hack/realnode/README.md says what does not run.
"""

import os
import shutil
import stat
from collections.abc import Sequence

import yaml

from hack import launch
from hack.cluster import install
from hack.cluster.api import Object
from hack.cluster.controlplane import ControlPlane
from hack.nvidia import build
from hack.nvmlsim.build import LIBRARY, library_directory
from hack.realnode.images import LOADING, c_program
from hack.realnode.node import RUNTIME_CLASS, KubeletNode
from hack.realnode.nvidiaimage import NVIDIA_IMAGE, PROC_DEVICES
from hack.realnode.runtime import NULL_DEVICE

RELEASE = "dra-driver-nvidia-gpu"
REPOSITORY = f"localhost/{RELEASE}"
DRIVER_ROOT = "/run/nvidia/driver"
"""The folder on the node in which the GPU Operator's driver container shows the driver's files."""
CDI = "/run/cdi"
"""The folder on the node in which the plugin writes a CDI specification for each claim that it has prepared."""
VALUES = {
    "gpuResourcesEnabledOverride": "true",
    "nvidiaDriverRoot": DRIVER_ROOT,
    "image.repository": REPOSITORY,
    "resources.computeDomains.enabled": "false",
    "nvidiaCDIHookPath": "/usr/bin/true",
    "resourceApiVersion": "resource.k8s.io/v1",
}


def install_dra(nodes: Sequence[KubeletNode]) -> list[Object]:
    """Install NVIDIA's chart with the how-to's values, changed so that it runs here; return its objects."""
    for node in nodes:
        node.ctr("images", "tag", "--force", NVIDIA_IMAGE, f"{REPOSITORY}:{build.DRA_DRIVER.version}")
        write_driver(node)
    manifests = [_on_this_machine(one) for one in chart_manifests(nodes[0].plane)]
    install.apply_documents(nodes[0].plane.api, manifests)
    return manifests


def write_driver(node: KubeletNode) -> None:
    """Write the SIMULATED driver, with device files that are those of /dev/null, to DRIVER_ROOT of a node."""
    assert node.gpus is not None, "the node has GPUs"
    shown, root = node.gpus.simulator.show(), node.machine.path(DRIVER_ROOT)
    for folder in ("usr/lib64", "usr/bin", "dev"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    library, smi = root / "usr/lib64" / LIBRARY, root / "usr/bin/nvidia-smi"
    versioned = library.with_name(f"libnvidia-ml.so.{shown['driver']}")
    for file in (library, smi, versioned):
        file.unlink(missing_ok=True)
    shutil.copy(library_directory() / LIBRARY, versioned)
    library.symlink_to(versioned.name)
    shutil.copy(c_program("nvidia-smi", LOADING), smi)
    for name in ("nvidiactl", *(f"nvidia{gpu['index']}" for gpu in shown["gpus"])):
        if not (device := root / "dev" / name).exists():
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(*NULL_DEVICE))


def chart_manifests(plane: ControlPlane) -> list[Object]:
    """Return the objects of NVIDIA's chart with VALUES, as helm renders them; nothing is created."""
    chart = build.module_folder(build.DRA_DRIVER, build.DRA_DRIVER.module) / "deployments" / "helm" / RELEASE
    values = ",".join(f"{key}={value}" for key, value in VALUES.items())
    command = ("template", RELEASE, str(chart), "--namespace", install.GPU_OPERATOR_NAMESPACE, "--set", values)
    done = launch.helm({**os.environ, "KUBECONFIG": str(plane.kubeconfig)}, *command)
    if done.returncode:
        raise launch.LaunchError(f"helm could not render the DRA driver's chart: {done.stderr.strip()}")
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def _on_this_machine(manifest: Object) -> Object:
    if manifest["kind"] != "DaemonSet":
        return manifest
    pod = manifest["spec"]["template"]["spec"]
    pod["runtimeClassName"] = RUNTIME_CLASS
    del pod["initContainers"]
    (container,) = pod["containers"]
    container["command"], container["args"] = ["/usr/bin/gpu-kubelet-plugin"], ["-v", "6"]
    (visible,) = (row for row in container["env"] if row["name"] == "NVIDIA_VISIBLE_DEVICES")
    visible["value"] = "all"
    container["env"].append({"name": "ALT_PROC_DEVICES_PATH", "value": PROC_DEVICES})
    return manifest
