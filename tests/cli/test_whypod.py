"""What `why` answers about a pod that no single node can take, that a kubelet refused, or that the guard for tenants keeps out (kubectl_gpusharing/diagnosis/pod.py). The nodes are SIMULATED and have two H100 each."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.cli.asking import ask, operated
from tests.embedded.scene import FULL, MIXED, Scene, gpu_pod, node
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.api.names import LABEL_ISOLATION, LABEL_MODE
from gpusharing.kube.client import GPUNODES, NAMESPACES, NODES, PODS

JSON = dict[str, Any]
GPU, SMALL, LARGE = "nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
SLICED: JSON = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}
STRICT: JSON = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4, "failRequestsGreaterThanOne": True}}
MPS: JSON = {"mode": "MPS", "mps": {"replicas": 4}}
WAITS: JSON = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}],
}
TOO_LARGE = (
    "Allocate failed due to rpc error: code = Unknown desc = request for 'nvidia.com/gpu: 2' too large: maximum"
    " request size for shared resources is 1, which is unexpected"
)
TWO = "a container requests 2 nvidia.com/gpu"
REFUSED: JSON = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": TOO_LARGE}


def asking(*limits: dict[str, int], status: JSON = WAITS, **spec: Any) -> JSON:
    containers = [
        {"name": f"c-{number}", "resources": {"limits": {name: str(count) for name, count in one.items()}}}
        for number, one in enumerate(limits)
    ]
    return {
        "metadata": {"name": "llm", "namespace": "default"},
        "spec": {"containers": containers, **spec},
        "status": status,
    }


async def told(scene: Scene, raw: JSON) -> JSON:
    scene.e.cluster.add(PODS, raw)
    data: JSON = (await ask(scene.e.cluster, "why", "pod/llm", "-o", "json")).data
    return data


def held_pods(scene: Scene) -> list[int]:
    """How many pods hold a GPU on each node whose agent reports it, by its name."""
    seen = [raw.get("status", {}).get("observed", {}) for raw in scene.e.cluster.objects(GPUNODES)]
    return [one["pods"] for one in seen if "pods" in one]


async def about(raw: JSON, spec: JSON = FULL, count: int = 2) -> JSON:
    async with operated(count, serving=spec) as scene:
        return await told(scene, raw)


@asynccontextmanager
async def blocked() -> AsyncIterator[Scene]:
    """A change that waits because somebody has cordoned the only node."""
    async with operated(1, serving=FULL) as scene:
        scene.cordon("gpu-1")
        scene.apply(MIXED)
        await scene.reason("gpu-1", "AlreadyCordoned")
        yield scene


LIMITLESS: JSON = {"containers": [{"name": "main", "resources": {"requests": {GPU: "4"}}}]}
MORE = "no node has more than {} of the {} nvidia.com/gpu that this pod requests"
NO_NODE: dict[str, tuple[JSON, JSON, str]] = {
    "more GPUs than one node has": (asking({GPU: 4}), FULL, MORE.format(2, 4)),
    "as many in several containers": (asking({GPU: 2}, {GPU: 2}), FULL, MORE.format(2, 4)),
    "as many by requests alone": (asking(**LIMITLESS), FULL, MORE.format(2, 4)),
    "more shares than one node has": (asking({GPU: 9}), SLICED, MORE.format(8, 9)),
    "an instance that nobody has made": (
        asking({GPU: 1, SMALL: 1}),
        FULL,
        "no node advertises nvidia.com/mig-1g.10gb, and none will",
    ),
    "what only HAMi's scheduler knows": (
        asking({GPU: 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 30}),
        FULL,
        "no node advertises nvidia.com/gpucores or nvidia.com/gpumem, and none will",
    ),
}


@pytest.mark.parametrize("asked", NO_NODE)
@virtually
async def test_a_pod_that_no_node_can_ever_take_is_told_so_if_it_asks_for(asked: str) -> None:
    raw, spec, conclusion = NO_NODE[asked]
    data = await about(raw, spec)
    assert data["conclusion"].startswith(conclusion)


@virtually
async def test_the_counts_are_those_of_one_node_and_not_of_all_together() -> None:
    async with operated(2, serving=FULL) as scene:
        data = await told(scene, asking({GPU: 4}))
        shown = await ask(scene.e.cluster, "why", "pod/llm")
    (service,) = data["services"]
    assert (service["now"], service["free"], service["after"]) == (2, 2, 2)
    assert not lacks(service["but"], "2 of the 4")
    assert "pool-b gpu-1 nvidia.com/gpu 2 2 2 " in " ".join(shown.out.split())
    assert not lacks(shown.out, "2 of the 4 nvidia.com/gpu")


@virtually
async def test_a_pod_that_needs_what_two_nodes_have_together_is_told_that_neither_has_all() -> None:
    async with operated(1) as scene:
        scene.e.cluster.add(NODES, node("whole-1", pool="c"))
        scene.apply(MIXED)
        scene.apply(FULL, "pool-c", "c")
        await scene.ready("pool-b", "pool-c")
        data = await told(scene, asking({GPU: 1, LARGE: 1}))
    assert not lacks(data["conclusion"], "no node", "1 nvidia.com/gpu", "1 nvidia.com/mig-3g.40gb")
    assert [(one["node"], one["resource"], one["now"]) for one in data["services"]] == [
        ("gpu-1", LARGE, 4),
        ("whole-1", GPU, 2),
    ]


@virtually
async def test_gpus_that_are_free_on_different_nodes_do_not_serve_a_pod_that_needs_both() -> None:
    async with operated(2, serving=FULL) as scene:
        for name in ("gpu-1", "gpu-2"):
            scene.e.cluster.add(PODS, gpu_pod(f"on-{name}", name))
        await scene.e.until(lambda: held_pods(scene) == [1, 1], "a report of each node", 120)
        data = await told(scene, asking({GPU: 2}))
    (service,) = data["services"]
    assert (service["now"], service["free"], service["but"]) == (2, 1, "other pods use 1 of 2")
    assert not lacks(data["conclusion"], "each of gpu-1, gpu-2", "everything")


@virtually
async def test_of_a_pool_the_node_is_shown_that_comes_nearest_to_what_a_pod_needs() -> None:
    async with operated(1) as scene:
        scene.e.cluster.add(NODES, node("large-1", gpus=4))
        await scene.serve(FULL)
        scene.cordon("large-1")
        data = await told(scene, asking({GPU: 3}))
    (service,) = data["services"]
    assert (service["node"], service["now"], service["free"]) == ("large-1", 4, 0)
    assert service["but"] == "the node is cordoned or not Ready"


@virtually
async def test_a_node_without_a_policy_can_serve_a_pod_too() -> None:
    async with operated(1) as scene:
        scene.e.cluster.add(NODES, node("spare-1", pool="other", gpus=4))
        await scene.serve(FULL)
        await scene.e.until(lambda: scene.e.node("spare-1")["status"]["allocatable"].get(GPU) == "4", "it", 120)
        await scene.e.until(lambda: held_pods(scene) == [0, 0], "a report of each node", 120)
        data = await told(scene, asking({GPU: 3}))
        shown = await ask(scene.e.cluster, "why", "pod/llm")
    assert not lacks(data["conclusion"], "node spare-1", "enough free")
    assert "no policy spare-1 nvidia.com/gpu 4" in " ".join(shown.out.split())


PRODUCT = "nvidia.com/gpu.product"


@virtually
async def test_a_pod_is_promised_a_node_only_if_the_label_that_it_requires_will_be_there() -> None:
    for value, after in (("NVIDIA-H100-80GB-HBM3", 0), ("NVIDIA-H100-80GB-HBM3-SHARED", 8)):
        async with operated(1, serving=FULL) as scene:
            scene.apply({**SLICED, "rollout": {"paused": True}})
            data = await told(scene, asking({GPU: 1}, nodeSelector={PRODUCT: value}))
        (service,) = data["services"]
        assert service["after"] == after, service
        kept = [f"gpu-1: the pod's spec.nodeSelector requires {PRODUCT}={value}"]
        assert service["kept"] == ([] if after else kept)


@virtually
async def test_a_pod_is_not_promised_what_a_skipped_node_would_serve() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {"gpusharing.dev/skip": "true"}}})
        scene.apply(MIXED)
        data = await told(scene, asking({LARGE: 1}))
    assert not lacks(data["conclusion"], f"no node advertises {LARGE}", "none will")


# --- the guard for tenants ---------------------------------------------------------------------------------------

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
HARDWARE: JSON = {"key": LABEL_MODE, "operator": "In", "values": ["full", "mig"]}
GUARDED: JSON = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [HARDWARE]}]}}}
NAMESPACE = "Namespace default has the label gpusharing.dev/isolation="
ADMITS = f"{NAMESPACE}hardware, which admits its GPU pods only on nodes in mode full or mig"
WRONG = (
    f"{NAMESPACE}hard, which is not an isolation level, so none of its GPU pods are admitted: set it to hardware or"
    " memory"
)
GUARDS: dict[str, tuple[str, JSON, JSON, str]] = {
    "no node has an admitted mode": (
        "hardware",
        SLICED,
        GUARDED,
        f"{ADMITS}. No node has mode full or mig, and none will under the existing policies",
    ),
    "the nodes with such a mode lack the resource": (
        "hardware",
        MIXED,
        GUARDED,
        f"{ADMITS}. gpu-1, gpu-2 (mode mig) do not advertise nvidia.com/gpu",
    ),
    "the nodes are only full": ("hardware", FULL, GUARDED, ADMITS),
    "the value is no level": ("hard", FULL, GUARDED, WRONG),
    "the pod is older than the label": ("hardware", SLICED, {}, ""),
    "there is no label": ("", SLICED, GUARDED, ""),
}


@pytest.mark.parametrize("case", GUARDS)
@virtually
async def test_a_pod_that_waits_behind_the_guard_learns_where_it_may_run_and_what_lacks_there_when(case: str) -> None:
    level, spec, affinity, said = GUARDS[case]
    async with operated(2, serving=spec) as scene:
        labels = {LABEL_ISOLATION: level} if level else {}
        scene.e.cluster.add(NAMESPACES, {"metadata": {"name": "default", "labels": labels}})
        data = await told(scene, asking({GPU: 1}, affinity=affinity))
        shown = await ask(scene.e.cluster, "why", "pod/llm")
    assert data["guard"] == said
    assert ("Guard: " in shown.out) == bool(said)
    assert said in " ".join(shown.out.split())


# --- failRequestsGreaterThanOne ----------------------------------------------------------------------------------


@virtually
async def test_a_pod_that_a_kubelet_refused_is_told_what_the_kubelet_said_and_which_field_it_was() -> None:
    """As in NVIDIA/k8s-device-plugin's README: the pod fails with UnexpectedAdmissionError and stays."""
    async with operated(1, serving=STRICT) as scene:
        data = await told(scene, asking({GPU: 2}, status=REFUSED, nodeName="gpu-1"))
        shown = await ask(scene.e.cluster, "why", "pod/llm")
    assert data["status"] == f"UnexpectedAdmissionError: {TOO_LARGE}"
    rule = f"{TWO}, but policy pool-b sets failRequestsGreaterThanOne; request 1 in each container"
    assert not lacks(data["conclusion"], "kubelet", "gpu-1", rule)
    assert f"Status: UnexpectedAdmissionError: {TOO_LARGE}" in " ".join(shown.out.split())


