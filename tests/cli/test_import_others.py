"""`import` where something else divides GPUs, where `doctor` would report an error about a node that a policy selects, where the GPU Operator is not in namespace gpu-operator, and where our ConfigMaps are not there yet (kubectl_gpusharing/setup/importing.py)."""

from typing import Any

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, ask, reported
from tests.cli.test_import import HALF, SPACE, by_hand, policies, untouched
from tests.embedded.scene import L40S, Scene
from tests.fakes.virtualtime import virtually
from tests.recipes import Recipe, RecipePool
from tests.wording import lacks

from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, NODES, PODS
from gpusharing.kube.errors import Forbidden
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED

HAMI = {"hami.io/node-nvidia-register": '[{"id":"GPU-1","count":10}]', "hami.io/node-handshake": "Reported"}
VIRTUAL = {"nvidia.com/gpu.workload.config": "vm-passthrough"}
REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "of HAMi": (
        {"annotations": HAMI},
        "HAMi's device plugin serves the GPUs on c-2 (annotation hami.io/node-nvidia-register) and does not follow"
        " nvidia.com/device-plugin.config",
    ),
    "of GKE": ({"labels": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}}, "GKE's own device plugin serves"),
    "for virtual machines": (
        {"labels": VIRTUAL},
        "nvidia.com/gpu.workload.config is vm-passthrough: the GPUs of c-2 are not available to containers",
    ),
    "without the device plugin": (
        {"labels": {"nvidia.com/gpu.deploy.device-plugin": "false"}},
        "nvidia.com/gpu.deploy.device-plugin is false, so components of the GPU Operator that every change needs do not"
        " run on c-2. Correct the label, or exclude the node with the"
        " policy's nodeSelector. Run: kubectl label node c-2 --overwrite nvidia.com/gpu.deploy.device-plugin=true",
    ),
}  # fmt: skip


@pytest.mark.parametrize("early", [False, True], ids=["installed", "before the installation"])
@pytest.mark.parametrize("name", REJECTED)
@virtually
async def test_what_doctor_rejects_is_left_out_with_its_reason_where_a_node_is(name: str, early: bool) -> None:
    metadata, words = REJECTED[name]
    async with untouched(HALF) if early else by_hand(HALF) as place:
        cluster = place.e.cluster if isinstance(place, Scene) else place
        cluster.patch(NODES, "c-2", {"metadata": metadata})
        told = await ask(cluster, "import")
    (one,) = policies(told.out).values()
    assert told.status == CHANGES
    assert one["spec"]["nodeSelector"]["matchExpressions"][0]["values"] == ["c-1"]
    assert f"# c-2 is left out: {words}" in told.out


@virtually
async def test_what_several_nodes_have_in_common_is_said_once_and_hamis_shares_are_named() -> None:
    async with untouched(HALF) as cluster:
        for node in ("c-1", "c-2"):
            cluster.patch(NODES, node, {"metadata": {"annotations": HAMI}})
        told = await ask(cluster, "import")
    assert policies(told.out) == {}
    (line,) = [line for line in told.out.splitlines() if "left out" in line]
    assert line.startswith("# c-1, c-2 ")
    assert "kubectl annotate node NODE hami.io/node-nvidia-register-" in line
    assert not lacks(line, "HAMi", "nvidia.com/gpumem*", "nvidia.com/gpucores*")


def reserve(cluster: FakeCluster, node: str) -> None:
    metadata = {"name": f"gpu-reservation-{node}", "namespace": "kai-resource-reservation", "uid": node}
    limits = {"nvidia.com/gpu": "1"}
    cluster.add(
        PODS,
        {
            "metadata": {**metadata, "labels": {"runai-gpu-group": "group-1"}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "keep", "resources": {"limits": limits, "requests": limits}}],
            },
            "status": {"phase": "Running"},
        },
    )


KAI = "KAI-Scheduler gives pods fractions of GPUs on c-1. Policies cannot express these fractions, so they are not"
BOTTLEROCKET = "c-2 runs Bottlerocket, whose settings (settings.kubelet-device-plugins.nvidia) can share GPUs"


@virtually
async def test_fractions_of_kai_and_settings_of_bottlerocket_are_named_beside_the_policy() -> None:
    image = {"status": {"nodeInfo": {"osImage": "Bottlerocket OS 1.63.0 (aws-k8s-1.33-nvidia)"}}}
    async with by_hand(HALF) as scene:
        before = await ask(scene.e.cluster, "import")
        reserve(scene.e.cluster, "c-1")
        scene.e.cluster.patch(NODES, "c-2", image, "", "status")
        told = await ask(scene.e.cluster, "import")
    assert "KAI" not in before.out
    assert "Bottlerocket" not in before.out
    assert (told.status, policies(told.out)) == (DONE, policies(before.out))
    assert f"# {KAI}" in told.out
    assert f"# {BOTTLEROCKET}" in told.out


@virtually
async def test_without_the_right_to_list_pods_fractions_are_said_to_be_unknown() -> None:
    async with untouched(HALF) as cluster:
        refusal = Forbidden('User "me" cannot list resource "pods"')
        cluster.faults.fail("list", PODS, refusal, times=EVER, identity=ME, namespace="")
        told = await ask(cluster, "import")
    assert told.status == DONE
    assert not lacks(told.out, "list pods", "unknown", "KAI-Scheduler")


# --- places of ConfigMaps ---------------------------------------------------------------------------------------

FRESH = Recipe({"devicePlugin": {}, "migManager": {"enabled": True}}, {}, {"d": RecipePool({}, {}, L40S)})
OURS = ("gpusharing-device-plugin", "gpusharing-mig-parted")


@virtually
async def test_before_the_installation_the_configmaps_of_a_gpu_operator_anywhere_are_read() -> None:
    """On OpenShift it is nvidia-gpu-operator (NVIDIA/gpu-operator#704), on DKP kommander (NVIDIA/gpu-operator#2376)."""
    told = await ask(reported("other-namespace"), "import")
    (one,) = policies(told.out).values()
    assert told.status == DONE
    assert (one["spec"]["mode"], one["spec"]["timeSlicing"]) == ("TimeSlicing", {"replicas": 4})
    values = "gpuOperator.namespace=nvidia-gpu-operator,gpuOperator.adminPluginConfigMap=time-slicing-config"
    install = f"helm install gpusharing CHART -n gpusharing --create-namespace --set {values}\n"
    assert install in told.out


@virtually
async def test_the_pointers_wait_for_configmaps_that_the_operator_has_not_written() -> None:
    async with by_hand(FRESH) as scene:
        await scene.e.kill_operator()
        for name in OURS:
            scene.e.cluster.delete(CONFIG_MAPS, name, SPACE)
        told = await ask(scene.e.cluster, "import")
    assert told.out.index("1. Wait until the operator has written") < told.out.index("2. Point ClusterPolicy")
    for name in OURS:
        assert f"kubectl get configmap {name} -n gpu-operator" in told.out


@virtually
async def test_no_pointer_moves_to_configmaps_in_another_namespace() -> None:
    async with by_hand(FRESH) as scene:
        status = {"status": {"namespace": "nvidia"}}
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", status, "", "status")
        told = await ask(scene.e.cluster, "import")
    assert (told.status, policies(told.out)) == (FAILED, {})
    assert "set chart value gpuOperator.namespace=nvidia" in told.out
    assert "kubectl patch" not in told.out
