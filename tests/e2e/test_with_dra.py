"""NVIDIA's DRA driver in place of the device plugin, on real kubelets: NVIDIA's chart and kubelet plugin, and containerd
with CDI.

It runs before the file that takes the GPU Operator away. SIMULATED as in the other files: GPUs, driver, and the process
that uses the devices of a container. The scheduler, the claims, NodePrepareResources and the CDI devices are real.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hack.cluster import install
from hack.cluster.api import ApiError, Object
from hack.nvidia.installations import CLUSTER_POLICY, WITHOUT_PLUGIN
from hack.nvidia.operands import GFD, MPS, PLUGIN
from hack.nvmlsim.simulator import machine_devices
from hack.realnode.dra import install_dra
from hack.realnode.images import PAUSE_IMAGE
from hack.realnode.site import Site
from hack.sim.dra import KUBELET_PLUGIN, LABEL_DRA
from tests.e2e.conftest import NODES
from tests.e2e.pool import DEPLOYMENTS, FASTER, HALVES, MIG, PODS, POLICY, SLICE, Walk, deployment, holding, policy_of

from gpusharing.api import names

pytestmark = pytest.mark.e2e
NODE, OTHER = NODES
RESOURCES = "/apis/resource.k8s.io/v1"
SLICES = f"{RESOURCES}/resourceslices"
CLAIMS = f"{RESOURCES}/namespaces/default/resourceclaims"
TEMPLATES = f"{RESOURCES}/namespaces/default/resourceclaimtemplates"
OPERANDS = "/apis/apps/v1/namespaces/gpu-operator/daemonsets"
HALVED = replace(MIG, spec={"mode": "MIG", "mig": {**HALVES, "strategy": "mixed"}}, offered={})
WHOLE, PART = "gpu.nvidia.com", "gpusharing-mig-3g.40gb"
CDI = "/var/run/cdi"


def take_device_plugin_away(walk: Walk) -> None:
    """What step 1 of the how-to does: the pods on the GPUs end, and the GPU Operator removes its device plugin. Then
    mig-manager makes the GPUs whole."""
    api = walk.site.api
    for path in (POLICY, f"{DEPLOYMENTS}/holder", *(f"{OPERANDS}/{name}" for name in (PLUGIN, MPS, GFD))):
        with contextlib.suppress(ApiError):  # where this file runs alone
            api.delete(path, {"propagationPolicy": "Foreground"})
    api.merge_patch(CLUSTER_POLICY, {"spec": WITHOUT_PLUGIN})
    walk.wait(lambda: not api.list(POLICY.rpartition("/")[0]), "the policy to be gone")
    walk.wait(lambda: not any(map(walk.computing, NODES)), "the pods to leave the GPUs")
    for name in NODES:
        api.merge_patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-disabled"}}})


def is_whole(walk: Walk, name: str) -> bool:
    node = walk.site.nodes[name]
    assert node.gpus is not None
    labels = walk.site.api.get(f"/api/v1/nodes/{name}")["metadata"]["labels"]
    whole = not any(gpu["mig"]["current"] for gpu in node.gpus.simulator.show()["gpus"])
    return whole and labels.get(names.LABEL_MIG_STATE) == "success"


@pytest.fixture(scope="module")
def dra(site: Site, notes: str) -> Iterator[Walk]:
    """The pool, served by NVIDIA's DRA driver, with whole GPUs and without a policy."""
    walk = Walk(site)
    import time
    def say(*a): print("T", round(time.monotonic()-t0,1), *a, flush=True)
    t0 = time.monotonic()
    take_device_plugin_away(walk)
    say("away")
    site.helm_install("--set", FASTER)
    say("helm")
    site.install_operands(plugin=False)
    manifests = install_dra(list(site.nodes.values()))
    say("dra")
    walk.wait(lambda: all(is_whole(walk, name) for name in NODES), "whole")
    say("whole")
    walk.wait(lambda: all(published(walk, name) == {"gpu": 2} for name in NODES), "the driver to publish whole GPUs")
    say("published")
    yield walk


def published(walk: Walk, node: str) -> Counter[str]:
    """What the driver publishes for the node: profiles, and `gpu` for whole GPUs."""
    slices = walk.site.api.list(SLICES, fieldSelector=f"spec.nodeName={node}")
    devices = [device for one in slices for device in one["spec"].get("devices", ())]
    return Counter(device["attributes"].get("profile", {"string": "gpu"})["string"] for device in devices)


def test_x(dra: Walk) -> None:
    import os, subprocess
    with open("/tmp/drareal-pause", "w") as f: f.write(str(dra.site.plane.kubeconfig) + "\n" + str(dra.site.plane.kubectl_program) + "\n" + str({k: v.machine.pid for k, v in dra.site.nodes.items()}))
    import time
    for _ in range(int(os.environ.get("PAUSE", "400"))):
        if not os.path.exists("/tmp/drareal-pause"): break
        time.sleep(1)