@pytest.mark.parametrize(
    ("spec", "how"),
    [(STRICT, "sets failRequestsGreaterThanOne"), (MPS, "has mode MPS, which implies failRequestsGreaterThanOne")],
    ids=["the policy", "MPS"],
)
@virtually
async def test_a_pod_that_waits_learns_beforehand_that_kubelets_would_refuse_it_because_of(
    spec: JSON, how: str
) -> None:
    data = await about(asking({GPU: 2}), spec, 1)
    (service,) = data["services"]
    rule = f"{TWO}, but policy pool-b {how}; request 1 in each container"
    assert (service["but"], data["conclusion"]) == (rule, f"kubelets would reject this pod: {rule}")


@virtually
async def test_two_containers_with_one_share_each_are_not_refused() -> None:
    """NVIDIA/k8s-device-plugin#1690: the plugin is asked for each container by itself."""
    data = await about(asking({GPU: 1}, {GPU: 1}), STRICT, 1)
    assert data["asks"] == {GPU: 2}
    assert not lacks(data["conclusion"], "node gpu-1", "enough free")


# --- pods for which no pool is to blame --------------------------------------------------------------------------

CLAIM = [{"name": "gpu", "resourceClaimName": "gpu-claim"}]
BY_CLAIM = (
    "this pod requests devices only through ResourceClaims, which are not compared with the GPU pools; see the"
    " scheduler's message and: kubectl get resourceclaims,resourceslices"
)
OTHERS: dict[str, tuple[JSON, str]] = {
    "that has succeeded": (
        asking({GPU: 1}, status={"phase": "Succeeded"}, nodeName="gpu-1"),
        "this pod has succeeded, so it uses no GPU and will not start again",
    ),
    "that was evicted": (
        asking({GPU: 1}, status={"phase": "Failed", "reason": "Evicted", "message": "low on disk"}),
        "this pod has failed, so it uses no GPU and will not start again",
    ),
    "that asks for GPUs by a claim only": (asking(resourceClaims=CLAIM), BY_CLAIM),
    "that asks for a device by its DeviceClass": (
        asking({"deviceclass.resource.kubernetes.io/gpu.nvidia.com": 1}),
        BY_CLAIM,
    ),
    "that asks for none": (asking({GPU: 0}), "this pod requests no GPU resource, so it is not waiting for a GPU pool"),
}


@pytest.mark.parametrize("pod", OTHERS)
@virtually
async def test_no_pool_is_blamed_for_a_pod(pod: str) -> None:
    raw, conclusion = OTHERS[pod]
    data = await about(raw, count=1)
    assert data["conclusion"] == conclusion


@virtually
async def test_what_claims_and_another_scheduler_decide_is_noted() -> None:
    data = await about(asking({GPU: 1}, resourceClaims=CLAIM, schedulerName="hami-scheduler"), count=1)
    (note,) = data["notes"]
    assert not lacks(note, "spec.resourceClaims, spec.schedulerName")
