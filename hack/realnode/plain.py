"""MIG without the GPU Operator on real nodes: NVIDIA's device-plugin chart and deploy/mig-manager, after the how-to.

SIMULATED: both images are the one of `nvidiaimage.py`, and Node Feature Discovery copies the file that GPU Feature
Discovery writes.
"""

import json
from collections.abc import Sequence

from gpusharing.api import names
from hack.cluster import install
from hack.cluster.api import Api, Object
from hack.nvidia import build
from hack.nvidia.installations import PCI, PLAIN_NAMESPACE, RELEASE, install_plugin_chart, mig_manager_manifests
from hack.nvidia.operands import GFD, GFD_SECONDS, MIG_MANAGER
from hack.realnode.node import RUNTIME_CLASS, KubeletNode
from hack.realnode.nvidiaimage import NVIDIA_IMAGE
from hack.realnode.operands import FEATURES, HOST_ROOT

PLUGIN_REPOSITORY = "localhost/nvidia/k8s-device-plugin"
PLUGIN_IMAGE = f"{PLUGIN_REPOSITORY}:{build.DEVICE_PLUGIN.version}"
GFD_DAEMON_SET = f"{RELEASE}-nvidia-device-plugin-{GFD}"


def label_node(api: Api, node: str) -> None:
    """Give a node the labels of the how-to's first step, and that of Node Feature Discovery."""
    labels = api.get(f"/api/v1/nodes/{node}")["metadata"]["labels"]
    others = [key for key in labels if key.startswith((names.LABEL_DEPLOY_PREFIX, names.LABEL_GPU_PRESENT))]
    wanted = {PCI, names.LABEL_DEPLOY_CLIENT, f"{names.LABEL_DEPLOY_PREFIX}mig-manager"}
    changed: Object = dict.fromkeys(others) | dict.fromkeys(wanted, "true")
    api.merge_patch(f"/api/v1/nodes/{node}", {"metadata": {"labels": changed}})


def install_plain(nodes: Sequence[KubeletNode]) -> None:
    """Install NVIDIA's chart and mig-manager as the how-to says. Call `label_node` afterwards: earlier pods would write
    to this machine's /etc."""
    plane = nodes[0].plane
    manifests = [_on_this_machine(one) for one in mig_manager_manifests(plane)]
    (manager,) = (one for one in manifests if one["kind"] == "DaemonSet")
    (container,) = manager["spec"]["template"]["spec"]["containers"]
    for node in nodes:
        for image in (PLUGIN_IMAGE, container["image"]):
            node.ctr("images", "tag", "--force", NVIDIA_IMAGE, image)
    values = (f"image.repository={PLUGIN_REPOSITORY}", f"runtimeClassName={RUNTIME_CLASS}")
    install_plugin_chart(plane, "--set", ",".join((*values, f"sleepInterval={GFD_SECONDS}")))
    features = {"name": "output-dir", "hostPath": {"path": FEATURES, "type": "DirectoryOrCreate"}}
    in_file = {"name": f"{GFD}-ctr", "env": [{"name": "GFD_USE_NODE_FEATURE_API", "value": "false"}]}
    pod = {"spec": {"containers": [in_file], "volumes": [features]}}
    plane.kubectl(
        "patch", "-n", PLAIN_NAMESPACE, "daemonset", GFD_DAEMON_SET, "-p",
        json.dumps({"spec": {"template": pod}}),
    )  # fmt: skip
    install.apply_documents(plane.api, manifests)


def _on_this_machine(manifest: Object) -> Object:
    if manifest["kind"] != "DaemonSet":
        return manifest
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pod["runtimeClassName"] = RUNTIME_CLASS
    container["image"] = container["image"].replace("REGISTRY", "localhost")
    container["command"] = ["/usr/bin/enter", f"/usr/bin/{MIG_MANAGER}"]
    container["env"].append({"name": "NVIDIA_MIG_CONFIG_DEVICES", "value": "all"})
    (root,) = (volume for volume in pod["volumes"] if volume["name"] == "host-root")
    root["hostPath"]["path"] = HOST_ROOT
    return manifest
